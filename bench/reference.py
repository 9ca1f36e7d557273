"""Full runs, rendered once per job and sampler and kept on disk."""

from __future__ import annotations

import functools

import numpy as np
import torch

from .kept import Kept
from .rig import Job, Rig


class References:
    def __init__(self, rig: Rig, kept: Kept) -> None:
        self.rig = rig
        self.kept = kept
        # A clip at 480p is 0.4 GB: few of those at once, and many of the tiny ones.
        most = 128 if rig.config.tiny else 2
        self._decoded = functools.lru_cache(maxsize=most)(self._decode)

    def latent(self, job: Job, sampler: str = "") -> torch.Tensor:
        """(1, C, T, h, w) as the sampler gave it."""
        sampler = sampler or self.rig.config.sampler

        def render() -> torch.Tensor:
            return self.rig.sample(self.rig.model, job, sampler=sampler).latent

        return self.kept.tensor(f"full {sampler} {job.key}", render)

    def frames(self, job: Job, sampler: str = "") -> np.ndarray:
        """(F, H, W, 3) float32 in [0, 1]."""
        return self._decoded(job.key, sampler)

    def _decode(self, key: str, sampler: str) -> np.ndarray:
        job = next(job for job in (*self.rig.test, *self.rig.tuning) if job.key == key)
        return self.rig.subject.frames(self.latent(job, sampler))
