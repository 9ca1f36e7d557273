"""Perturbed run: an observer of a cached run that measures how the model answers to errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .plan import Plan
from .profile import Table
from .recorder import sampled
from .replay import Replay
from .response import ImpulseResponse


class PerturbedRun:
    """Follows a plan through a second run of what a Recorder saw, and measures how the model answers to errors.

    features: what the Recorder kept; each is let go when the run has passed it. plan: some are reused in it.
    """

    def __init__(self, plan: Plan, response: ImpulseResponse, features: dict[str, dict[int, Tensor]]) -> None:
        self._replay = Replay(plan)
        self._response = response
        self._features = features
        self._off: dict[str, list[Tensor]] = {}
        self._answers: dict[str, list[tuple[int, float, float]]] = {key: [] for key in features}

    def predict(self, i: int, key: str) -> Tensor | None:
        predicted = self._replay.predict(i, key)
        if predicted is not None:
            self._note(i, key, predicted)
        return predicted

    def observe(self, i: int, key: str, feature: Tensor) -> Tensor:
        used = self._replay.observe(i, key, feature)
        change, off = self._missed(i, key, feature), self._off.get(key, [])
        if change is not None and len(off) == i:
            self._answer(i, key, change, off)
        self._note(i, key, used)
        return used

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self._replay.close()
        self._features, self._off = {}, {}

    @property
    def cache_bytes(self) -> int:
        return self._replay.cache_bytes

    def measured(self, tables: tuple[Table, ...]) -> tuple[Table, ...]:
        """The run's tables with gain and spread; as they are where the run told nothing.

        At a position error delta the output changes by ``gain delta`` plus something across it of the mean square
        ``deviation^2 |delta|^2``; between the model calls at which both are known they are interpolated.
        """
        return tuple(self._with(table, found) for table, found in zip(tables, self._answers.values(), strict=True))

    def _with(self, table: Table, found: list[tuple[int, float, float]]) -> Table:
        if not found:
            return table
        places, gains, sizes = np.array(found).T
        every = np.arange(table.sigmas.size)
        deviation = np.sqrt(np.maximum(sizes - gains**2, 0.0))
        return replace(table, gain=np.interp(every, places, gains), deviation=np.interp(every, places, deviation))

    def _note(self, i: int, key: str, used: Tensor) -> None:
        missed, off = self._missed(i, key, used), self._off.setdefault(key, [])
        if missed is not None and len(off) == i:
            off.append(missed)
        self._features.get(key, {}).pop(i, None)

    def _missed(self, i: int, key: str, feature: Tensor) -> Tensor | None:
        """What a feature is away from the recorded one; None where there is none to compare it with."""
        recorded, here = self._features.get(key, {}).get(i), sampled(feature)
        return here - recorded if recorded is not None and recorded.shape == here.shape else None

    def _answer(self, i: int, key: str, change: Tensor, off: list[Tensor]) -> None:
        delta = torch.zeros(change.shape, dtype=torch.float64)
        for moved, missed in zip(self._response.matrix[:i, i], off, strict=True):
            delta.add_(missed, alpha=float(moved))
        length = float(delta.dot(delta))
        if length > 0.0:
            answer, size = float(delta.dot(change.double())) / length, float(change.double().square().sum()) / length
            if np.isfinite(answer) and np.isfinite(size):
                self._answers[key].append((i, answer, size))
