"""Trajectory-aware timestep adjustment (ERTACache): shorter steps where the reused output overshoots."""

from __future__ import annotations

import numpy as np

from .schedules import Schedule

# Below a half the paper's rule stalls the trajectory and leaves the rest of the way to too few steps.
MIN_PHI = 0.5


def phi(l1: np.ndarray, compute: Schedule) -> np.ndarray:
    """(M,) step factors: ``clip(1 - |v~_i - v_i|_1 / |v_i - v_{i+1}|_1, 0.5, 1)`` where reused, 1 where computed.

    l1: (T, M, M), the tables' mean |F_i - F_j|; averaged over recorded runs before the quotient is taken.
    """
    distance = l1.mean(axis=0)
    count = len(compute)
    factors = np.ones(count)
    newest = 0
    for i in range(count):
        if compute[i]:
            newest = i
        else:
            following = distance[i, min(i + 1, count - 1)]
            factors[i] = 1.0 - distance[newest, i] / max(following, 1e-6)
    return np.clip(factors, MIN_PHI, 1.0)


def adjusted(sigmas: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """(N + 1,) the schedule in which step i is ``factors[i]`` times its share of what remains.

    The paper's dt_c has no unit: on the nominal schedule it is 1 and multiplies the nominal step. On shifted sigmas
    what remains is ``dt_c = (sigma_i - sigma_N) / (sum of the remaining nominal steps)``. Both ends stay.
    sigmas: (N + 1,) falling; factors: (N,) in (0, 1].
    """
    nominal = np.asarray(sigmas, dtype=np.float64)
    steps = np.diff(nominal)
    if len(factors) != len(steps) or np.any(steps >= 0.0):
        raise ValueError(f"{len(factors)} factors need {len(factors) + 1} strictly falling sigmas, got {len(nominal)}")
    moved = nominal.copy()
    for i in range(len(steps) - 1):
        share = (moved[i] - nominal[-1]) / (nominal[i] - nominal[-1])
        moved[i + 1] = moved[i] + share * steps[i] * factors[i]
    return moved
