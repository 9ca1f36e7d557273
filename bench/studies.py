"""What stands behind the promises of planned mode: ``python -m bench.studies``, or some of its studies by name.

predicted: the error that plans state beside what was measured. samplers: each at 2x beside half of its own steps.
profiles: one profile for other step counts beside a fresh one, and how many runs to record. check: prompts unlike the
profiled ones. parts: what no settings turns off. rough: every part of the method on variants of the model that are less
smooth. Results go to bench/output/studies.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ..erta import planner, problem
from ..erta.profile import Profile
from ..erta.settings import Settings
from ..erta.simulation import ErrorResponse
from . import plots
from .command import OUTPUT
from .config import Config, read_config
from .facts import machine
from .kept import write
from .ours import cached
from .quality import psnr
from .recording import record
from .rig import Job, Rig
from .subjects import load_model
from .tables import markdown

DETERMINISTIC = ("euler", "heun", "dpmpp_2m", "uni_pc", "res_multistep", "ipndm", "deis")
STOCHASTIC = ("euler_ancestral", "dpmpp_2m_sde", "er_sde")
SPEEDS = (1.5, 2.0, 2.5, 3.0)
SHORT = OUTPUT / "short.safetensors"


@dataclass(frozen=True)
class Outcome:
    """psnr, error: per prompt; error is that of the final latent, root mean square over the full run's. predicted:
    (median, worst) as the plan states it, () where it states none."""

    psnr: list[float]
    error: list[float]
    calls: float
    predicted: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{statistics.median(self.psnr):.1f} / {min(self.psnr):.1f}"


class Bed:
    """One rig with its full runs, and a profile when it is asked for."""

    def __init__(self, config: Config, prompts: int, model: Any = None, test: tuple[Job, ...] = ()) -> None:
        """model: in place of the config's. test: what is compared on, in place of the first prompts."""
        self.rig = Rig(config, prompts, model=model)
        self.rig.test = test or self.rig.test
        self._full = [self.rig.sample(self.rig.model, job).latent for job in self.rig.test]
        self._frames = [self.rig.subject.frames(latent) for latent in self._full]
        self._profile: Profile | None = None

    @property
    def profile(self) -> Profile:
        self._profile = self._profile or record(self.rig, "output")
        return self._profile

    def planned(self, settings: Settings, profile: Profile | None) -> Outcome:
        reports: list[Any] = []
        found = self._outcome(cached(self.rig.model, settings, profile, self.rig.config.scheduler, reports.append), 0)
        return replace(
            found, predicted=tuple(reports[0].predicted_error), notes=tuple(note.text for note in reports[0].notes)
        )

    def fewer_steps(self, steps: int) -> Outcome:
        return self._outcome(self.rig.model, steps)

    def _outcome(self, model: Any, steps: int) -> Outcome:
        rig = self.rig
        samples = [rig.sample(model, job, steps) for job in rig.test]
        return Outcome(
            [psnr(rig.subject.frames(s.latent), frames) for s, frames in zip(samples, self._frames, strict=True)],
            [self._error(s.latent, full) for s, full in zip(samples, self._full, strict=True)],
            statistics.mean(s.calls for s in samples),
        )

    def _error(self, latent: torch.Tensor, full: torch.Tensor) -> float:
        ours, theirs = self.rig.inner(latent).double(), self.rig.inner(full).double()
        return float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())


@dataclass(frozen=True)
class Line:
    """A line of a study's table. cells: as printed, by column. data: what JSON keeps."""

    cells: dict[str, str]
    data: dict[str, Any]


Study = Callable[[Config, int], Iterator[Line]]


def predicted(config: Config, prompts: int) -> Iterator[Line]:
    """Every pair of a plan and a prompt is a point; a plan has one prediction for all prompts."""
    for sampler in ("euler", "dpmpp_2m", "uni_pc"):
        for steps in (50, 20):
            bed = Bed(replace(config, sampler=sampler, steps=steps), prompts)
            for speed in SPEEDS:
                for name, chosen in (("default", {}), ("held", {"predictor": "hold", "corrector": False})):
                    found = bed.planned(Settings(speed, **chosen), bed.profile)
                    median = statistics.median(found.error)
                    yield Line(
                        {
                            "Sampler": sampler,
                            "Steps": str(steps),
                            "Speed": f"{speed:g}x",
                            "Plan": name,
                            "Predicted": " / ".join(f"{100 * p:.2f} %" for p in found.predicted),
                            "Measured": f"{100 * median:.2f} % / {100 * max(found.error):.2f} %",
                            "Ratio": f"{found.predicted[0] / median:.2f}",
                        },
                        {"sampler": sampler, "steps": steps, "speed": speed, "plan": name, **vars(found)},
                    )


