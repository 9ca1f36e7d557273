"""Plans of many settings, as they were when the corpus was written: a change of structure must not change a plan.

The inputs lie in corpus/: two profiles of the demo's tiny Wan (20 Euler steps; output level, 4 runs with their error
response, and blocks level, 2 runs of 2 streams) and the impulse responses of ComfyUI's samplers on the same sigmas.
Where a plan is meant to change, write the corpus anew and state the difference in the commit:

    ERTA_WRITE_CORPUS=1 python -P -m pytest tests/core/test_corpus.py

On the machine that wrote it all numbers come back to the bit; the test allows for other libraries of linear algebra.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ertacache.erta.plan import Plan
from ertacache.erta.planner import error_curve, euler_response, solve
from ertacache.erta.problem import Problem
from ertacache.erta.profile import Profile
from ertacache.erta.profile_file import from_bytes
from ertacache.erta.response import ImpulseResponse
from ertacache.erta.settings import Settings
from ertacache.tests.core.made import flow

FOLDER = Path(__file__).parent / "corpus"
RESULTS = FOLDER / "plans.json"
STOCHASTIC = ("euler_ancestral", "res_multistep")

LEMICA_20 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 20, 26, 33, 40, 45, 48, 49)


@dataclass(frozen=True)
class Case:
    """profile: see ``profile_named``; "" for none. run: see ``run_named``. curve: the error curve is kept too."""

    profile: str
    run: str
    settings: dict[str, Any] = field(default_factory=dict)
    edges: tuple[float, ...] = ()
    curve: bool = False

    @property
    def name(self) -> str:
        chosen = " ".join(f"{name}={value}" for name, value in self.settings.items() if name != "preset")
        preset = "preset" if "preset" in self.settings else ""
        edges = f"edges={self.edges}" if self.edges else ""
        return ", ".join(filter(None, [self.profile or "no profile", self.run, chosen, preset, edges]))


@functools.cache
def profile_named(name: str) -> Profile | None:
    """ "four runs", "one run", "one run, no error response", "blocks"."""
    if not name:
        return None
    profile = from_bytes((FOLDER / f"{'blocks' if name == 'blocks' else 'output'}.safetensors").read_bytes())
    if not name.startswith("one run"):
        return profile
    table = profile.tables[0]
    if name.endswith("no error response"):
        table = replace(table, gain=np.zeros(20), deviation=np.zeros(20))
    return Profile(profile.measured, (table,))


@functools.cache
def stored() -> dict[str, np.ndarray]:
    return load_file(FOLDER / "responses.safetensors")


def run_named(name: str) -> tuple[np.ndarray, Any]:
    """(schedule, response on any schedule): "euler 50 shift 8", or a stored sampler on the recorded 20 steps."""
    words = name.split()
    if len(words) > 1:
        return flow(int(words[1]), float(words[3])), euler_response
    if name == "euler":
        return stored()["schedule 20"], euler_response
    matrix, sigmas = stored()[f"{name} 20 response"], stored()[f"{name} 20 sigmas"]
    return stored()["schedule 20"], lambda schedule: ImpulseResponse(sigmas, matrix, name in STOCHASTIC)


SAMPLERS = ("dpmpp_2m", "uni_pc", "heun", "lms", *STOCHASTIC)
PAPER = {"mode": "paper"}
UNCORRECTED = {"corrector": False, "speed": 3.0}
FEW = {"protect_start": 3, "protect_end": 2}
PRESET = {"preset": LEMICA_20, "preset_steps": 50}

CASES = [
    *(
        Case(profile, "euler", {"speed": speed})
        for profile in ("four runs", "one run", "")
        for speed in (1.5, 2.0, 3.0)
    ),
    *(Case("four runs", "euler", {"speed": speed}) for speed in (1.0, 1.25, 4.0, 8.0, 40.0)),
    Case("four runs", "euler", curve=True),
    *(Case("one run, no error response", "euler", {"speed": s}, curve=s == 2.0) for s in (1.5, 2.0, 3.0)),
    *(Case("four runs", sampler, {"speed": 2.0}, curve=sampler == "uni_pc") for sampler in SAMPLERS),
    *(Case("", sampler, {"speed": 2.0}) for sampler in SAMPLERS),
    *(Case("four runs", f"euler {n} shift 8", {"speed": 2.0}, curve=n == 50) for n in (6, 8, 13, 30, 50)),
    *(Case("", f"euler {n} shift 0.8", {"speed": 2.0}) for n in (5, 6, 50)),
    Case("one run", "euler 50 shift 3", {"speed": 2.5}),
    Case("one run, no error response", "euler 30 shift 12", {"speed": 1.5}),
    *(Case("four runs", "euler", {"predictor": p}) for p in ("hold", "linear", "affine")),
    *(Case("four runs", "euler", {**UNCORRECTED, "predictor": p}) for p in ("hold", "linear", "auto")),
    Case("", "euler", {"predictor": "affine"}),
    Case("four runs", "euler", {"check": False}),
    Case("four runs", "euler", {"timesteps": True}, curve=True),
    Case("four runs", "euler", FEW),
    Case("", "euler", {**FEW, "speed": 4.0}),
    Case("four runs", "euler 50 shift 8", {"speed": 3.0}),
    Case("four runs", "euler 50 shift 8", PRESET),
    Case("", "euler", PRESET),
    Case("four runs", "euler", {}, edges=(0.9, 0.5)),
    Case("", "euler 50 shift 8", {"speed": 3.0}, edges=(0.95, 0.8, 0.3)),
    Case("one run", "heun", {}, edges=(0.7,)),
    Case("four runs", "euler", PAPER),
    Case("four runs", "euler", {**PAPER, "speed": 3.0, "timesteps": True}),
    Case("four runs", "euler", {**PAPER, "timesteps": True}, edges=(0.9, 0.5)),
    Case("four runs", "euler", {**PAPER, "threshold": 0.1, "predictor": "hold"}),
    Case("one run", "euler 50 shift 8", {**PAPER, "threshold": 0.3}),
    Case("", "euler", {**PAPER, "timesteps": True}),
    Case("blocks", "euler", {"level": "blocks"}, curve=True),
    Case("blocks", "euler", {"level": "blocks", **PAPER, "timesteps": True}),
    Case("blocks", "euler 50 shift 8", {"level": "blocks", "speed": 3.0}),
    Case("", "euler", {"level": "blocks"}),
]


def found(case: Case) -> dict[str, Any]:
    """The plan's numbers under names of the corpus's own, and the curve's points."""
    schedule, respond = run_named(case.run)
    profile, settings = profile_named(case.profile), Settings(**case.settings)
    plan = solve(Problem(schedule, respond, profile, case.edges), settings)
    result = numbers(plan)
    if case.curve and profile is not None:
        points = error_curve(Problem(schedule, respond, profile, case.edges), settings)
        result["curve"] = [[p.speed, p.computed, p.of, p.median, p.worst, p.compute] for p in points]
    return result


