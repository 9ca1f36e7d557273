"""``python -m bench``: every method against every other at equal model calls, on one model in a real ComfyUI.

Finished rows are kept under bench/output/kept and reused while what they depend on is the same (model, settings,
prompts, sources), so a run that was stopped goes on where it was. Writes results.json, results.md and two pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from . import measure, plots, tables
from .calibration import Calibration
from .config import Config, ConfigError, read_config
from .facts import machine
from .kept import Kept, digest_of, digest_of_files, write
from .loading import ROOT
from .methods import Method, Place, Trial
from .ours import BUILTIN, PLANNED, ours
from .reference import References
from .rig import Rig
from .rivals import rivals
from .skipping import usable
from .subjects import model_file

OUTPUT = ROOT / "bench" / "output"
SPEEDS, PROMPTS = (1.5, 2.0, 2.5, 3.0), 32
QUICK_SPEEDS, QUICK_PROMPTS, QUICK_OTHERS = (2.0,), 4, 2
QUICK = (
    PLANNED,
    BUILTIN,
    "planned, hold, corrector",
    "fewer steps",
    "EasyCache",
    "TeaCache",
    "MagCache",
    "TaylorSeer 1",
)

# What a row depends on beside the model and the settings. A change of the pack measures ours anew, not the rivals.
_STAND_IN = ("rough", "rough_clips", "posterior")
_RENDERING = (*_STAND_IN, "rig", "subjects", "quality", "reference", "measure", "methods", "stages", "tuning")
_RENDERING += ("calibration",)
_RIVALS = (*_RENDERING, "rivals", "following", "taylor", "magnitudes", "embeddings")
_RIVALS += ("online", "seacache", "fsampler", "geoshrink", "published")
_OURS = (*_RENDERING, "ours", "recording")


class Bench:
    """The methods on one rig, what is kept of them, and what they still cost."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        folder = OUTPUT / "kept" / rig.config.name
        known = [asdict(rig.config), machine(rig), digest_of_files([model_file(rig.config)])]
        pack = [*(ROOT / "erta").glob("*.py"), *(ROOT / "comfy_erta").glob("*.py")]
        self.rivals = Kept(folder, digest_of(known, digest_of_files(_sources(_RIVALS))))
        self.ours = Kept(folder, digest_of(known, digest_of_files([*_sources(_OURS), *pack])))
        full = digest_of(known, digest_of_files(_sources((*_STAND_IN, "rig", "subjects"))))
        self.references = References(rig, Kept(folder, full))
        self.calibration = Calibration(rig, rivals=self.rivals, ours=self.ours)
        others = [sampler for sampler in rig.config.other_samplers if sampler != rig.config.sampler]
        self.methods: dict[str, tuple[Method, Kept]] = {
            **{method.name: (method, self.ours) for method in ours()},
            **{method.name: (method, self.rivals) for method in rivals(others)},
        }
        self._trials: dict[str, dict[str, Trial]] = {}

    def budget(self, speed: float) -> int:
        """Model calls at a speed: what a cache of this speed on every stage computes."""
        return sum(max(2, round(len(stage) / speed)) for stage in self.rig.stages)

    def kept(self, name: str, speed: float) -> tuple[Kept, str]:
        return self.methods[name][1], f"{name} {speed:g}x {len(self.rig.test)} prompts"

    def is_kept(self, name: str, speed: float) -> bool:
        kept, key = self.kept(name, speed)
        return kept.has_json(key)

    def effort(self, name: str, speed: float) -> float:
        """Model calls that a row will take, about."""
        method = self.methods[name][0]
        budget, tuning = self.budget(speed), len(self.rig.tuning)
        return budget * (len(self.rig.test) + 1 + method.effort * tuning) + 3 * self.rig.steps

    def row(self, name: str, speed: float, fresh: bool = False) -> measure.Row:
        method = self.methods[name][0]
        place = Place(self.rig, self.calibration, self.budget(speed))
        memory = self._trials.setdefault(name, {})
        kept, key = self.kept(name, speed)
        found: measure.Row = kept.json(
            key, lambda: measure.row(method, place, speed, self.references, memory), fresh=fresh
        )
        return found

    def rows(self, speeds: Sequence[float]) -> list[measure.Row]:
        """All that are kept, whichever run measured them."""
        return [self.row(name, s) for s in speeds for name in self.methods if self.is_kept(name, s)]

    def other_seed(self) -> list[float]:
        """See ``measure.other_seed``."""
        key = f"another seed {len(self.rig.test)} prompts"
        found: list[float] = self.references.kept.json(key, lambda: measure.other_seed(self.rig, self.references))
        return found

    def settings(self) -> dict[str, Any]:
        return {
            "config": asdict(self.rig.config),
            "prompts": len(self.rig.test),
            "tuning": len(self.rig.tuning),
            "profile_runs": len(self.rig.profiling),
            "seeds": [job.key for job in self.rig.test],
            **machine(self.rig),
        }


