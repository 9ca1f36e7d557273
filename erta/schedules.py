"""Which model calls to compute: ``tuple[bool, ...]``, True = computed. Every schedule computes call 0.

All functions are deterministic; ties go to the earlier step.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from .predictors import History

Schedule = tuple[bool, ...]

IntervalCosts = Mapping[tuple[History, int], float]
"""(history, t) -> cost of reusing everything between history[0] and t, for each of ``possible_intervals``."""


def as_text(compute: Schedule) -> str:
    """One letter per model call: "1" computed, "0" reused."""
    return "".join("01"[computed] for computed in compute)


def even(count: int, computed: int, required: Collection[int] = ()) -> Schedule:
    """Evenly spread over the indices, both ends computed, and whatever is required on top."""
    return spread(count, computed, 1.0, required)


def spread(count: int, computed: int, power: float, required: Collection[int] = ()) -> Schedule:
    """Computed calls at (i / (computed - 1)) ** power of the run, and whatever is required on top.

    A power above 1 is dense at the start: where two places round to one call, the next free ones are taken.
    """
    places: set[int] = set()
    for i in range(computed):
        place = round((i / max(computed - 1, 1)) ** power * (count - 1))
        places.add(max(place, i) if power > 1.0 else place)
    found = places | {0} | set(required)
    return tuple(i in found for i in range(count))


def preset(steps: Sequence[int], published_for: int, count: int, required: Collection[int] = ()) -> Schedule:
    """A published list of computed steps, stretched by position when the run has another length."""
    if not steps or min(steps) < 0 or max(steps) >= published_for:
        raise ValueError(f"preset steps {list(steps)} do not lie in 0 .. {published_for - 1}, the steps it is for")
    scale = (count - 1) / max(published_for - 1, 1)
    places = {round(step * scale) for step in steps} | {0} | set(required)
    return tuple(i in places for i in range(count))


def relative_l1(l1: np.ndarray, norm1: np.ndarray) -> np.ndarray:
    """(M, M): [s, i] = |F_s - F_i|_1 / |F_i|_1 (ERTACache, offline residual profiling), means over recorded runs.

    l1: (T, M, M) and norm1: (T, M) of the profile's tables.
    """
    relative: np.ndarray = (l1 / np.maximum(norm1, 1e-12)[:, None, :]).mean(axis=0)
    return relative


def greedy(relative: np.ndarray, threshold: float, required: Collection[int] = ()) -> Schedule:
    """The paper's policy: reuse the last computed feature until its relative error reaches the threshold."""
    compute = []
    newest = 0
    for i in range(len(relative)):
        if i == 0 or i in required or not relative[newest, i] < threshold:
            newest = i
        compute.append(newest == i)
    return tuple(compute)


def greedy_for_budget(relative: np.ndarray, computed: int, required: Collection[int] = ()) -> tuple[Schedule, float]:
    """The greedy schedule with at most ``computed`` model calls and the smallest threshold, and that threshold."""
    # The count does not fall strictly with the threshold, so no bisection: M^2 / 2 walks of M short steps.
    for threshold in np.unique(relative[np.triu_indices(len(relative), 1)]):
        schedule = greedy(relative, threshold, required)
        if sum(schedule) <= computed:
            return schedule, float(threshold)
    return greedy(relative, math.inf, required), math.inf


def longest_interval(count: int, computed: int) -> int:
    """Default limit on t - s: twice the mean spacing. Longer intervals win in the median and lose the worst case."""
    return max(2, 2 * count // max(computed, 1))


def possible_intervals(
    count: int, longest: int, required: Collection[int] = (), resets: Collection[int] = ()
) -> list[tuple[History, int]]:
    """(history, t) of every interval that a schedule of ``budget`` may have: the two newest computed calls, and t."""
    fixed = sorted({0, *required, *resets})
    found: list[tuple[History, int]] = []
    for s in range(count):
        earliest = max((f for f in fixed if f < s), default=0)
        latest = min([s + longest, count, *(f for f in fixed if f > s)])
        fresh = s == 0 or s in resets
        past = [(s,)] if fresh else [(s, before) for before in range(s - 1, max(s - longest, earliest) - 1, -1)]
        found += [(history, t) for history in past for t in range(s + 2, latest + 1)]
    return found


def budget(
    count: int,
    computed: int,
    costs: IntervalCosts,
    longest: int,
    required: Collection[int] = (),
    resets: Collection[int] = (),
) -> Schedule:
    """The schedule that computes exactly ``computed`` calls at the least sum of interval costs, by dynamic programming.

    Exact for costs that depend on the last two computed calls, as those of a two-term predictor do. An interval ends at
    t <= count; t = count is the end of the run. longest: limit on t - s. ``required`` calls are computed, and at
    ``resets`` (always required, 0 among them) the history begins anew. Raises ValueError where no such schedule exists.
    """
    width = min(longest, count)
    fresh = np.zeros(count + 1, dtype=bool)
    fresh[[0, *resets]] = True
    table = _cost_table(count, width, costs)
    # best[d, s]: least cost with s the newest computed and s - d the one before it; d = 0: none, a history begins at s.
    best = np.full((width + 1, count + 1), math.inf)
    if computed > 0:
        best[0, 0] = 0.0
    came_from = []
    for _ in range(computed):
        total = best[:, None] + table
        before = total.argmin(axis=0)
        arrived = np.take_along_axis(total, before[None], axis=0)[0]
        # [length, s] -> [length, t], t = s + length
        best = np.full((width + 1, count + 1), math.inf)
        source = np.zeros((width + 1, count + 1), dtype=int)
        for length in range(1, width + 1):
            best[length, length:] = arrived[length, : count + 1 - length]
            source[length, length:] = before[length, : count + 1 - length]
        came_from.append((source, best.argmin(axis=0)))
        best[0, fresh] = best[:, fresh].min(axis=0)
        best[1:, fresh] = math.inf
    if not np.isfinite(best[:, count]).any():
        raise ValueError(
            f"no schedule computes exactly {computed} of {count} model calls with intervals of at most {longest} and "
            f"calls {sorted({0, *required, *resets})} computed; allow longer intervals or another speed"
        )
    places, t, length = set(), count, int(best[:, count].argmin())
    for source, shortest in reversed(came_from):
        length = int(shortest[t]) if fresh[t] else length
        t, length = t - length, int(source[length, t])
        places.add(t)
    return tuple(i in places for i in range(count))


def _cost_table(count: int, width: int, costs: IntervalCosts) -> np.ndarray:
    """(d, length, s) cost of the interval from s to s + length after one of d; infinite where none is allowed."""
    table = np.full((width + 1, width + 1, count + 1), math.inf)
    table[:, 1, :count] = 0.0
    for (history, t), cost in costs.items():
        s = history[0]
        table[s - history[-1], t - s, s] = cost
    return table


def histories(compute: Schedule, resets: Collection[int] = ()) -> list[History]:
    """For each call the computed ones before it, newest first, none from before the last history reset."""
    found: list[History] = []
    history: History = ()
    for i, computed in enumerate(compute):
        found.append(() if i in resets else history)
        if computed:
            history = (i, *found[-1])
    return found
