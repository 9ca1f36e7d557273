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
    """Of one rig. Every measurement is made on the profiling prompts, on which nothing is compared."""

    def __init__(self, rig: Rig, rivals: Kept, ours: Kept) -> None:
        self.rig = rig
        self._rivals, self._ours = rivals, ours
        self._profiles: dict[str, Profile] = {}

    def profile(self, level: str) -> Profile:
        """Ours, of all profiling prompts, recorded at a level."""
        if level not in self._profiles:
            data = self._ours.bytes(f"profile-{level}", lambda: to_bytes(record(self.rig, level)))
            self._profiles[level] = from_bytes(data)
        return self._profiles[level]

    @functools.cached_property
    def ratios(self) -> list[float]:
        """MagCache's, from one run as published."""
        rig = self.rig
        made: list[float] = self._rivals.json("magcache", lambda: magnitudes.measure_ratios(rig, rig.profiling[0]))
        return made

    @functools.cached_property
    def distances(self) -> list[float]:
        """TeaCache's, from all profiling prompts."""

        def measure() -> list[float]:
            changes = embeddings.measure_changes(self.rig, self.rig.profiling)
            made: list[float] = np.round(embeddings.rescaled(changes), 12).tolist()
            return made

        found: list[float] = self._rivals.json("teacache", measure)
        return found
