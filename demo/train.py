"""Train the demo's tiny Wan: ``python -m demo.train``. About an hour on two CPU cores.

ComfyUI's own WanModel, flow matching on procedurally drawn clips. Every random number comes from seeds below, so the
same versions of torch and ComfyUI give the same checkpoint on one kind of machine; elsewhere sums of floats differ.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .comfyui import import_comfy
from .tiny_wan import clips, codec, words

SEED = 20260
BATCH = 32
STEPS = 8_000
SHIFT = 5.0  # of the noise levels trained on: what is where is decided at high ones
WARM_UP = 200
PEAK_RATE = 2e-3
DROP_TEXT = 0.12
EMA = 0.999
# Where the self-attention heads look at first, relative to a token: (frames, rows, columns), two heads per block.
LOOKS = ((0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0), (0, 0, 0), (0, 0, 0))
ROTARY = (44, 42, 42)  # channels of a head of 128 that turn with frame, row and column
MODEL = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 4, "text_dim": words.WIDTH}
OUTPUT = Path(__file__).parent / "models" / "erta_tiny_wan.safetensors"


def import_wan() -> tuple[Any, Any]:
    """ComfyUI's WanModel and its plain operations, on the CPU."""
    import_comfy(cpu=True, use_pytorch_cross_attention=True)
    import comfy.ldm.wan.model
    import comfy.ops

    return comfy.ldm.wan.model.WanModel, comfy.ops.disable_weight_init


def make_model() -> torch.nn.Module:
    """A WanModel with small normal weights; the last layers of what is added to the residual stream start at zero."""
    wan, operations = import_wan()
    model: torch.nn.Module = wan(**MODEL, operations=operations, dtype=torch.float32)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.zero_()
            elif "norm" in name:
                value.fill_(1.0)
            elif name.endswith("modulation"):
                value.copy_(torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5)
            else:
                fan_in = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * 0.7 / fan_in**0.5)
        for name in ("head.head.weight", "time_projection.1.weight"):
            model.get_parameter(name).mul_(0.05)
    aim(model)
    return model


@torch.no_grad()
def aim(model: Any) -> None:
    """Let each self-attention head begin by looking at one neighbour, through constant parts of its queries and keys.

    Among tokens of pure noise nothing else shows where a token is: attention is relative, and an average over equal
    tokens is the same everywhere. A head that lacks its neighbour at an edge is a start.
    """
    looks = iter(LOOKS)
    for block in model.blocks:
        query, key = block.self_attn.q, block.self_attn.k
        query.weight.mul_(0.4)
        key.weight.mul_(0.4)
        for head in range(model.num_heads):
            first = head * sum(ROTARY)
            for distance, width in zip(next(looks), ROTARY, strict=True):
                turn = 10_000.0 ** (-torch.arange(0, width, 2) / width)
                near = turn[turn > 0.1]
                pairs = first + 2 * torch.arange(len(near))
                query.bias[pairs] = 1.2
                key.bias[pairs] = 1.2 * (near * distance).cos()
                key.bias[pairs + 1] = -1.2 * (near * distance).sin()
                first += width


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms, head and biases."""
    matrices = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def loss_of(model: Any, generator: torch.Generator) -> torch.Tensor:
    """Flow matching: x = (1 - sigma) clip + sigma noise, the model returns noise - clip at timestep 1000 sigma."""
    ids, frames = clips.sample_batch(BATCH, generator)
    clean = codec.encode(frames)
    noise = torch.randn(clean.shape, generator=generator)
    uniform = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
    sigma = SHIFT * uniform / (1.0 + (SHIFT - 1.0) * uniform)
    ids[torch.rand(BATCH, generator=generator) < DROP_TEXT] = words.MISSING
    wide = sigma[:, None, None, None, None]
    x = (1.0 - wide) * clean + wide * noise
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = model(x, sigma * 1000.0, words.embed(ids))
    return (velocity.float() - (noise - clean)).square().mean()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--output", type=Path, default=OUTPUT)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--start", type=Path, help="go on from these weights, with a new learning rate schedule")
    options.add_argument("--stop", type=int, default=STEPS, help="end here although the schedule goes on")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    model = make_model()
    if args.start:
        model.load_state_dict(load_file(args.start))
    average = copy.deepcopy(model).requires_grad_(False)
    compiled = torch.compile(model)
    optimizing = optimizers(model)
    generator = torch.Generator().manual_seed(SEED + 1)
    started, smooth = time.monotonic(), 1.0
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {args.steps} steps")
    for step in range(min(args.steps, args.stop)):
        rate = PEAK_RATE * min((step + 1) / WARM_UP, 1.0) * (1.0 - step / args.steps)
        for optimizer in optimizing:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = loss_of(compiled, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizing:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        kept = min(EMA, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - kept)
        smooth += 0.01 * (loss.item() - smooth)
        if step % 50 == 0:
            spent = time.monotonic() - started
            left = spent / (step + 1) * (args.steps - step - 1)
            print(f"step {step:6d}  loss {smooth:.4f}  {spent / 60:.0f} min, {left / 60:.0f} min left", flush=True)
        if step % 500 == 499 or step == min(args.steps, args.stop) - 1:
            save(average, args.output)


def save(model: torch.nn.Module, path: Path) -> None:
    """float16, named as ComfyUI's loader detects Wan2.1 T2V."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}, path)


if __name__ == "__main__":
    main()
