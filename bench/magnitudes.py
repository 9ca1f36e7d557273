"""MagCache: reuse the block stack's residual while the ratio of its magnitudes stays near one.

Written from the paper's formulas: calibrate with one full run, accumulate |1 - product of ratios|, at most K reuses in
a row, nothing reused in the first fifth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..comfy_erta.run import attach
from ..comfy_erta.task import Context, OnReport, Start
from ..erta.schedules import Schedule
from .rig import Job, Rig

RETAINED = 0.2


def measure_ratios(rig: Rig, job: Job, stage: int = 0) -> list[float]:
    """(N,) gamma_i = mean over tokens of |r_i| / |r_{i-1}|, mean over cond and uncond; the first is 1."""
    watching = Magnitudes()
    rig.sample(rig.only(stage, attach(rig.model, Watching(watching))), job)
    return [1.0, *np.mean(list(watching.ratios.values()), axis=0).tolist()]


@dataclass
class Magnitudes:
    """An observer of the pack's session that lets everything be computed. ratios: by cond."""

    ratios: dict[str, list[float]] = field(default_factory=dict)
    cache_bytes: int = 0
    notes: tuple[str, ...] = ()
    _norms: dict[str, torch.Tensor] = field(default_factory=dict)

    def predict(self, i: int, key: str) -> None:
        return None

    def observe(self, i: int, key: str, feature: torch.Tensor) -> torch.Tensor:
        norm = feature.float().norm(dim=-1)  # (B, tokens)
        if key in self._norms:
            self.ratios.setdefault(key, []).append(float((norm / self._norms[key]).mean()))
        self._norms[key] = norm
        return feature

    def close(self) -> None:
        self._norms.clear()


@dataclass(frozen=True)
class Watching:
    """A task of the pack's session: let a full run be observed at the block stack."""

    observer: Any
    on_report: OnReport = lambda report: None

    def begin(self, context: Context) -> Start:
        return Start(self.observer, "blocks", tuple(context.respond(context.schedule).sigmas))


def magcache_schedule(ratios: Sequence[float], threshold: float, most: int, retained: float = RETAINED) -> Schedule:
    """The paper's rule: from ``retained`` of the run on, reuse while the accumulated error is below the threshold and
    no more than ``most`` in a row are reused (its K)."""
    compute = []
    product, error, run = 1.0, 0.0, 0
    for i, ratio in enumerate(ratios):
        reuse = False
        if i >= int(len(ratios) * retained):
            product *= ratio
            run += 1
            error += abs(1.0 - product)
            reuse = i > 0 and error < threshold and run <= most
        if not reuse:
            product, error, run = 1.0, 0.0, 0
        compute.append(not reuse)
    return tuple(compute)


def schedules(ratios: Sequence[float], budget: int) -> list[tuple[float, int, Schedule]]:
    """(threshold, K, schedule): for each K the one nearest to the budget from below, smallest threshold first."""
    found: dict[Schedule, tuple[float, int, Schedule]] = {}
    for most in range(1, 11):
        tried = [(magcache_schedule(ratios, t, most), float(t)) for t in np.geomspace(1e-4, 10.0, 400)]
        fitting = [(sum(compute), -threshold, compute) for compute, threshold in tried if sum(compute) <= budget]
        if fitting:
            _, threshold, compute = max(fitting)
            found.setdefault(compute, (-threshold, most, compute))
    best = max((sum(compute) for compute in found), default=0)
    return [one for one in found.values() if sum(one[2]) >= best - 1]
