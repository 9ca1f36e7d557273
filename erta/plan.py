"""Plan: for every model call of one coming run, whether to compute or what to reuse, made before the first one.

A plan is complete by itself: its JSON travels in a workflow and renders the same where the profile was never seen.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from .response import MAX_CALLS
from .schedules import Schedule, histories
from .simulation import MAX_CORRECTION

FORMAT = "ertacache.plan"
VERSION = 1

# A plan of 1000 model calls with two terms each stays well below this.
MAX_CHARACTERS = 200_000

MODES = ("planned", "paper")
PREDICTORS = ("auto", "hold", "affine", "linear")


@dataclass(frozen=True)
class Settings:
    """What the artist asks for. Raising ``speed`` reuses more; everything else has a default that suits most runs.

    mode: planned, or paper (ERTACache as published). level: output or blocks. predictor: auto is the line in sigma with
    a fitted slope when planned, affine in paper mode. corrector: make up for a skipped interval's error at the model
    call that ends it (output level, planned). check: compute more where a run leaves what the profile lets expect
    (output level, planned). timesteps: the paper's sigma adjustment. threshold: the paper's lambda; 0 finds it from
    speed. protect_start and protect_end: model calls computed at either end. max_gap: most model calls from one
    computed to the next, 0 for twice the mean. preset, preset_steps: a published list of computed steps and the step
    count it is for, () for none.
    """

    speed: float = 2.0
    mode: str = "planned"
    level: str = "output"
    predictor: str = "auto"
    corrector: bool = True
    check: bool = True
    timesteps: bool = False
    threshold: float = 0.0
    protect_start: int = 1
    protect_end: int = 0
    longest_gap: int = 0
    preset: tuple[int, ...] = ()
    preset_steps: int = 0

    def __post_init__(self) -> None:
        _require(1.0 <= self.speed <= 100.0, "speed", self.speed, "a number from 1 to 100")
        _require(self.mode in MODES, "mode", self.mode, f"one of {', '.join(MODES)}")
        _require(self.level in ("output", "blocks"), "level", self.level, "output or blocks")
        _require(self.predictor in PREDICTORS, "predictor", self.predictor, f"one of {', '.join(PREDICTORS)}")
        _require(0.0 <= self.threshold <= 1e3, "threshold", self.threshold, "a number from 0 to 1000")
        for name in ("protect_start", "protect_end", "longest_gap", "preset_steps"):
            value = getattr(self, name)
            _require(type(value) is int and 0 <= value <= 1000, name, value, "a whole number from 0 to 1000")
        fits = all(0 <= step < self.preset_steps for step in self.preset) and len(self.preset) <= 1000
        _require(fits, "preset", self.preset, "steps below preset_steps")

    def choice(self, measured: bool, stochastic: bool) -> tuple[str, bool]:
        """(predictor, whether skipped intervals are corrected). "fitted" is the line with a share of its slope fitted
        to each skipped interval.

        Fresh noise bends the trajectory at random, and how much of a line is left there only a profile tells.
        """
        # At blocks level what would have been predicted at a computed model call is not known to the sampler.
        corrector = self.corrector and self.planned and self.level == "output"
        if self.predictor != "auto":
            return self.predictor, corrector
        if not self.planned:
            return ("affine" if measured else "hold"), False
        return ("fitted" if measured or not stochastic else "hold"), corrector

    @property
    def computes_all(self) -> bool:
        """Speed 1 and nothing else that would reuse: the run is left alone."""
        return self.speed <= 1.0 and not self.threshold and not self.preset

    @property
    def checks(self) -> bool:
        return self.check and self.planned and self.level == "output"

    @property
    def planned(self) -> bool:
        return self.mode == "planned"


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {str(value)[:40]!r}; it must be {remedy}")


@dataclass(frozen=True)
class Plan:
    """One run of M model calls, decided. All numbers are rounded to 9 digits when made, so JSON carries them exactly.

    sigmas: (M,) where each model call is expected. compute: (M,), True = computed. coefficients: (M,) of tuples;
    weights of the newest computed features, newest first; at a computed model call those of the prediction that it is
    compared with, () where there is none. offsets: (M,) added constants. corrections: (M,) u, 0 for none. misses: (M,)
    how far a computed feature is from its prediction, over its length, at most to be expected; 0: not checked. history
    resets: model calls from which on older features are not used. schedule: the adjusted sigmas to sample on, with the
    trailing one, () for the nominal ones. predicted_error: (median, worst) over recorded runs of the final latent's
    relative error, () where nothing was measured. profile and model: digests of what it was made for, or "". notes:
    what to tell.
    """

    settings: Settings
    sigmas: tuple[float, ...]
    compute: Schedule
    coefficients: tuple[tuple[float, ...], ...]
    offsets: tuple[float, ...]
    corrections: tuple[float, ...]
    residual_limits: tuple[float, ...]
    resets: tuple[int, ...] = (0,)
    schedule: tuple[float, ...] = ()
    predicted_error: tuple[float, ...] = ()
    profile: str = ""
    model: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def calls(self) -> int:
        return len(self.compute)

    @property
    def computed(self) -> int:
        return sum(self.compute)


def full_plan(sigmas: np.ndarray, settings: Settings, note: str = "") -> Plan:
    """Everything computed, with the reason why."""
    count = len(sigmas)
    nothing = (0.0,) * count
    return Plan(
        settings=settings,
        sigmas=rounded(sigmas),
        compute=(True,) * count,
        coefficients=((),) * count,
        offsets=nothing,
        corrections=nothing,
        residual_limits=nothing,
        notes=(note,) if note else (),
    )


class PlanError(ValueError):
    """A plan that came as JSON is not one; the message names the field."""


def plan_to_json(plan: Plan) -> str:
    """Compact JSON, 2 to 4 KB for 50 model calls. ``plan_from_json`` gives an equal plan back (without its notes)."""
    content = {"format": FORMAT, "version": VERSION, **asdict(plan)}
    del content["notes"]
    content["compute"] = "".join("1" if computed else "0" for computed in plan.compute)
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def plan_from_json(text: str) -> Plan:
    """Read a plan from a stranger's workflow. Every field is checked; raises PlanError and nothing else."""
    content = _object(text)
    _field(content.pop("format", None) == FORMAT, "format", f"must be {FORMAT!r}")
    version = content.pop("version", None)
    _field(type(version) is int and version == VERSION, "version", f"must be {VERSION}; update the pack")
    names = {f.name for f in fields(Plan)} - {"notes"}
    _field(set(content) == names, "fields", f"differ: {sorted(name[:40] for name in set(content) ^ names)[:5]}")
    compute = content["compute"]
    _field(isinstance(compute, str) and set(compute) <= {"0", "1"}, "compute", "must be a text of 0 and 1")
    count = len(compute)
    _field(1 <= count <= MAX_CALLS and compute[0] == "1", "compute", "must begin with 1, 1 to 1000 long")
    for name in ("profile", "model"):
        digest = isinstance(content[name], str) and re.fullmatch(r"(?:[0-9a-f]{64})?", content[name]) is not None
        _field(digest, name, "must be a digest or empty")
    schedule = _numbers(content, "schedule", (0, *range(2, MAX_CALLS + 2)), 0.0, 1e6)
    _field(all(a > b for a, b in itertools.pairwise(schedule)), "schedule", "must fall")
    resets = _numbers(content, "resets", range(1, count + 1), 0, count - 1)
    whole = all(isinstance(r, int) for r in resets) and resets[0] == 0 and sorted(set(resets)) == list(resets)
    _field(whole, "resets", "must be rising whole numbers from 0")
    plan = Plan(
        settings=_settings(content["settings"]),
        sigmas=_numbers(content, "sigmas", (count,), 1e-9, 1e6),
        compute=tuple(c == "1" for c in compute),
        coefficients=_coefficients(content["coefficients"], count),
        offsets=_numbers(content, "offsets", (count,), -1e10, 1e10),
        corrections=_numbers(content, "corrections", (count,), -1e3, 1e3),
        residual_limits=_numbers(content, "residual_limits", (count,), 0.0, 1e6),
        resets=tuple(int(r) for r in resets),
        schedule=schedule,
        predicted_error=_numbers(content, "predicted_error", (0, 2), 0.0, 1e6),
        profile=content["profile"],
        model=content["model"],
    )
    _check_history(plan)
    return plan


