"""Perturbed run: an observer of a cached run that measures the model's error response (docs/method.md, Error response).

Its model calls are at latents that are off by known errors. How its computed features differ from those of the full
run with the same seed is the response to these errors.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .notes import Note
from .plan import Plan, decided
from .prior import ERROR_LENGTH, correlation
from .problem import saturated
from .profile import MAX_CALIBRATION, Table
from .recorder import sampled
from .replay import Replay
from .response import ImpulseResponse
from .simulation import ErrorResponse, Simulation


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
        """The run's tables with gain and deviation, interpolated between the calls at which both were measured, and
        with how far the error predicted from them is from this run's own.

        As they are where nothing was measured.
        """
        return tuple(self._with(table, key) for table, key in zip(tables, self._found, strict=True))

    def _with(self, table: Table, key: str) -> Table:
        if not self._found[key]:
            return table
        places, gains, sizes = np.array(self._found[key]).T
        every = np.arange(table.sigmas.size)
        deviation = np.sqrt(np.maximum(sizes - gains**2, 0.0))
        found = replace(table, gain=np.interp(every, places, gains), deviation=np.interp(every, places, deviation))
        return replace(found, calibration=self._calibration(found, key))

    def _calibration(self, table: Table, key: str) -> float:
        """Relative error of this run's final latent over the predicted one; 1 where either is nothing."""
        errors, unit = self._errors.get(key, []), table.latent_rms**2
        if len(errors) < table.sigmas.size or not unit > 0.0:
            return 1.0
        alike = correlation(table.sigmas, ERROR_LENGTH)
        error_response = ErrorResponse(table.gain, table.deviation, alike)
        grams, plan = table.extended_gram()[None] / table.elements / unit, self._replay.plan
        simulation = Simulation(self._response, grams, error_response, frozenset(plan.resets))
        predicted = float(saturated(simulation.follow(plan.compute, decided(plan)).squares)[0])
        measured = float(self._moved(errors, -1, errors[0].shape).square().mean() / unit) ** 0.5
        if not (np.isfinite(measured) and measured > 0.0 and predicted > 0.0):
            return 1.0
        return float(np.clip(measured / predicted, 1.0 / MAX_CALIBRATION, MAX_CALIBRATION))

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
        delta = self._moved(errors, i, change.shape)
        length = float(delta.dot(delta))
        if length > 0.0:
            gain, size = float(delta.dot(change.double())) / length, float(change.double().square().sum()) / length
            if np.isfinite(gain) and np.isfinite(size):
                self._found[key].append((i, gain, size))

    def _moved(self, errors: list[Tensor], i: int, shape: torch.Size) -> Tensor:
        """What the errors of the outputs so far move the latent by at call i, -1 for the final latent; float64."""
        delta = torch.zeros(shape, dtype=torch.float64)
        for moved, error in zip(self._response.matrix[: len(errors), i], errors, strict=True):
            delta.add_(error, alpha=float(moved))
        return delta
