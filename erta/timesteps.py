"""Trajectory-aware timestep adjustment (ERTACache): shorter steps where the reused output overshoots."""

from collections.abc import Sequence

import numpy as np

from .schedules import Schedule

# Below a half the paper's rule stalls the trajectory and leaves the rest of the way to too few steps.
MIN_PHI = 0.5


def phi(l1: np.ndarray, compute: Schedule) -> np.ndarray:
    """(M,) step factors: ``clip(1 - |v~_i - v_i|_1 / |v_i - v_{i+1}|_1, 0.5, 1)`` where reused, 1 where computed.

    l1: (T, M, M), the tables' mean |F_i - F_j|; averaged over recorded runs before the quotient is taken.
    """
    distance = l1.mean(axis=0)
    calls = np.arange(len(compute))
    newest = np.maximum.accumulate(np.where(compute, calls, 0))  # at a computed call itself, at a distance of 0
    following = distance[calls, np.minimum(calls + 1, len(compute) - 1)]
    factors: np.ndarray = 1.0 - distance[newest, calls] / np.maximum(following, 1e-6)
    return factors.clip(MIN_PHI, 1.0)


def adjusted(sigmas: Sequence[float] | np.ndarray, factors: Sequence[float] | np.ndarray) -> np.ndarray:
    """(N + 1,) the schedule in which step i is ``factors[i]`` times its share of what remains.

    The paper's dt_c has no unit: on the nominal schedule it is 1 and multiplies the nominal step. On shifted sigmas
    what remains is ``dt_c = (sigma_i - sigma_N) / (sum of the remaining nominal steps)``. Both ends stay.
    sigmas: (N + 1,) strictly falling; factors: (N,) in (0, 1].
    """
    nominal = np.asarray(sigmas, dtype=np.float64)
    steps = np.diff(nominal)
    moved = nominal.copy()
    for i in range(len(steps) - 1):
        share = (moved[i] - nominal[-1]) / (nominal[i] - nominal[-1])
        moved[i + 1] = moved[i] + share * steps[i] * factors[i]
    return moved
