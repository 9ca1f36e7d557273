"""Sample the tiny Wan on prompts it never saw and read the clips back: ``python -m demo.check``.

64 held-out prompts, 50 Euler steps, Wan's default shift of 8, classifier-free guidance. Prints the scores as JSON and
draws a contact sheet: first, middle and last frame of each clip, framed green where all three readings are right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from .tiny_wan import clips, codec, reading, words
from .train import MODEL, OUTPUT, import_wan

SHEET = Path(__file__).parent / "contact_sheet.png"
SHIFT = 8.0
WANTED = {"colour": 0.95, "motion": 0.90, "shape": 0.85}


def load(path: Path) -> torch.nn.Module:
    """The checkpoint in ComfyUI's WanModel, computed in float32."""
    wan, operations = import_wan()
    model: torch.nn.Module = wan(**MODEL, operations=operations, dtype=torch.float32)
    model.load_state_dict(load_file(path))
    return model.requires_grad_(False).eval()


def schedule(steps: int) -> torch.Tensor:
    """(steps + 1,) noise levels from 1 to 0: ComfyUI's "simple" scheduler with Wan's shift."""
    t = torch.linspace(1.0, 0.0, steps + 1)
    return SHIFT * t / (1.0 + (SHIFT - 1.0) * t)


@torch.inference_mode()
def sample(model: torch.nn.Module, ids: torch.Tensor, steps: int, cfg: float, seed: int) -> torch.Tensor:
    """(B, 4) word ids -> (B, T, H, W, 3) frames in [0, 1], by guided Euler steps."""
    side = clips.SIZE // codec.BLOCK
    shape = (len(ids), codec.CHANNELS, clips.FRAMES, side, side)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    context = torch.cat([words.embed(ids), words.embed(torch.full_like(ids, words.MISSING))])
    levels = schedule(steps)
    for here, there in itertools.pairwise(levels):
        time_step = torch.full((2 * len(ids),), 1000.0) * here
        cond, uncond = model(torch.cat([x, x]), time_step, context).chunk(2)
        x = x + (there - here) * (uncond + cfg * (cond - uncond))
    return codec.decode(x)


def verdicts(ids: torch.Tensor, frames: torch.Tensor) -> list[dict[str, bool]]:
    """Per clip: which of shape, colour and motion reads as the prompt says."""
    rows = []
    for asked, clip in zip(ids.tolist(), frames, strict=True):
        wanted = (words.SHAPES[asked[0]], words.COLOURS[asked[1]], words.MOTIONS[asked[2]])
        seen = reading.read(clip)
        rows.append({name: a == b for name, a, b in zip(("shape", "colour", "motion"), wanted, seen, strict=True)})
    return rows


def contact_sheet(frames: torch.Tensor, right: list[dict[str, bool]], columns: int = 8) -> Image.Image:
    """First, middle and last frame of each clip, side by side in a frame that shows the verdict."""
    tiles = []
    for clip, row in zip(frames, right, strict=True):
        strip = torch.cat([clip[0], clip[len(clip) // 2], clip[-1]], dim=1)
        tile = torch.tensor([0.1, 0.6, 0.2] if all(row.values()) else [0.9, 0.1, 0.1]).repeat(*strip.shape[:2], 1)
        tile = torch.nn.functional.pad(tile.permute(2, 0, 1), (2, 2, 2, 2), mode="replicate").permute(1, 2, 0)
        tile[2:-2, 2:-2] = strip
        tiles.append(torch.nn.functional.pad(tile, (0, 0, 3, 3, 3, 3), value=1.0))
    rows = [torch.cat(tiles[i : i + columns], dim=1) for i in range(0, len(tiles), columns)]
    return Image.fromarray((torch.cat(rows) * 255).round().byte().numpy()).quantize(192)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--checkpoint", type=Path, default=OUTPUT)
    options.add_argument("--prompts", type=int, default=64)
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--cfg", type=float, default=5.0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--sheet", type=Path, default=SHEET)
    args = options.parse_args()
    torch.set_num_threads(2)
    model = load(args.checkpoint)
    ids = torch.tensor(clips.unseen_prompts()[: args.prompts])
    started = time.monotonic()
    parts = [sample(model, part, args.steps, args.cfg, args.seed + index) for index, part in enumerate(ids.split(16))]
    frames = torch.cat(parts)
    spent = time.monotonic() - started
    right = verdicts(ids, frames)
    contact_sheet(frames, right).save(args.sheet, optimize=True)
    scores = {name: sum(row[name] for row in right) / len(right) for name in WANTED}
    report = {
        "prompts": len(ids),
        "steps": args.steps,
        "cfg": args.cfg,
        "seconds": round(spent, 1),
        **scores,
        "good": all(scores[name] >= wanted for name, wanted in WANTED.items()),
        "wrong": [
            words.describe(tuple(asked)) + ": " + ", ".join(name for name, ok in row.items() if not ok)
            for asked, row in zip(ids.tolist(), right, strict=True)
            if not all(row.values())
        ],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
