"""GeoShrink: anchors at geometrically growing distances, and between them a slope that shrinks with its own turns.

Written from "GeoShrink: Accelerating Diffusion Transformers with Two Lines of Code" (arXiv 2609.33723), as its abstract
and a public summary of it give the formulas; the paper itself could not be read. With v1, v2, v3 the three newest
computed outputs (newest first) at sigmas s1, s2, s3 and a skipped step from sigma to sigma_next:

    v     = v1 + (v1 - v2) / (1 + rho^2 sin^2 angle(v1 - v2, v2 - v3))          proposition 1
    rho   = (sigma + sigma_next - 2 s1) / (2 (s1 - s2))
    h_j   = r^max(j - 2, 0) steps from anchor j to the next, j = 1 .. B - 1, which sum to T - 1       theorem 1

Nothing in it is to be tuned. The tuner has the choice between these anchors and evenly spread ones after the first
three ("Fixed-Shrink" in the paper's ablation), which a run that decides late may need.

Departures: v is the derivative after guidance, which is the velocity of a flow model. How the paper rounds anchors to
the solver's steps was not found: here to the nearest step that keeps them apart.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..comfy_erta.output import from_d, to_d
from ..erta.schedules import Schedule
from .methods import Place, Proposals, Setting
from .online import OutputRule, checked, online, spread

# The rule needs three computed outputs, and one more anchor for a distance that grows.
FEWEST = 4


def geoshrink(place: Place) -> Proposals:
    """Both ways to place the anchors; nothing for a budget of less than four model calls."""
    if place.budget < FEWEST:
        return
    both = {"geometric": anchors(place.steps, place.budget), "even": spread(place.steps, place.budget, 3)}
    for name, compute in both.items():
        yield Setting(f"{place.budget} {name} anchors", functools.partial(shrink, compute=compute))


def shrink(model: Any, compute: Schedule) -> Any:
    """A clone that computes at the anchors and shrinks the slope in between. compute: begins with three computed."""
    if not all(compute[:3]):
        raise ValueError("compute must begin with three computed model calls, from which the slope shrinks")
    return online(model, lambda grid, _: Shrinking(checked(compute, grid), grid))


class Shrinking(OutputRule):
    """The rule in one run. grid: sigmas of the model calls, and the last of the schedule."""

    def __init__(self, compute: Schedule, grid: tuple[float, ...]) -> None:
        super().__init__()
        self._compute, self._grid = compute, grid
        self._past: list[tuple[int, torch.Tensor]] = []  # newest first

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor | None:
        if self._compute[i]:
            return None
        (first, v1), (second, v2), (_, v3) = self._past
        slope, sigma = v1 - v2, self._grid[i]
        share = retained(slope, v2 - v3, horizon(sigma, self._grid[i + 1], self._grid[first], self._grid[second]))
        return from_d(x, x.new_full((len(x),), sigma, dtype=torch.float32), v1 + share * slope)

    def observe(self, i: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        sigma = x.new_full((len(x),), self._grid[i], dtype=torch.float32)
        self._past = [(i, to_d(x, sigma, denoised)), *self._past[:2]]


def horizon(sigma: float, following: float, newest: float, before: float) -> float:
    """rho: from the newest anchor to the middle of the step, in distances between the two newest anchors."""
    return (sigma + following - 2.0 * newest) / (2.0 * (newest - before))


def retained(slope: torch.Tensor, before: torch.Tensor, rho: float) -> torch.Tensor:
    """omega in (0, 1], a scalar on the device: the share of the newest change that is used again."""
    product = torch.linalg.vector_norm(slope) * torch.linalg.vector_norm(before)
    cosine = (slope * before).sum() / product.clamp_min(1e-30)
    return 1.0 / (1.0 + rho * rho * (1.0 - cosine.square()).clamp(0.0, 1.0))


def anchors(count: int, budget: int) -> Schedule:
    """``budget`` anchors, at least 4, over ``count`` model calls: both ends, and distances that grow geometrically."""
    budget = min(budget, count)
    ratio = _ratio(budget - 1, count - 1)
    places, position = [0], 0.0
    for j in range(1, budget):
        position += ratio ** max(j - 2, 0)
        # Apart from the one before, and with room for those that come.
        places.append(min(max(round(position), places[-1] + 1), count - budget + j))
    return tuple(i in places for i in range(count))


def _ratio(spans: int, total: int) -> float:
    """r >= 1 with 1 + 1 + r + r^2 + ... = total, of ``spans`` terms, by halving an interval."""
    low, high = 1.0, float(max(total, 2))
    for _ in range(100):
        middle = (low + high) / 2.0
        longer = sum(middle ** max(j - 2, 0) for j in range(1, spans + 1)) > total
        low, high = (low, middle) if longer else (middle, high)
    return low