def _object(text: str) -> dict[str, Any]:
    _field(isinstance(text, str) and len(text) <= MAX_CHARACTERS, "plan", f"is longer than {MAX_CHARACTERS} characters")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _field(len({key for key, _ in pairs}) == len(pairs), "fields", "occur twice")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except PlanError:
        raise
    except (ValueError, RecursionError):
        raise PlanError("plan: is not JSON. Clear the plan field; it is filled again by the next run") from None
    _field(isinstance(content, dict), "plan", "must be a JSON object")
    return dict(content)


def _settings(value: Any) -> Settings:
    _field(isinstance(value, dict), "settings", "must be an object")
    kinds = {f.name: type(f.default) for f in fields(Settings)}
    _field(set(value) == set(kinds), "settings", "has other fields than this version knows")
    taken: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
    for name, kind in kinds.items():
        number = kind is float and isinstance(taken[name], int) and not isinstance(taken[name], bool)
        _field(type(taken[name]) is kind or number, f"settings.{name}", f"must be {kind.__name__}")
    _field(all(type(step) is int for step in taken["preset"]), "settings.preset", "must be whole numbers")
    try:
        return Settings(**taken)
    except ValueError as error:
        raise PlanError(f"settings: {error}") from None


def _numbers(content: dict[str, Any], name: str, lengths: Sequence[int], low: float, high: float) -> tuple[float, ...]:
    values = content[name]
    _field(isinstance(values, list) and len(values) in lengths, name, "has another length than the plan")
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _field(number and low <= value <= high, name, f"holds a value outside {low:g} to {high:g}")
    return tuple(values)


