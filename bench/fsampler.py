"""FSampler: skipped steps extrapolated over sigma from computed ones, by a pattern or where two orders agree.

Written from the public description and code of obisin/ComfyUI-FSampler 1.5.0 (arXiv 2511.09180), whose rules are:

- What is extrapolated is epsilon = denoised - x, or denoised itself ("extrapolate_denoised").
- h2, h3, h4: the Lagrange polynomial through the newest 2, 3, 4 computed ones, at their sigmas ("sigma_aware"), of a
  lower order while there are fewer.
- hN/sK: after a start that is computed, K calls and one skip, again and again.
- Skip indices: a list of steps to skip, of which 0 and 1 are computed always.
- Adaptive: the next latent is predicted with h3 and with h2; the call is skipped where the two differ by no more than a
  tolerance, relative to the next latent. Every 4th call is computed, so that the limit of 4 skips in a row never holds.

Tuned: the quantity; patterns that spend the budget; skip indices spread evenly, for each order; the tolerance, which is
fixed at 0.1 in the original.

Departures: the sampler is ComfyUI's own and not a copy; for the adaptive rule the next latent is Euler's whatever the
sampler is. Left out: the learned factor, which the default smoothing of .9999 keeps at 1 in 50 steps to some tenths of
a percent; the "grad_est" correction, which is off by default; checks for predictions that are no numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..erta.schedules import Schedule
from .methods import Place, Proposals, Setting
from .online import OutputRule, checked, halved, online, spread

QUANTITIES = ("denoised", "epsilon")
LOWEST, HIGHEST = 1e-5, 1.0

# Model calls at both ends that patterns and the adaptive rule compute, and how often the adaptive rule computes one
# whatever it predicts: defaults of the node FSampler Advanced.
FIRST, LAST, REGULAR = 2, 2, 4


@dataclass(frozen=True)
class Skips:
    """Which model calls are skipped, and how. compute: known beforehand, or () for the adaptive rule."""

    quantity: str
    order: int = 3
    compute: Schedule = ()
    tolerance: float = 0.0


def fsampler(place: Place) -> Proposals:
    """Patterns and skip indices for both quantities, then the adaptive rule's tolerance searched for each."""
    for quantity in QUANTITIES:
        for name, order, compute in schedules(place.steps, place.budget):
            yield _setting(f"{name}, {quantity}", Skips(quantity, order, compute))
    for quantity in QUANTITIES:
        yield from halved(place, LOWEST, HIGHEST, functools.partial(_adaptive, quantity))


def _adaptive(quantity: str, tolerance: float) -> Setting:
    return _setting(f"adaptive {tolerance:g}, {quantity}", Skips(quantity, tolerance=tolerance))


def _setting(label: str, skips: Skips) -> Setting:
    return Setting(label, functools.partial(skip, skips=skips))


def schedules(count: int, budget: int) -> Iterator[tuple[str, int, Schedule]]:
    """(name, order, schedule): patterns that spend the budget but for one call, and indices that spend it all."""
    for order in (2, 3, 4):
        for calls in range(order, 7):
            compute = pattern(count, order, calls)
            if budget - 1 <= sum(compute) <= budget:
                yield f"h{order}/s{calls}", order, compute
        if budget >= order:
            # Labels of different budgets must differ: trials are remembered by them.
            yield f"{count - budget} indices, h{order}", order, spread(count, budget, order)


def pattern(count: int, order: int, calls: int) -> Schedule:
    """hN/sK: ``calls`` computed and one skipped, from where there are enough computed ones."""
    start = max(FIRST, order)
    cycle = calls + 1
    return tuple(i < start or i >= count - LAST or (i - start) % cycle != calls for i in range(count))


def skip(model: Any, skips: Skips) -> Any:
    """A clone that skips and extrapolates."""
    return online(model, lambda grid, _: Skipping(skips, grid))


class Skipping(OutputRule):
    """The rule in one run. grid: sigmas of the model calls, and the last of the schedule."""

    def __init__(self, skips: Skips, grid: tuple[float, ...]) -> None:
        super().__init__()
        self._skips, self._grid = skips, grid
        self._compute = checked(skips.compute, grid) if skips.compute else ()
        self._past: list[tuple[float, torch.Tensor]] = []  # (sigma, quantity), newest first

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor | None:
        return self._by_schedule(i, x) if self._compute else self._adaptive(i, x)

    def observe(self, i: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        value = (denoised if self._skips.quantity == "denoised" else denoised - x).float()
        self._past = [(self._grid[i], value), *self._past[:3]]

    def _by_schedule(self, i: int, x: torch.Tensor) -> torch.Tensor | None:
        return None if self._compute[i] else self._extrapolated(i, x, self._skips.order)

    def _adaptive(self, i: int, x: torch.Tensor) -> torch.Tensor | None:
        inside = FIRST <= i < len(self._grid) - 1 - LAST
        if not inside or len(self._past) < 3 or (i - FIRST) % REGULAR == 0:
            return None
        high, low = (self._extrapolated(i, x, order) for order in (3, 2))
        share = 1.0 - self._grid[i + 1] / self._grid[i]
        after = x + share * (high - x)
        difference = torch.linalg.vector_norm(share * (high - low)) / torch.linalg.vector_norm(after)
        return high if float(difference) <= self._skips.tolerance else None

    def _extrapolated(self, i: int, x: torch.Tensor, order: int) -> torch.Tensor:
        past = self._past[:order]
        weights = lagrange([sigma for sigma, _ in past], self._grid[i])
        value = sum((w * known for w, (_, known) in zip(weights, past, strict=True)), torch.zeros_like(past[0][1]))
        return value if self._skips.quantity == "denoised" else x + value


def lagrange(nodes: Sequence[float], at: float) -> list[float]:
    """Weights of the values at ``nodes`` in the polynomial through them, taken ``at`` another place."""
    weights = []
    for i, node in enumerate(nodes):
        weight = 1.0
        for other in (*nodes[:i], *nodes[i + 1 :]):
            weight *= (at - other) / (node - other)
        weights.append(weight)
    return weights
