"""A plan as JSON, for workflows. Whoever opens a stranger's workflow gets a plan that this pack could have made, or an
error that names the field."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from .plan import Plan
from .predictors import Prediction
from .response import MAX_CALLS
from .schedules import as_text, histories
from .settings import Settings
from .simulation import MAX_CORRECTION
from .strict_json import read_object

FORMAT = "ertacache.plan"
VERSION = 2

# A plan of 1000 calls with two terms each stays well below this.
MAX_CHARACTERS = 200_000


class PlanError(ValueError):
    """A plan that came as JSON is not one; the message names the field."""


def plan_to_json(plan: Plan) -> str:
    """Compact JSON, 2 to 4 KB for 50 calls. ``plan_from_json`` gives an equal plan back (without its notes)."""
    content = {"format": FORMAT, "version": VERSION, **asdict(plan)}
    del content["notes"]
    content["compute"] = as_text(plan.compute)
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def plan_from_json(text: str) -> Plan:
    """Read a plan from a stranger's workflow. Every field is checked; raises PlanError and nothing else."""
    content = _object(text)
    _field(content.pop("format", None) == FORMAT, "format", f"must be {FORMAT!r}")
    version = content.pop("version", None)
    made_by = f"it is {version!r:.12}, made by another version of the pack" if isinstance(version, int) else "is none"
    _field(type(version) is int and version == VERSION, "version", f"must be {VERSION}: {made_by}")
    names = {f.name for f in fields(Plan)} - {"notes"}
    _field(set(content) == names, "fields", f"differ: {sorted(name[:40] for name in set(content) ^ names)[:5]}")
    compute = content["compute"]
    _field(isinstance(compute, str) and set(compute) <= {"0", "1"}, "compute", "must be a text of 0 and 1")
    count = len(compute)
    _field(1 <= count <= MAX_CALLS and compute[0] == "1", "compute", f"must begin with 1, 1 to {MAX_CALLS} long")
    for name in ("profile", "model"):
        digest = isinstance(content[name], str) and re.fullmatch(r"(?:[0-9a-f]{64})?", content[name]) is not None
        _field(digest, name, "must be a digest or empty")
    plan = Plan(
        settings=_settings(content["settings"]),
        sigmas=_numbers(content, "sigmas", (count,), 1e-9, 1e6),
        compute=tuple(c == "1" for c in compute),
        coefficients=_coefficients(content["coefficients"], count),
        offsets=_numbers(content, "offsets", (count,), -1e10, 1e10),
        corrections=_numbers(content, "corrections", (count,), -1e3, 1e3),
        residual_limits=_numbers(content, "residual_limits", (count,), 0.0, 1e6),
        resets=_resets(content, count),
        schedule=_schedule(content),
        predicted_error=_numbers(content, "predicted_error", (0, 2), 0.0, 1e6),
        profile=content["profile"],
        model=content["model"],
    )
    _check_predictions(plan)
    return plan


def _object(text: str) -> dict[str, Any]:
    _field(isinstance(text, str) and len(text) <= MAX_CHARACTERS, "plan", f"is longer than {MAX_CHARACTERS} characters")
    try:
        return read_object(text)
    except ValueError as error:
        raise _error("plan", f"is not JSON of a plan ({str(error)[:60]})") from None


def _settings(value: Any) -> Settings:
    _field(isinstance(value, dict), "settings", "must be an object")
    known = {f.name for f in fields(Settings)}
    _field(set(value) == known, "settings", "has other fields than this version knows")
    taken: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
    try:
        return Settings(**taken)
    except ValueError as error:
        raise _error("settings", str(error)) from None


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


def _resets(content: dict[str, Any], count: int) -> tuple[int, ...]:
    resets = _numbers(content, "resets", range(1, count + 1), 0, count - 1)
    whole = all(isinstance(r, int) for r in resets) and resets[0] == 0 and sorted(set(resets)) == list(resets)
    _field(whole, "resets", "must be rising whole numbers from 0")
    return tuple(int(r) for r in resets)


def _schedule(content: dict[str, Any]) -> tuple[float, ...]:
    schedule = _numbers(content, "schedule", (0, *range(2, MAX_CALLS + 2)), 0.0, 1e6)
    _field(all(a > b for a, b in itertools.pairwise(schedule)), "schedule", "must fall")
    return schedule


def _check_predictions(plan: Plan) -> None:
    """Every prediction has as many computed calls before it as it has coefficients, and its predictor allows it."""
    predictor, _ = plan.settings.method(True, False)
    for i, history in enumerate(histories(plan.compute, plan.resets)):
        prediction = Prediction(plan.coefficients[i], plan.offsets[i])
        terms = len(prediction.coefficients)
        needed = not plan.compute[i] or plan.corrections[i] != 0.0 or plan.residual_limits[i] > 0.0
        _field(terms <= len(history) and (terms > 0 or not needed), "coefficients", f"do not fit call {i}")
        allowed = predictor.allows(prediction) if terms else not prediction.offset
        _field(allowed, "coefficients", f"of call {i} do not add up to 1, or have an offset")
        most = MAX_CORRECTION * (i - history[0] - 1) * (1.0 + 1e-6) if history else 0.0
        _field(abs(plan.corrections[i]) <= most, "corrections", f"holds {plan.corrections[i]:g} for call {i}")


def _error(name: str, problem: str) -> PlanError:
    return PlanError(f"plan field {name}: {problem}. Clear the plan field; it is filled again by the next run")


def _field(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise _error(name, problem)