def numbers(plan: Plan) -> dict[str, Any]:
    return {
        "sigmas": list(plan.sigmas),
        "compute": "".join("01"[computed] for computed in plan.compute),
        "coefficients": [list(c) for c in plan.coefficients],
        "offsets": list(plan.offsets),
        "corrections": list(plan.corrections),
        "residuals": list(plan.residual_limits),
        "resets": list(plan.resets),
        "schedule": list(plan.schedule),
        "predicted error": list(plan.predicted_error),
        "notes": len(plan.notes),
    }


def flat(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in flat(part)] if isinstance(value, list) else [value]


def test_every_case_has_a_name_of_its_own() -> None:
    names = {case.name for case in CASES}
    assert len(names) >= 60
    if os.environ.get("ERTA_WRITE_CORPUS"):
        lines = ",\n".join(f"{json.dumps(c.name)}: {json.dumps(found(c))}" for c in {c.name: c for c in CASES}.values())
        RESULTS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    assert names == set(json.loads(RESULTS.read_text(encoding="utf-8")))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_plan_is_what_it_was(case: Case) -> None:
    expected, now = json.loads(RESULTS.read_text(encoding="utf-8"))[case.name], found(case)
    assert set(now) == set(expected)
    for name, values in expected.items():
        if isinstance(values, list):
            was, is_ = flat(values), flat(now[name])
            assert len(was) == len(is_), name
            assert all(a == b or a == pytest.approx(b, rel=1e-5, abs=1e-8) for a, b in zip(was, is_, strict=True)), name
        else:
            assert now[name] == values, name
