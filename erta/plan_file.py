"""A plan as JSON, for workflows. Whoever opens a stranger's workflow gets a plan that this pack could have made, or an
error that names the field."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from .plan import MOST_RESIDUAL, Part, Plan, drawn, predicted_calls, rounded, slopes_of
from .predictors import MAX_SCALE, Affine
from .response import MAX_CALLS
from .schedules import as_text
from .settings import Settings
from .simulation import MAX_CORRECTION, MAX_SLOPE
from .strict_json import is_number, read_object
from .timesteps import MIN_PHI, adjusted

FORMAT = "ertacache.plan"
VERSION = 3

# A plan of 1000 calls with two terms each stays well below this.
MAX_CHARACTERS = 200_000

# Of a nested latent; models have two.
MAX_PARTS = 8


class PlanError(ValueError):
    """A plan that came as JSON is not one; the message names the field."""


def plan_to_json(plan: Plan) -> str:
    """Compact JSON, 2 to 4 KB for 50 calls. ``plan_from_json`` gives an equal plan back (without its notes).

    It holds decisions and no coefficients: ``shares`` are the shares of the line's slope, or the scales of an affine
    prediction; the adjusted schedule follows from ``nominal`` and ``factors``.
    """
    content = {"format": FORMAT, "version": VERSION, **asdict(plan)}
    for name in ("notes", "coefficients", "schedule", *(() if plan.parts else ("parts",))):
        del content[name]
    shares = [c[0] if c else 0.0 for c in plan.coefficients] if _is_affine(plan.settings) else _slopes(plan)
    offsets = plan.offsets if any(plan.offsets) else ()
    content |= {"compute": as_text(plan.compute), "shares": shares, "offsets": offsets}
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def plan_from_json(text: str) -> Plan:
    """Read a plan from a stranger's workflow. Every field is checked; raises PlanError and nothing else."""
    content = _object(text)
    _field(content.pop("format", None) == FORMAT, "format", f"must be {FORMAT!r}")
    version = content.pop("version", None)
    made_by = f"it is {version!r:.12}, made by another version of the pack" if isinstance(version, int) else "is none"
    _field(type(version) is int and version == VERSION, "version", f"must be {VERSION}: {made_by}")
    content.setdefault("parts", [])
    names = {f.name for f in fields(Plan)} - {"notes", "coefficients", "schedule"} | {"shares"}
    _field(set(content) == names, "fields", f"differ: {sorted(name[:40] for name in set(content) ^ names)[:5]}")
    compute = content["compute"]
    _field(isinstance(compute, str) and set(compute) <= {"0", "1"}, "compute", "must be a text of 0 and 1")
    count = len(compute)
    _field(1 <= count <= MAX_CALLS and compute[0] == "1", "compute", f"must begin with 1, 1 to {MAX_CALLS} long")
    for name in ("profile", "model"):
        digest = isinstance(content[name], str) and re.fullmatch(r"(?:[0-9a-f]{64})?", content[name]) is not None
        _field(digest, name, "must be a digest or empty")
    settings = _settings(content["settings"])
    affine = _is_affine(settings)
    nominal = _numbers(content, "nominal", (0, *range(2, MAX_CALLS + 2)), 0.0, 1e6)
    plan = Plan(
        settings=settings,
        sigmas=_numbers(content, "sigmas", (count,), 1e-9, 1e6),
        compute=tuple(c == "1" for c in compute),
        coefficients=((),) * count,
        offsets=_numbers(content, "offsets", (0, count) if affine else (0,), -1.0, 1.0) or (0.0,) * count,
        corrections=_numbers(content, "corrections", (count,), -1e3, 1e3),
        residual_limits=_numbers(content, "residual_limits", (count,), 0.0, MOST_RESIDUAL),
        resets=_resets(content, count),
        predicted_error=_numbers(content, "predicted_error", (0, 2), 0.0, 1.0),
        parts=_parts(content["parts"], count),
        nominal=nominal,
        factors=_numbers(content, "factors", (0, len(nominal) - 1), MIN_PHI, 1.0),
        edges=_numbers(content, "edges", range(MAX_CALLS), 0.0, 1e6),
        impulse=_numbers(content, "impulse", (0, 3), -1e12, 1e12),
        guidance=_guidance(content["guidance"]),
        profile=content["profile"],
        model=content["model"],
    )
    return _check_calls(_with_predictions(plan, _numbers(content, "shares", (count,), 0.0, MAX_SCALE)))


