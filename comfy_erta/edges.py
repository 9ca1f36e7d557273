"""Sigmas at which conditioning or guidance starts or ends, so that something else is combined from there on."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .describing import kept_by

_PERCENTS = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent")

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