def _coefficients(values: Any, count: int) -> tuple[tuple[float, ...], ...]:
    _field(isinstance(values, list) and len(values) == count, "coefficients", "has another length than the plan")
    return tuple(_numbers({"coefficients": row}, "coefficients", range(4), -100.0, 100.0) for row in values)


def _check_history(plan: Plan) -> None:
    """Every prediction needs as many computed model calls before it as it has coefficients.

    And it is one that this pack makes: a line, or one scaled feature with an offset. Others would amplify at will.
    """
    for i, history in enumerate(histories(plan.compute, plan.resets)):
        terms, weights = len(plan.coefficients[i]), sum(plan.coefficients[i])
        needed = not plan.compute[i] or plan.corrections[i] != 0.0 or plan.residual_limits[i] > 0.0
        _field(terms <= len(history) and (terms > 0 or not needed), "coefficients", f"do not fit model call {i}")
        scaled = terms == 1 and plan.settings.choice(True, False)[0] == "affine"
        _field(
            not needed or scaled or abs(weights - 1.0) < 1e-6, "coefficients", f"of model call {i} do not add up to 1"
        )
        _field(not plan.offsets[i] or scaled, "offsets", f"must be 0 at model call {i}, which is on a line")
        most = MAX_CORRECTION * (i - history[0] - 1) * (1.0 + 1e-6) if history else 0.0
        _field(abs(plan.corrections[i]) <= most, "corrections", f"holds {plan.corrections[i]:g} for model call {i}")


def _field(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise PlanError(f"plan field {name}: {problem}. Clear the plan field; it is filled again by the next run")


def rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """To 9 digits: more than float32 arithmetic uses, and what JSON then carries without loss."""
    return tuple(float(f"{value:.9g}") for value in values)
