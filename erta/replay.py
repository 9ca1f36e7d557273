"""Replay: an observer that follows a Plan and holds the cached features of one run."""

from __future__ import annotations

import torch
from torch import Tensor

from .plan import Plan
from .schedules import histories


class Replay:
    """Predicts what the plan reuses from the features it has seen; whatever does not fit the plan is computed.

    A feature is only predicted from exactly the evaluations that the plan's coefficients were made for. So a step that
    had to be computed against the plan, a stream that appears late, or a changed shape makes the steps that follow be
    computed until the plan's own history is there again: never a guess from something else, and never from nothing.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cache_bytes = 0
        self._history = histories(plan.compute, plan.restarts)
        self._depth = max((len(c) for c in plan.coefficients), default=0)
        self._past: dict[str, list[tuple[int, Tensor]]] = {}

    def predict(self, i: int, key: str) -> Tensor | None:
        if i >= len(self.plan.compute) or self.plan.compute[i]:
            return None
        return self._combine(i, key)

    def observe(self, i: int, key: str, feature: Tensor) -> Tensor:
        correction = self.plan.corrections[i] if i < len(self.plan.compute) else 0.0
        predicted = self._combine(i, key) if correction else None
        past = self._past.setdefault(key, [])
        if past and (past[0][1].shape != feature.shape or past[0][1].device != feature.device):
            past.clear()
        if self._depth:
            past.insert(0, (i, feature))
            del past[self._depth :]
        self.cache_bytes = max(self.cache_bytes, self._held())
        if predicted is None or predicted.shape != feature.shape:
            return feature
        return feature + (feature - predicted) * correction

    def close(self) -> None:
        self._past.clear()

    def _combine(self, i: int, key: str) -> Tensor | None:
        """The plan's prediction of evaluation i, or None where the features it needs are not the ones at hand."""
        coefficients = self.plan.coefficients[i]
        past = self._past.get(key, [])[: len(coefficients)]
        if not past or len(past) < len(coefficients):
            return None
        if tuple(index for index, _ in past) != self._history[i][: len(coefficients)]:
            return None
        (_, newest), *older = past
        # In float32, or float64 where the features are.
        predicted = newest.to(torch.promote_types(newest.dtype, torch.float32)) * coefficients[0]
        for coefficient, (_, feature) in zip(coefficients[1:], older, strict=True):
            predicted = predicted.add_(feature, alpha=coefficient)
        return predicted.add_(self.plan.offsets[i]) if self.plan.offsets[i] else predicted

    def _held(self) -> int:
        return sum(feature.nbytes for past in self._past.values() for _, feature in past)
