"""TaylorSeer and HiCache: extrapolation over step indices, a full model call every so many steps.

Formulas and the published schedule as the papers give them; at the block stack's residual, as published, and at output
level, which is an ablation of ours. Notation: D distance in steps between the two newest computed, k steps beyond the
newest.
"""

from __future__ import annotations

from ..erta.schedules import Schedule


def taylor_weights(history: tuple[int, ...], i: int, order: int) -> tuple[float, ...]:
    """F0 + k d1 + k^2 / 2 d2 with d1 = (F0 - F1) / D and d2 = (d1 - d1 one computed step ago) / D.

    As far as the history and the order reach: held with one computed step, a line with two.
    """
    slope, bend = _differences(history, order)
    k = i - history[0]
    return _combined(len(history), order, (k, slope), (k * k / 2.0, bend))


def hermite_weights(history: tuple[int, ...], i: int, order: int = 2) -> tuple[float, ...]:
    """HiCache, scale 1/2: F0 + k / 2 d1 + (k^2 - 2) / 8 d2."""
    slope, bend = _differences(history, order)
    k = i - history[0]
    return _combined(len(history), order, (k / 2.0, slope), ((k * k - 2.0) / 8.0, bend))


def _differences(history: tuple[int, ...], order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """d1 and d2 as weights of (F0, F1, F2); zeros where the history or the order does not reach."""
    if order < 1 or len(history) < 2:
        return (0.0,) * 3, (0.0,) * 3
    distance = history[0] - history[1]
    slope = (1.0 / distance, -1.0 / distance, 0.0)
    if order < 2 or len(history) < 3:
        return slope, (0.0,) * 3
    before = history[1] - history[2]
    previous = (0.0, 1.0 / before, -1.0 / before)
    return slope, tuple((a - b) / distance for a, b in zip(slope, previous, strict=True))


def _combined(known: int, order: int, *terms: tuple[float, tuple[float, ...]]) -> tuple[float, ...]:
    weights = [1.0, 0.0, 0.0]
    for factor, differences in terms:
        weights = [w + factor * d for w, d in zip(weights, differences, strict=True)]
    return tuple(weights[: min(known, order + 1)])


def every_nth(count: int, interval: int, first: int) -> Schedule:
    """TaylorSeer's schedule: the first ones computed, then one of every ``interval`` model calls."""
    return tuple(i < first or (i - first + 1) % interval == 0 for i in range(count))


def schedules(count: int, budget: int) -> list[tuple[int, int, Schedule]]:
    """(interval, first, schedule) of all that spend the budget as far as their interval lets them."""
    found = []
    for interval in range(2, 11):
        fitting = [n for n in range(1, count) if sum(every_nth(count, interval, n)) <= budget]
        if fitting:
            found.append((interval, max(fitting), every_nth(count, interval, max(fitting))))
    return [one for one in found if sum(one[2]) >= budget - 1]
