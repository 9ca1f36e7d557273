"""Profiles of a rig's profiling prompts, as ERTA Profile measures them and as a first run without a profile does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..comfy_erta.measuring import measure_profile
from ..erta.profile import Profile
from .rig import Rig


def record(rig: Rig, level: str, stage: int = 0) -> Profile:
    """All profiling prompts, recorded at a level of a stage."""

    def render(model: Any, run: int) -> None:
        rig.sample(rig.only(stage, model), rig.profiling[run])

    return measure_profile(rig.model, render, len(rig.profiling), level, rig.config.scheduler, lambda report: None)


def self_recorded(profile: Profile) -> Profile:
    """What the pack would have recorded by itself: the first run alone, without a measured error response."""
    first = [table for table in profile.tables if table.run == profile.tables[0].run]
    nothing = np.zeros(profile.calls)
    unmeasured = (replace(table, gain=nothing, deviation=nothing, calibration=1.0) for table in first)
    return replace(profile, tables=tuple(unmeasured))
