"""Which evaluations to compute: ``tuple[bool, ...]``, True = computed. Every schedule computes evaluation 0.

All functions are deterministic; ties go to the earlier step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np

from .predictors import History

Schedule = tuple[bool, ...]

GapCost = Callable[[History, int], float]
"""(history, t) -> cost of reusing everything between history[0] and t."""

# How much a position error made at a sigma has grown by the end of the run: measured by perturbing 50-step runs of a
# small trained video model at shift 8, every fourth step. A stand-in for models on which it was not measured.
_GROWTH_SIGMA = (0.0, 0.25, 0.471, 0.615, 0.713, 0.784, 0.838, 0.881, 0.915, 0.944, 0.967, 0.985, 1.0)
_GROWTH = (0.5, 0.5, 0.5, 0.6, 0.8, 1.0, 1.2, 1.6, 2.3, 2.9, 2.2, 2.3, 2.4)


def growth(sigmas: np.ndarray) -> np.ndarray:
    """(M + 1,) factor by which a position error that enters at evaluation t grows until the end; the last is for t = M.

    sigmas: (M,). Sigmas above 1 (models that are no flow models) are mapped by sigma / (1 + sigma), their flow sigma.
    """
    flow = sigmas if sigmas.max(initial=0.0) <= 1.0 + 1e-6 else sigmas / (1.0 + sigmas)
    return np.append(np.interp(flow, _GROWTH_SIGMA, _GROWTH), _GROWTH[0])


def even(count: int, computed: int, required: Collection[int] = ()) -> Schedule:
    """Evenly spread over the indices, both ends computed, and whatever is required on top."""
    places = {round(i * (count - 1) / max(computed - 1, 1)) for i in range(computed)} | {0} | set(required)
    return tuple(i in places for i in range(count))


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
    """The greedy schedule with at most ``computed`` evaluations and the smallest threshold, and that threshold."""
    # The count does not fall strictly with the threshold, so no bisection: M^2 / 2 walks of M short steps.
    for threshold in np.unique(relative[np.triu_indices(len(relative), 1)]):
        schedule = greedy(relative, threshold, required)
        if sum(schedule) <= computed:
            return schedule, float(threshold)
    return greedy(relative, math.inf, required), math.inf


def longest_gap(count: int, computed: int) -> int:
    """Default limit on t - s: twice the mean spacing. Longer gaps win in the median and lose the worst case."""
    return max(2, 2 * count // max(computed, 1))


def budget(
    count: int,
    computed: int,
    cost: GapCost,
    max_gap: int,
    required: Collection[int] = (),
    restarts: Collection[int] = (),
) -> Schedule:
    """The schedule with exactly ``computed`` evaluations and the least sum of gap costs, by dynamic programming.

    Exact for costs that depend on the last two computed evaluations, as those of a two-term predictor do. A gap ends at
    t <= count; t = count is the end of the run. ``required`` evaluations are computed, and at ``restarts`` (always
    required, 0 among them) the history begins anew. Raises ValueError where no such schedule exists.
    """
    fixed = sorted({0, *required, *restarts})
    fresh = {0, *restarts}
    # best[k]: (before, newest) -> (cost so far, the state it came from); before is -1 right after a restart
    best: list[dict[tuple[int, int], tuple[float, tuple[int, int] | None]]] = [{} for _ in range(computed + 1)]
    if computed:
        best[1][-1, 0] = (0.0, None)
    finish: tuple[float, tuple[int, int]] | None = None
    for k in range(1, computed + 1):
        for (before, newest), (so_far, _) in sorted(best[k].items()):
            history = (newest,) if before < 0 else (newest, before)
            limit = min([newest + max_gap, count, *(f for f in fixed if f > newest)])
            for t in range(newest + 1, limit + 1):
                if (t == count) != (k == computed):
                    continue
                total = so_far + (cost(history, t) if t > newest + 1 else 0.0)
                if t == count:
                    finish = min(finish or (math.inf, (0, 0)), (total, (before, newest)))
                    continue
                state = (-1, t) if t in fresh else (newest, t)
                if total < best[k + 1].get(state, (math.inf, None))[0]:
                    best[k + 1][state] = (total, (before, newest))
    if finish is None:
        raise ValueError(
            f"no schedule computes exactly {computed} of {count} evaluations with gaps of at most {max_gap} and "
            f"evaluations {fixed} computed; allow a longer gap or another speed"
        )
    return _walk_back(best, computed, finish[1], count)


def _walk_back(
    best: list[dict[tuple[int, int], tuple[float, tuple[int, int] | None]]],
    computed: int,
    state: tuple[int, int],
    count: int,
) -> Schedule:
    places = set()
    here: tuple[int, int] | None = state
    for k in range(computed, 0, -1):
        assert here is not None
        places.add(here[1])
        here = best[k][here][1]
    return tuple(i in places for i in range(count))


def histories(compute: Schedule, restarts: Collection[int] = ()) -> list[History]:
    """For each evaluation the computed ones before it, newest first, none from before the last restart."""
    found: list[History] = []
    history: History = ()
    for i, computed in enumerate(compute):
        found.append(() if i in restarts else history)
        if computed:
            history = (i, *found[-1])
    return found
