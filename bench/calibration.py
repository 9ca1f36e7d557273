"""What methods measure on the model at hand before they render: made when first asked for, kept on disk."""

from __future__ import annotations

import functools

import numpy as np

from ..erta.profile import Profile
from ..erta.profile_file import from_bytes, to_bytes
from . import embeddings, magnitudes
from .kept import Kept
from .recording import record
from .rig import Rig


class Calibration:
    """Of one stage of a rig. All is measured on the profiling prompts, on which nothing is compared."""

    def __init__(self, rig: Rig, rivals: Kept, ours: Kept, stage: int = 0) -> None:
        self.rig = rig
        self.stage = stage
        self._rivals, self._ours = rivals, ours
        self._profiles: dict[str, Profile] = {}
        self._others: dict[int, Calibration] = {}

    def of_stage(self, stage: int) -> Calibration:
        """The same for another stage."""
        if stage == self.stage:
            return self
        return self._others.setdefault(stage, Calibration(self.rig, self._rivals, self._ours, stage))

    def _name(self, what: str) -> str:
        return f"{what}-stage-{self.stage}" if self.stage else what

    def profile(self, level: str) -> Profile:
        """Ours, of all profiling prompts, recorded at a level."""
        if level not in self._profiles:
            data = self._ours.bytes(
                self._name(f"profile-{level}"), lambda: to_bytes(record(self.rig, level, self.stage))
            )
            self._profiles[level] = from_bytes(data)
        return self._profiles[level]

    @functools.cached_property
    def ratios(self) -> list[float]:
        """MagCache's, from one run as published."""

        def measure() -> list[float]:
            return magnitudes.measure_ratios(self.rig, self.rig.profiling[0], self.stage)

        found: list[float] = self._rivals.json(self._name("magcache"), measure)
        return found

    @functools.cached_property
    def distances(self) -> list[float]:
        """TeaCache's, from all profiling prompts."""

        def measure() -> list[float]:
            changes = embeddings.measure_changes(self.rig, self.rig.profiling, self.stage)
            made: list[float] = np.round(embeddings.rescaled(changes), 12).tolist()
            return made

        found: list[float] = self._rivals.json(self._name("teacache"), measure)
        return found
