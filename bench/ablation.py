"""What each part of the method is worth on the tiny Wan: ``python -m bench.ablation``.

Runs in the real ComfyUI, in one process, same seeds for every variant, each compared with its own sampler's full run.
Writes ``bench/output/ablation.json`` and a table. PSNR of decoded frames in dB, median and worst over prompts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.loading import ROOT, load_pack

if TYPE_CHECKING:
    from ertacache.bench.rig import Rig

OUTPUT = ROOT / "bench" / "output"
MODEL = ROOT / "demo" / "models" / "erta_tiny_wan.safetensors"

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


def decoded(rig: Rig, model: Any, steps: int = 0) -> list[np.ndarray]:
    """Frames of every test prompt."""
    return [rig.subject.frames(rig.sample(model, job, steps).latent) for job in rig.test]


def measure(rig: Rig, profile: Any, speed: float, names: tuple[str, ...], full: list[np.ndarray]) -> list[dict]:
    from ertacache.bench.ours import cached
    from ertacache.bench.quality import psnr
    from ertacache.erta.plan import Wish

    rows = []
    for name in names:
        measured, wished = VARIANTS[name]
        reports: list[Any] = []
        wish = Wish(speed=speed, **wished)
        model = cached(rig.model, wish, profile if measured else None, rig.config.scheduler, reports.append)
        values = [psnr(a, b) for a, b in zip(decoded(rig, model), full, strict=True)]
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
        content |= of_sampler(sampler, given)
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "ablation.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def of_sampler(sampler: str, given: argparse.Namespace) -> dict[str, Any]:
    """The rows of each speed, by the table's title."""
    from dataclasses import replace

    from ertacache.bench.calibration import record
    from ertacache.bench.config import read_config
    from ertacache.bench.quality import psnr
    from ertacache.bench.rig import Rig

    changes = {"sampler": sampler, "steps": given.steps, "model": str(given.model), "dtype": given.dtype}
    rig = Rig(replace(read_config("tiny_wan"), profile_runs=given.runs, **changes), given.prompts)
    full = decoded(rig, rig.model)
    profile = record(rig, "output")
    content = {}
    for speed in given.speeds:
        print(f"{sampler} at {speed:g}x against its own {given.steps} steps", flush=True)
        fewer = round(given.steps / speed)
        plain = [psnr(a, b) for a, b in zip(decoded(rig, rig.model, fewer), full, strict=True)]
        names = tuple(VARIANTS) if sampler == "euler" or given.all_variants else LAST_FOUR
        rows = [row("fewer steps", fewer, plain), *measure(rig, profile, speed, names, full)]
        content[f"{sampler} {speed:g}x"] = rows
    return content


if __name__ == "__main__":
    main()