def samplers(config: Config, prompts: int) -> Iterator[Line]:
    for sampler in (*DETERMINISTIC, *STOCHASTIC):
        bed = Bed(replace(config, sampler=sampler), prompts)
        fewer = bed.fewer_steps(config.steps // 2)
        default, builtin = bed.planned(Settings(), bed.profile), bed.planned(Settings(), None)
        yield Line(
            {
                "Sampler": sampler,
                "Half the steps": str(fewer),
                "Default, 2x": str(default),
                "Built-in plan, 2x": str(builtin),
                "Predicted error": " / ".join(f"{100 * p:.2f} %" for p in default.predicted),
                "Measured": f"{100 * statistics.median(default.error):.2f} % / {100 * max(default.error):.2f} %",
            },
            {"sampler": sampler, "fewer": vars(fewer), "default": vars(default), "builtin": vars(builtin)},
        )


def profiles(config: Config, prompts: int) -> Iterator[Line]:
    """The profile of the config's own steps on other step counts; and of 1, 4 and 16 runs."""
    own = Bed(config, prompts)
    for steps in (20, 30, 40, 60, 80):
        bed = Bed(replace(config, steps=steps), prompts)
        old, fresh = bed.planned(Settings(), own.profile), bed.planned(Settings(), bed.profile)
        yield _compared(f"{steps} steps", {f"profile of {config.steps} steps": old, "fresh profile": fresh})
    recorded = {n: record(Rig(replace(config, profile_runs=n), prompts), "output") for n in (1, 4, 16)}
    for speed in SPEEDS:
        found = {f"{n} runs": own.planned(Settings(speed), profile) for n, profile in recorded.items()}
        yield _compared(f"{speed:g}x", found)


def _compared(what: str, found: dict[str, Outcome]) -> Line:
    cells = {"What": what, "Compared": "; ".join(f"{name} {outcome}" for name, outcome in found.items())}
    return Line(cells, {"what": what, **{name: vars(outcome) for name, outcome in found.items()}})


PARTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "default": (True, {}),
    "line": (True, {"predictor": "linear"}),
    "held": (True, {"predictor": "hold"}),
    "no corrector": (True, {"corrector": False}),
    "held, no corrector": (True, {"predictor": "hold", "corrector": False}),
    "built-in plan": (False, {}),
}


def parts(config: Config, prompts: int) -> Iterator[Line]:
    """The default without one of what no settings can turn off."""

    def nothing(sigmas: np.ndarray) -> ErrorResponse:
        return ErrorResponse(np.zeros(len(sigmas)), np.zeros(len(sigmas)), np.eye(len(sigmas)))

    # What is put in the place of what, for each variant.
    variants: dict[str, tuple[Any, str, Any]] = {
        "default": (planner, "SHARES", planner.SHARES),
        "recorded runs alone": (planner, "SHARES", (0.0,)),
        "prior alone": (planner, "SHARES", (1.0,)),
        "other candidates never taken": (planner, "SHARES", planner.SHARES[:1]),
        "error response not assumed": (problem, "assumed_error_response", nothing),
    }
    for steps in (50, 20):
        bed = Bed(replace(config, steps=steps), prompts)
        for speed in SPEEDS:
            found = {}
            for name, (module, attribute, value) in variants.items():
                with patch.object(module, attribute, value):
                    found[name] = bed.planned(Settings(speed), bed.profile)
            cells = {"Steps": str(steps), "Speed": f"{speed:g}x", **{name: str(o) for name, o in found.items()}}
            yield Line(cells, {"steps": steps, "speed": speed, **{name: vars(o) for name, o in found.items()}})


def rough(config: Config, prompts: int) -> Iterator[Line]:
    variants: dict[str, tuple[Config, Any]] = {"as shipped": (config, None)}
    if SHORT.is_file():
        variants["trained a tenth as long"] = replace(config, model=str(SHORT)), None
    else:
        print(f"rough: without a shorter trained model; python -m demo.train --steps 800 --output {SHORT} makes one")
    variants |= {
        "weights in fp8": (config, rounded_weights(config, torch.float8_e4m3fn)),
        "computed in bf16": (replace(config, dtype="bfloat16"), None),
        **{f"shift {shift:g}": (replace(config, shift=shift), None) for shift in (3.0, 12.0)},
        **{f"guidance {scale:g}": (replace(config, guidance=scale), None) for scale in (1.0, 9.0)},
        **{f"{steps} steps": (replace(config, steps=steps), None) for steps in (20, 30)},
    }
    for name, (changed, model) in variants.items():
        bed = Bed(changed, prompts, model)
        for speed in (2.0, 3.0):
            found = {
                part: bed.planned(Settings(speed, **w), bed.profile if m else None) for part, (m, w) in PARTS.items()
            }
            cells = {"Variant": name, "Speed": f"{speed:g}x", **{part: str(o) for part, o in found.items()}}
            yield Line(cells, {"variant": name, "speed": speed, **{part: vars(o) for part, o in found.items()}})