def _is_affine(settings: Settings) -> bool:
    return settings.method(True, False)[0] is Affine


def _slopes(plan: Plan) -> tuple[float, ...]:
    return slopes_of(plan.sigmas, plan.compute, plan.resets, plan.coefficients)


def _with_predictions(plan: Plan, shares: tuple[float, ...]) -> Plan:
    """The plan with the coefficients and the schedule that follow from what it decides."""
    schedule = rounded(adjusted(plan.nominal, plan.factors)) if plan.factors else ()
    _field(all(a > b for a, b in itertools.pairwise(schedule)), "nominal", "must fall where there are factors")
    if not _is_affine(plan.settings):
        _field(max(shares) <= MAX_SLOPE, "shares", f"holds a slope above {MAX_SLOPE:g}")
        coefficients = drawn(plan.sigmas, plan.compute, plan.resets, tuple(float(f"{share:.6g}") for share in shares))
    else:
        called = {i for i, _ in predicted_calls(plan.compute, plan.resets)}
        coefficients = tuple((shares[i],) if i in called else () for i in range(plan.calls))
    return replace(plan, coefficients=coefficients, schedule=schedule)


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
        _field(is_number(value) and low <= value <= high, name, f"holds a value outside {low:g} to {high:g}")
    return tuple(values)


def _parts(value: Any, count: int) -> tuple[Part, ...]:
    _field(isinstance(value, list) and len(value) <= MAX_PARTS, "parts", f"must be a list of at most {MAX_PARTS}")
    names = {f.name for f in fields(Part)}
    _field(all(isinstance(one, dict) and set(one) == names for one in value), "parts", "must hold parts")
    errors = (_numbers(one, "predicted_error", (2,), 0.0, 1.0) for one in value)
    limits = (_numbers(one, "residual_limits", (count,), 0.0, MOST_RESIDUAL) for one in value)
    return tuple(map(Part, errors, limits))


def _guidance(value: Any) -> float | None:
    _field(value is None or (is_number(value) and abs(value) <= 1e6), "guidance", "must be a number or null")
    return None if value is None else float(value)


def _resets(content: dict[str, Any], count: int) -> tuple[int, ...]:
    resets = _numbers(content, "resets", range(1, count + 1), 0, count - 1)
    whole = all(isinstance(r, int) for r in resets) and resets[0] == 0 and sorted(set(resets)) == list(resets)
    _field(whole, "resets", "must be rising whole numbers from 0")
    return tuple(int(r) for r in resets)


def _check_calls(plan: Plan) -> Plan:
    """Reused calls have a computed one before them, corrections are those of a fit, and the settings have the check."""
    called = dict(predicted_calls(plan.compute, plan.resets))
    for i, computed in enumerate(plan.compute):
        history, correction, limit = called.get(i, ()), plan.corrections[i], plan.residual_limits[i]
        _field(computed or bool(history), "compute", f"reuses call {i}, which nothing was computed for")
        compared = computed and bool(history)
        most = MAX_CORRECTION * (i - history[0] - 1) * (1.0 + 1e-6) if compared else 0.0
        _field(abs(correction) <= most, "corrections", f"holds {correction:g} for call {i}")
        checked = compared and plan.settings.checks
        _field(
            all((one > 0.0) == checked for one in (limit, *(part.residual_limits[i] for part in plan.parts))),
            "residual_limits",
            f"of call {i} is {limit:g}: the settings decide on the check",
        )
    return plan


def _error(name: str, problem: str) -> PlanError:
    return PlanError(f"plan field {name}: {problem}. A new one is made")


def _field(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise _error(name, problem)
