"""Perturbed run: an observer of a cached run that measures the model's error response (docs/method.md, Error response).

Its model calls are at latents that are off by known errors. How its computed features differ from those of the full
run with the same seed is the response to these errors.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .notes import Note
from .plan import Plan
from .profile import Table
from .recorder import sampled
from .replay import Replay
from .response import ImpulseResponse


class PerturbedRun:
    """Follows a plan through a second run of what a Recorder saw, and compares its features with the recorded ones.

    plan: reuses some steps. features: what the Recorder kept; each is released when the run has passed it.
    """

    notes: tuple[Note, ...] = ()

    def __init__(self, plan: Plan, response: ImpulseResponse, features: dict[str, dict[int, Tensor]]) -> None:
        self._replay = Replay(plan)
        self._response = response
        self._features = features
        self._errors: dict[str, list[Tensor]] = {}
        self._found: dict[str, list[tuple[int, float, float]]] = {key: [] for key in features}

    def predict(self, i: int, key: str) -> Tensor | None:
        predicted = self._replay.predict(i, key)
        if predicted is not None:
            self._keep(i, key, predicted)
        return predicted

    def observe(self, i: int, key: str, feature: Tensor) -> Tensor:
        used = self._replay.observe(i, key, feature)
        change, errors = self._difference(i, key, feature), self._errors.get(key, [])
        if change is not None and len(errors) == i:
            self._measure(i, key, change, errors)
        self._keep(i, key, used)
        return used

    def close(self) -> None:
        self._replay.close()
        self._features, self._errors = {}, {}

    @property
    def cache_bytes(self) -> int:
        return self._replay.cache_bytes

    def with_error_response(self, tables: tuple[Table, ...]) -> tuple[Table, ...]:
        """The run's tables with gain and deviation, interpolated between the calls at which both were measured.

        As they are where nothing was measured.
        """
        return tuple(self._with(table, found) for table, found in zip(tables, self._found.values(), strict=True))

    def _with(self, table: Table, found: list[tuple[int, float, float]]) -> Table:
        if not found:
            return table
        places, gains, sizes = np.array(found).T
        every = np.arange(table.sigmas.size)
        deviation = np.sqrt(np.maximum(sizes - gains**2, 0.0))
        return replace(table, gain=np.interp(every, places, gains), deviation=np.interp(every, places, deviation))

    def _keep(self, i: int, key: str, used: Tensor) -> None:
        error, errors = self._difference(i, key, used), self._errors.setdefault(key, [])
        if error is not None and len(errors) == i:
            errors.append(error)
        self._features.get(key, {}).pop(i, None)

    def _difference(self, i: int, key: str, feature: Tensor) -> Tensor | None:
        """A feature minus the recorded one, float32; None where there is none of its shape."""
        recorded, here = self._features.get(key, {}).get(i), sampled(feature)
        return here - recorded if recorded is not None and recorded.shape == here.shape else None

    def _measure(self, i: int, key: str, change: Tensor, errors: list[Tensor]) -> None:
        delta = torch.zeros(change.shape, dtype=torch.float64)
        for moved, error in zip(self._response.matrix[:i, i], errors, strict=True):
            delta.add_(error, alpha=float(moved))
        length = float(delta.dot(delta))
        if length > 0.0:
            gain, size = float(delta.dot(change.double())) / length, float(change.double().square().sum()) / length
            if np.isfinite(gain) and np.isfinite(size):
                self._found[key].append((i, gain, size))