def main() -> None:
    args = options().parse_args()
    torch.set_grad_enabled(False)
    try:
        config = configured(args)
        bench = Bench(Rig(config, args.prompts or (QUICK_PROMPTS if args.quick else PROMPTS)))
    except (ConfigError, FileNotFoundError, ValueError) as problem:
        raise SystemExit(str(problem)) from None
    speeds = tuple(args.speeds or (QUICK_SPEEDS if args.quick else SPEEDS))
    names = usable(bench.rig.model, chosen(bench, args.methods or (), args.quick))
    run(bench, [(name, speed) for speed in speeds for name in names], args.fresh)
    folder = args.output or OUTPUT / ("quick" if args.quick else "" if config.name == "tiny_wan" else config.name)
    write_results(bench, speeds, folder)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--config", default="tiny_wan", help="a name in bench/configs, or the path of a .toml file")
    parser.add_argument("--quick", action="store_true", help="some methods, 4 prompts, 2x: minutes on two CPU cores")
    parser.add_argument("--methods", nargs="+", help="parts of methods' names; all methods without it")
    parser.add_argument("--speeds", type=float, nargs="+", help="1.5 2 2.5 3 without it")
    parser.add_argument("--prompts", type=int, help="32 without it")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is kept")
    parser.add_argument("--output", type=Path, help="folder for the results; bench/output without it")
    for name, kind in (("model", str), ("dtype", str), ("sampler", str), ("steps", int), ("guidance", float)):
        parser.add_argument(f"--{name}", type=kind, help="in place of the config's")
    return parser


def configured(args: argparse.Namespace) -> Config:
    """The config file with what the command line says otherwise."""
    config = read_config(args.config)
    names = ("model", "dtype", "sampler", "steps", "guidance")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.quick:
        changes |= {"tuning_prompts": QUICK_OTHERS, "profile_runs": QUICK_OTHERS, "other_samplers": ()}
    return replace(config, **changes)


def chosen(bench: Bench, parts: Sequence[str], quick: bool) -> list[str]:
    """Names of the methods to measure. Raises SystemExit where none is meant."""
    if not parts:
        return [name for name in bench.methods if not quick or name in QUICK]
    names = [name for name in bench.methods if any(part.lower() in name.lower() for part in parts)]
    if not names:
        raise SystemExit(f"no method is called like {' or '.join(parts)}; there are: {'; '.join(bench.methods)}")
    return names


def run(bench: Bench, wanted: Sequence[tuple[str, float]], fresh: bool) -> None:
    """Measure what is not kept, with a line per row and the time left."""
    left = [one for one in wanted if fresh or not bench.is_kept(*one)]
    rig = bench.rig
    print(f"{rig.config.name} on {machine(rig)['device']}: {len(left)} of {len(wanted)} rows to measure", flush=True)
    if not left:
        return
    began = time.monotonic()
    for n, job in enumerate([*rig.test, *rig.tuning]):
        bench.references.latent(job)
        print(f"\rfull runs: {n + 1} of {len(rig.test) + len(rig.tuning)}", end="", flush=True)
    print(f", {clock(time.monotonic() - began)}", flush=True)
    for line in _measured(bench, left, fresh):
        print(line, flush=True)


def _measured(bench: Bench, left: Sequence[tuple[str, float]], fresh: bool) -> Iterator[str]:
    efforts = [bench.effort(*one) for one in left]
    began = time.monotonic()
    for n, (name, speed) in enumerate(left):
        found = bench.row(name, speed, fresh)
        spent = time.monotonic() - began
        remaining = spent * sum(efforts[n + 1 :]) / sum(efforts[: n + 1])
        yield f"{n + 1:3d}/{len(left)}  {speed:>4g}x  {name:28s} {in_short(found):45s} about {clock(remaining)} left"


def in_short(found: measure.Row) -> str:
    if not found["setting"]:
        return "no setting within the budget"
    s = measure.summary(found)
    return f"{s['calls']:5.1f} model calls, PSNR {s['psnr']:5.1f} / {s['psnr_worst']:5.1f} dB"


def clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def write_results(bench: Bench, speeds: Sequence[float], folder: Path) -> None:
    """results.json, results.md, quality.png and ablation.png, of every row that is kept for these speeds."""
    rows, settings = bench.rows(speeds), bench.settings()
    content = {"settings": settings, "rows": rows}
    write(folder / "results.json", json.dumps(content, indent=1).encode())
    write(folder / "results.md", tables.report(rows, settings).encode())
    plots.quality(rows, bench.rig.steps, folder / "quality.png")
    plots.ablation(rows, folder / "ablation.png")
    print(tables.margins(rows))
    print(f"written: results.json, results.md, quality.png and ablation.png in {folder}")


def _sources(names: Sequence[str]) -> list[Path]:
    return [ROOT / "bench" / f"{name}.py" for name in names]
