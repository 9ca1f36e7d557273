"""The timestep adjustment: factors and the schedule they make."""

from __future__ import annotations

import numpy as np
import pytest

from ertacache.erta.timesteps import MIN_PHI, adjusted, phi
from ertacache.tests.core.made import flow


def distances(places: list[float]) -> np.ndarray:
    """(1, M, M): one recorded run whose features are points on a line."""
    points = np.array(places)
    return np.abs(points[:, None] - points[None])[None]


def test_phi_by_hand() -> None:
    """Points 0, 1, 5, 6, 10. Model call 1 reuses 0: 1 - 1/4. Model call 3 reuses 2: 1 - 1/4. Computed ones keep 1."""
    factors = phi(distances([0, 1, 5, 6, 10]), (True, False, True, False, True))
    np.testing.assert_allclose(factors, [1, 0.75, 1, 0.75, 1])


def test_phi_measures_from_the_last_computed_call() -> None:
    """Model call 2 reuses 0, two apart; the next is eight apart: 1 - 2/8. From model call 1 it would be 1 - 1/8."""
    assert phi(distances([0, 1, 2, 10]), (True, False, False, True))[2] == 0.75


def test_phi_averages_runs_before_the_quotient() -> None:
    one, other = distances([0, 1, 9, 10]), distances([0, 2, 6, 7])
    factors = phi(np.concatenate([one, other]), (True, False, True, True))
    np.testing.assert_allclose(factors[1], 1 - 3 / 12)  # (1 + 2) / (8 + 4), not the mean of 1/8 and 2/4


def test_phi_never_falls_below_the_guard() -> None:
    compute = (True, False, False, False)
    assert MIN_PHI == 0.5
    # The reused error is a hundred times the step that follows; then a step of length 0; then the last model call.
    factors = phi(distances([0, 100, 101, 101]), compute)
    np.testing.assert_array_equal(factors, [1, 0.5, 0.5, 0.5])
    # Nothing moves at all: no error either, so the whole step.
    np.testing.assert_array_equal(phi(distances([3, 3, 3, 3]), compute), [1, 1, 1, 1])


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_factors_of_one_leave_the_schedule_as_it_is(shift: float) -> None:
    sigmas = flow(50, shift)
    np.testing.assert_allclose(adjusted(sigmas, np.ones(50)), sigmas, rtol=1e-13, atol=1e-15)


def test_adjusted_by_hand() -> None:
    """1, .75, .5, .25, 0. Step 0 halved: to .875. The .875 left over the nominal .75 stretch the rest by 7/6."""
    moved = adjusted(np.array([1, 0.75, 0.5, 0.25, 0]), np.array([0.5, 1, 1, 1]))
    np.testing.assert_allclose(moved, [1, 0.875, 0.875 - 0.25 * 7 / 6, 0.25 * 7 / 6, 0], rtol=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_adjusted_keeps_both_ends_falls_and_never_hurries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(1, 60))
    sigmas = flow(steps, float(rng.uniform(1, 12)))[: steps + 1]
    if seed % 2:
        sigmas = sigmas + 0.1  # a run that does not end at 0
    factors = rng.uniform(MIN_PHI, 1, steps)
    moved = adjusted(sigmas, factors)
    assert moved[0] == sigmas[0]
    assert moved[-1] == sigmas[-1]
    assert np.all(np.diff(moved) < 0)
    assert np.all(moved >= sigmas - 1e-12)
    assert np.diff(moved).sum() == pytest.approx(sigmas[-1] - sigmas[0])
    # Each step but the last is its factor times its share of what remains.
    share = (moved[:-1] - sigmas[-1]) / (sigmas[:-1] - sigmas[-1])
    np.testing.assert_allclose(np.diff(moved)[:-1], (factors * share * np.diff(sigmas))[:-1], rtol=1e-9)


def test_adjusted_does_not_write_into_its_inputs() -> None:
    sigmas, factors = flow(10), np.full(10, 0.7)
    before = sigmas.copy()
    adjusted(sigmas, factors)
    assert np.array_equal(sigmas, before)