def rounded_weights(config: Config, dtype: torch.dtype) -> Any:
    """The model with its weights rounded to a narrow type and back."""
    model = load_model(config)
    with torch.no_grad():
        for weight in model.model.diffusion_model.parameters():
            weight.copy_(weight.to(dtype).to(weight.dtype))
    return model


UNLIKE_SEED, UNLIKE = 700, 8


def check(config: Config, prompts: int) -> Iterator[Line]:
    """What the online check does for prompts that mean nothing, and costs on those that are like the profiled ones."""
    bed = Bed(config, prompts)
    strange = Bed(config, 2 * UNLIKE, test=unlike(bed.rig))
    for speed in SPEEDS:
        for name, where in (("test prompts", bed), ("random words, and mixtures of two prompts", strange)):
            off, on = (where.planned(Settings(speed, check=checked), bed.profile) for checked in (False, True))
            cells = {"Prompts": name, "Speed": f"{speed:g}x", "Unchecked": str(off), "Checked": str(on)}
            cells |= {"Model calls": f"{off.calls:.1f} → {on.calls:.1f}"}
            yield Line(cells, {"prompts": name, "speed": speed, "off": vars(off), "on": vars(on)})


def unlike(rig: Rig) -> tuple[Job, ...]:
    """Conditioning that no prompt gives: noise of the size of the encoded prompts, and the means of two of them."""
    encoded = [rig.subject.encode(prompt)[0][0] for prompt in rig.subject.prompts[: 2 * UNLIKE]]
    generator = torch.Generator().manual_seed(UNLIKE_SEED)
    noise = [torch.randn(e.shape, generator=generator) * e.std() for e in encoded[:UNLIKE]]
    mixed = [(one + other) / 2 for one, other in zip(encoded[::2], encoded[1::2], strict=True)]
    return tuple(Job(f"unlike {n}", [[e, {}]], UNLIKE_SEED + n) for n, e in enumerate([*noise, *mixed]))


STUDIES: dict[str, Study] = {
    "predicted": predicted,
    "samplers": samplers,
    "profiles": profiles,
    "check": check,
    "parts": parts,
    "rough": rough,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.studies", description=__doc__)
    parser.add_argument("studies", nargs="*", metavar="study", help=f"{', '.join(STUDIES)}; all without it")
    parser.add_argument("--config", default="tiny_wan", help="a name in bench/configs, or the path of a .toml file")
    parser.add_argument("--model", help="in place of the config's")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--output", type=Path, default=OUTPUT / "studies")
    args = parser.parse_args()
    unknown = [name for name in args.studies if name not in STUDIES]
    if unknown:
        raise SystemExit(f"no study is called {', '.join(unknown)}; there are: {', '.join(STUDIES)}")
    torch.set_grad_enabled(False)
    config = read_config(args.config)
    config = replace(config, model=args.model) if args.model else config
    for name in args.studies or STUDIES:
        lines = []
        for line in STUDIES[name](config, args.prompts):
            lines.append(line)
            print(f"{name}: " + ", ".join(f"{column} {cell}" for column, cell in line.cells.items()), flush=True)
        _write(name, lines, config, args.prompts, args.output)


def _write(name: str, lines: Sequence[Line], config: Config, prompts: int, folder: Path) -> None:
    columns = list(lines[0].cells)
    table = markdown([columns, *([line.cells[column] for column in columns] for line in lines)], left=2)
    about = f"{config.name}, {config.steps} steps and {config.sampler} where nothing else stands, {prompts} prompts. "
    unit = "PSNR in dB against the same sampler's full run, median / worst prompt."
    write(folder / f"{name}.md", f"{about}{unit}\n\n{table}\n".encode())
    content = {"prompts": prompts, "machine": machine(Rig(config, 1)), "lines": [line.data for line in lines]}
    write(folder / f"{name}.json", json.dumps(content, indent=1).encode())
    if name == "predicted":
        plots.predicted([line.data for line in lines], folder / "predicted.png")
