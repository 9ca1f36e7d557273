"""Sigmas at which conditioning starts or ends, so that guidance combines something else from there on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_PERCENTS = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent")


def conditioning_edges(
    conds: dict[str, list[dict[str, Any]]], sampling: Any, schedule: np.ndarray
) -> tuple[float, ...]:
    """Edges inside the schedule's range: of the conds' own ranges, their ControlNets and their hooks' keyframes.

    conds: the guider's, by role. sampling: the model's model_sampling, which knows percent_to_sigma.
    """
    percents = {p for role in conds.values() for cond in role for p in _percents(cond)}
    sigmas = {float(sampling.percent_to_sigma(p)) for p in percents}
    low, high = float(schedule.min()), float(schedule.max()) * (1.0 - 1e-6)
    return tuple(sorted(s for s in sigmas if low < s < high))


def _percents(cond: dict[str, Any]) -> Iterator[float]:
    yield from (cond[name] for name in _PERCENTS if name in cond)
    control = cond.get("control")
    while control is not None:
        yield from control.timestep_percent_range
        control = control.previous_controlnet
    hooks = cond.get("hooks")
    for hook in () if hooks is None else hooks.hooks:
        yield from (keyframe.start_percent for keyframe in hook.hook_keyframe.keyframes)
