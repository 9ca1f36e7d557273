"""Sigmas at which conditioning or guidance starts or ends, so that something else is combined from there on."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .describing import kept_by, plain_attributes

_PERCENTS = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent")

# Words in names of a guider's numbers from 0 to 1 that are the start or the end of a range.
_RANGES = frozenset({"percent", "pct", "start", "end"})

# Options are dicts and lists within each other, some levels of them.
_DEEPEST = 6


def conditioning_edges(
    conds: dict[str, list[dict[str, Any]]], sampling: Any, schedule: np.ndarray
) -> tuple[float, ...]:
    """Edges inside the schedule's range: of the conds' own ranges, their ControlNets and their hooks' keyframes.

    conds: the guider's, by role. sampling: the model's model_sampling, which knows percent_to_sigma.
    """
    percents = {p for role in conds.values() for cond in role for p in _percents(cond)}
    return _inside({float(sampling.percent_to_sigma(p)) for p in percents}, schedule)


def guidance_edges(model_options: dict[str, Any], schedule: np.ndarray) -> tuple[float, ...]:
    """Edges inside the schedule's range that functions in a model's options keep.

    Skip layer guidance and its like take a range in percent and keep it as sigmas, in a closure or on an object, and
    declare it nowhere. So every number there whose name contains "sigma" counts as an edge. A false one costs a
    computed model call.
    """
    named = (pair for function in _callables(model_options, _DEEPEST) for pair in kept_by(function))
    return _inside({value for name, value in named if isinstance(value, float) and "sigma" in name}, schedule)


def guider_edges(guider: Any, sampling: Any, schedule: np.ndarray) -> tuple[float, ...]:
    """Edges inside the schedule's range that a guider keeps itself, in numbers that its names tell.

    A range in percent may be one of the steps or one of the sampling: both count. Of a scale for each step the jumps
    do. A false edge costs a computed model call.
    """
    steps, found = len(schedule) - 1, set()
    for name, value in plain_attributes(guider).items():
        if "sigma" in name and isinstance(value, float):
            found.add(value)
        elif _is_percent(name, value):
            found.add(float(sampling.percent_to_sigma(value)))
            found |= {_before(schedule, i) for i in (math.ceil(value * steps), math.floor(value * steps) + 1)}
        else:
            found |= {_before(schedule, i) for i in _jumps(value, steps)}
    return _inside(found, schedule)


def _is_percent(name: str, value: Any) -> bool:
    """Whether it is a bound of a range; one that lies at an end of the run is none."""
    words = set(name.lower().split("_"))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return bool(words & _RANGES) and number and (0.0 < value < 1.0 or (value == 0.0 and "end" in words))


def _before(schedule: np.ndarray, i: int) -> float:
    """A sigma between step i and the one before it."""
    i = min(max(i, 1), len(schedule) - 1)
    return float(schedule[i - 1] + schedule[i]) / 2.0


def _jumps(value: Any, steps: int) -> np.ndarray:
    """The steps at which a list of one number for each changes by much more than it usually does."""
    numbers = value.detach().cpu().tolist() if isinstance(value, torch.Tensor) and value.ndim == 1 else value
    each = isinstance(numbers, list | tuple) and len(numbers) in (steps, steps + 1)
    if not each or not all(isinstance(number, int | float) and abs(number) < 1e6 for number in numbers):
        return np.empty(0, dtype=int)
    changes = np.abs(np.diff(np.array(numbers[:steps], dtype=float)))
    return np.flatnonzero(changes > 3.0 * np.median(changes) + 1e-6) + 1


def _inside(sigmas: set[float], schedule: np.ndarray) -> tuple[float, ...]:
    low, high = float(schedule.min()), float(schedule.max()) * (1.0 - 1e-6)
    return tuple(sorted(s for s in sigmas if low < s < high))


def _callables(options: Any, depth: int) -> Iterator[Any]:
    if isinstance(options, (dict, list, tuple)):
        for value in options.values() if isinstance(options, dict) else options:
            yield from _callables(value, depth - 1) if depth else ()
    elif callable(options):
        yield options


def _percents(cond: dict[str, Any]) -> Iterator[float]:
    yield from (cond[name] for name in _PERCENTS if name in cond)
    control = cond.get("control")
    while control is not None:
        yield from control.timestep_percent_range
        control = control.previous_controlnet
    hooks = cond.get("hooks")
    for hook in () if hooks is None else hooks.hooks:
        yield from (keyframe.start_percent for keyframe in hook.hook_keyframe.keyframes)
