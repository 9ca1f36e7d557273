"""What each part of the method is worth on the tiny Wan: ``python -m bench.ablation``.

Runs in the real ComfyUI, in one process, same seeds for every variant, each compared with its own sampler's full run.
Writes ``bench/output/ablation.json`` and a Markdown table. PSNR of decoded frames in dB, median and worst over prompts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from demo.comfyui import apply_torchvision_shim, locate, needs_torchvision_shim
from demo.tiny_wan import clips, codec, words

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "bench" / "output"
MODEL = ROOT / "demo" / "models" / "erta_tiny_wan.safetensors"
GUIDANCE = 5.0
PROFILE_SEED, PROMPT_SEED = 9000, 100

# name: (uses the profile, what is wished beside the speed)
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "even, hold": (False, {"predictor": "hold", "corrector": False}),
    "greedy, hold (paper's policy)": (True, {"mode": "paper", "predictor": "hold"}),
    "+ affine": (True, {"mode": "paper", "predictor": "affine"}),
    "+ affine + timesteps": (True, {"mode": "paper", "predictor": "affine", "timesteps": True}),
    "even, two terms": (False, {"predictor": "linear", "corrector": False}),
    "even, two terms, corrector (built-in plan)": (False, {"predictor": "linear"}),
    "planned, hold": (True, {"predictor": "hold", "corrector": False}),
    "planned, two terms": (True, {"predictor": "linear", "corrector": False}),
    "planned, two terms, corrector": (True, {"predictor": "linear"}),
    "planned, fitted, corrector": (True, {"predictor": "fitted"}),
}
LAST_FOUR = tuple(VARIANTS)[5:9]


def load_pack() -> ModuleType:
    """ComfyUI in this process and the pack loaded as ComfyUI does it."""
    if needs_torchvision_shim():
        apply_torchvision_shim()
    sys.path.insert(0, str(locate()))
    from comfy.cli_args import args

    args.cpu = True
    spec = importlib.util.spec_from_file_location(
        "ertacache", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["ertacache"] = pack
    spec.loader.exec_module(pack)
    return pack


class Bench:
    """The tiny Wan, its prompts, and one call that samples."""

    def __init__(self, prompts: int, steps: int, sampler: str, model: Path, dtype: torch.dtype) -> None:
        import comfy.sd

        self.steps, self.sampler = steps, sampler
        chosen = clips.unseen_prompts(prompts + 16)
        self.prompts, self.profile_prompts = chosen[:prompts], chosen[prompts:]
        self.model = comfy.sd.load_diffusion_model(str(model), model_options={"dtype": dtype})

    def sample(self, model: Any, ids: Any, seed: int, steps: int | None = None) -> torch.Tensor:
        import nodes

        side = clips.SIZE // codec.BLOCK
        latent = {"samples": torch.zeros(1, codec.CHANNELS, clips.FRAMES, side, side)}
        positive, negative = ([[words.embed(torch.tensor([i])), {}]] for i in (ids, (words.MISSING,) * 4))
        result: torch.Tensor = nodes.common_ksampler(
            model, seed, steps or self.steps, GUIDANCE, self.sampler, "simple", positive, negative, latent
        )[0]["samples"]
        return result

    def all(self, model: Any, steps: int | None = None) -> list[torch.Tensor]:
        return [self.sample(model, ids, PROMPT_SEED + n, steps) for n, ids in enumerate(self.prompts)]

    def record(self, runs: int, level: str = "output") -> Any:
        from ertacache.comfy_erta.session import attach
        from ertacache.comfy_erta.tasks import Recording
        from ertacache.erta.profile import Profile

        kept, tables = [], []

        def keep(measured: Any, found: Any) -> str:
            kept.append(measured)
            tables.extend(found)
            return ""

        for run in range(runs):
            task = Recording(level, run, keep, lambda report: None, "simple")
            self.sample(attach(self.model, task), self.profile_prompts[run], PROFILE_SEED + run)
        return Profile(kept[0], tuple(tables))


def psnr(result: torch.Tensor, reference: torch.Tensor) -> float:
    from comfy.latent_formats import Wan21
    from skimage.metrics import peak_signal_noise_ratio

    frames = [codec.decode(Wan21().process_in(x)).numpy() for x in (reference, result)]
    return float(peak_signal_noise_ratio(frames[0], frames[1], data_range=1.0))


def measure(bench: Bench, profile: Any, speed: float, names: tuple[str, ...], full: list[torch.Tensor]) -> list[dict]:
    from ertacache.comfy_erta.session import attach
    from ertacache.comfy_erta.store import Store
    from ertacache.comfy_erta.tasks import BUILT_IN, Caching
    from ertacache.erta.plan import Wish

    rows = []
    for name in names:
        measured, wished = VARIANTS[name]
        reports: list[Any] = []
        with tempfile.TemporaryDirectory() as empty:
            task = Caching(
                Wish(speed=speed, **wished),
                Store(Path(empty)),
                reports.append,
                profile if measured else None,
                without_profile=BUILT_IN,
                scheduler="simple",
            )
            results = bench.all(attach(bench.model, task))
        values = [psnr(a, b) for a, b in zip(results, full, strict=True)]
        rows.append(row(name, reports[0].computed, values, compute=reports[0].compute))
    return rows


def row(name: str, evaluations: int, values: list[float], **more: Any) -> dict:
    found = {"name": name, "evaluations": evaluations, "median": statistics.median(values), "worst": min(values)}
    print(f"  {name:45s} {evaluations:3d}  {found['median']:6.2f} / {found['worst']:6.2f}", flush=True)
    return {**found, "values": values, **more}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prompts", type=int, default=16)
    options.add_argument("--runs", type=int, default=4, help="recorded runs in the profile")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--speeds", type=float, nargs="+", default=[2.0])
    options.add_argument("--samplers", nargs="+", default=["euler", "dpmpp_2m", "uni_pc"])
    options.add_argument("--all-variants", action="store_true", help="for every sampler, not for euler only")
    options.add_argument("--model", type=Path, default=MODEL)
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    given = options.parse_args()
    load_pack()
    torch.set_grad_enabled(False)
    content: dict[str, Any] = {"prompts": given.prompts, "runs": given.runs, "steps": given.steps, "dtype": given.dtype}
    for sampler in given.samplers:
        began = time.monotonic()
        bench = Bench(given.prompts, given.steps, sampler, given.model, getattr(torch, given.dtype))
        full = bench.all(bench.model)
        profile = bench.record(given.runs)
        for speed in given.speeds:
            print(f"{sampler} at {speed:g}x against its own {given.steps} steps", flush=True)
            fewer = round(given.steps / speed)
            plain = [psnr(a, b) for a, b in zip(bench.all(bench.model, fewer), full, strict=True)]
            names = tuple(VARIANTS) if sampler == "euler" or given.all_variants else LAST_FOUR
            rows = [row("fewer steps", fewer, plain), *measure(bench, profile, speed, names, full)]
            content[f"{sampler} {speed:g}x"] = rows
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "ablation.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
