"""A profile of a rig's profiling prompts, as ERTA Profile would measure it."""

from __future__ import annotations

from typing import Any

from ..comfy_erta.measuring import measure_profile
from ..erta.profile import Profile
from .rig import Rig


def record(rig: Rig, level: str) -> Profile:
    def render(model: Any, run: int) -> None:
        rig.sample(model, rig.profiling[run])

    return measure_profile(rig.model, render, len(rig.profiling), level, rig.config.scheduler, lambda report: None)
