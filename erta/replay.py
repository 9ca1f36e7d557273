"""Replay: an observer that follows a Plan and holds the cached features of one run."""

import torch
from torch import Tensor

from .notes import Note, note
from .offload import fetch, put_aside
from .plan import Plan
from .schedules import histories

# A run whose residuals are more than this many times the expected ones is unlike the recorded runs.
TOLERANCE = 2.0


class Replay:
    """Predicts what the plan reuses from the features it has seen. What does not fit the plan is computed.

    A feature is only predicted from the very calls that the plan's coefficients are for. Where one of them is missing
    (a stream that appears late, a changed shape), calls are computed until the plan's own history is complete again.

    Where the residual at the end of an interval is unlike the recorded runs, a later interval is computed
    (docs/method.md, The check). What is computed against the plan enters no later prediction: the plan goes on soon.
    Of several streams one that is unlike is enough; the n-th one that appears is the plan's part n.

    offload: features are kept in main memory. A prediction fetches them one by one and is the same to the bit.
    """

    def __init__(self, plan: Plan, offload: bool = False) -> None:
        self.plan = plan
        self.cache_bytes = 0
        self._offload = offload
        self._devices: dict[str, torch.device] = {}
        self._history = histories(plan.compute, plan.resets)
        self._depth = max((len(c) for c in plan.coefficients), default=0)
        self._past: dict[str, list[tuple[int, Tensor]]] = {}
        self._reused = -1
        self._residuals: dict[str, tuple[int, Scalar]] = {}
        self._careful: set[str] = set()  # streams that are unlike
        self._on_top: set[int] = set()
        self._unfit: set[int] = set()

    @property
    def notes(self) -> tuple[Note, ...]:
        """What happened against the plan."""
        on_top, unfit = sorted(self._on_top), sorted(self._unfit)
        unlike = [note("unlike_profile", call=on_top[0], count=len(on_top))] if on_top else []
        return (*unlike, *([note("cache_unfit", call=unfit[0], count=len(unfit))] if unfit else []))

    def predict(self, i: int, key: str) -> Tensor | None:
        if i >= len(self.plan.compute) or self.plan.compute[i] or self._careful:
            return None
        predicted = self._combine(i, key)
        self._reused = self._reused if predicted is None else i
        return predicted

    def observe(self, i: int, key: str, feature: Tensor) -> Tensor:
        planned = i < len(self.plan.compute)
        if planned and not self.plan.compute[i]:
            if self._careful:
                self._on_top.add(i)
                return feature
            self._unfit.add(i)
            if self._combine(i, key) is None:
                return feature
        compared = planned and (self.plan.corrections[i] != 0.0 or self.plan.residual_limits[i] > 0.0)
        predicted = self._combine(i, key) if compared else None
        self._keep(i, key, feature)
        if predicted is None or predicted.shape != feature.shape:
            return feature
        residual = feature - predicted
        self._check(i, key, residual, feature)
        # What was computed instead of reused left no error to correct. The sum may be of a wider dtype.
        correction = self.plan.corrections[i] if self._reused == i - 1 else 0.0
        return feature + residual * correction if correction else feature

    def _keep(self, i: int, key: str, feature: Tensor) -> None:
        past = self._past.setdefault(key, [])
        if past and (past[0][1].shape != feature.shape or self._devices[key] != feature.device):
            past.clear()
        self._devices[key] = feature.device
        if self._depth:
            oldest = past.pop()[1] if len(past) == self._depth else None
            past.insert(0, (i, put_aside(feature, oldest) if self._offload else feature))
        held = sum(feature.nbytes for past in self._past.values() for _, feature in past)
        self.cache_bytes = max(self.cache_bytes, held)

    def _check(self, i: int, key: str, residual: Tensor, feature: Tensor) -> None:
        """Decide by the residual of the interval before; this one's is on its way from the device meanwhile."""
        if not self.plan.residual_limits[i] > 0.0:
            return
        if key in self._residuals:
            at, size = self._residuals[key]
            self._careful.discard(key)
            if not size.value() <= TOLERANCE * self._limit(at, key):
                self._careful.add(key)
        self._residuals[key] = (i, Scalar(torch.linalg.vector_norm(residual) / torch.linalg.vector_norm(feature)))

    def _limit(self, i: int, key: str) -> float:
        """The residual to expect of a stream at call i: where it is a part of a nested latent, the part's own."""
        n = list(self._past).index(key)
        return (self.plan.parts[n] if n < len(self.plan.parts) else self.plan).residual_limits[i]

    def close(self) -> None:
        self._past.clear()

    def _combine(self, i: int, key: str) -> Tensor | None:
        """The plan's prediction of model call i, or None where it needs other features than are kept."""
        coefficients = self.plan.coefficients[i]
        past = self._past.get(key, [])[: len(coefficients)]
        if not past or tuple(index for index, _ in past) != self._history[i][: len(coefficients)]:
            return None
        dtype = torch.promote_types(past[0][1].dtype, torch.float32)
        features = (fetch(feature, self._devices[key]) for _, feature in past)
        predicted = next(features).to(dtype, copy=True).mul_(coefficients[0])
        for coefficient, feature in zip(coefficients[1:], features, strict=True):
            predicted = predicted.add_(feature, alpha=coefficient)
        if self.plan.offsets[i]:
            newest = fetch(past[0][1], self._devices[key]).to(dtype)
            predicted.add_(newest.square().mean().sqrt().mul_(self.plan.offsets[i]))
        return predicted


class Scalar:
    """A number on its way from the device. ``value`` waits until it has arrived."""

    def __init__(self, value: Tensor) -> None:
        self._value = put_aside(value.detach()) if value.is_cuda else value.detach()
        self._arrived = torch.cuda.Event() if value.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def value(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._value)
