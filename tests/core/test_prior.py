"""What stands in where nothing was measured."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ertacache.erta.prior import (
    LEAST_ERROR_RESPONSE,
    MOST_ERROR_RESPONSE,
    assumed_error_response,
    flow_sigmas,
    generic_gram,
    weight,
)

STEPS = np.arange(20) / 20
FLOW = 8.0 * (1 - STEPS) / (8.0 - 7.0 * STEPS)  # from 1 down, shifted
BELOW_ONE = FLOW[1:]

flow_runs = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60).map(np.array)
any_runs = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60).map(np.array)


@given(flow_runs)
def test_gram_is_that_of_features_of_unit_size(sigmas: np.ndarray) -> None:
    (gram,) = generic_gram(sigmas)
    assert gram.shape == (len(sigmas) + 1,) * 2
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(np.diag(gram), 1.0)
    assert np.linalg.eigvalsh(gram).min() > -1e-12 * len(gram)
    assert gram.min() >= 0.0
    assert gram.max() <= 1.0


@given(any_runs)
def test_gram_has_a_constant_that_no_feature_is_like(sigmas: np.ndarray) -> None:
    np.testing.assert_array_equal(generic_gram(sigmas)[0, -1], np.eye(len(sigmas) + 1)[-1])


def test_models_of_either_kind_are_taken_to_be_the_same_model_on_their_own_scales() -> None:
    """With x = (1 - s) y for a flow's x at s, y's sigma is s / (1 - s), and each derivative there is 1 - s as large."""
    scale = 1 - BELOW_ONE
    other = BELOW_ONE / scale
    gram = generic_gram(BELOW_ONE)[0, :-1, :-1]
    np.testing.assert_allclose(generic_gram(other)[0, :-1, :-1], gram * np.outer(scale, scale), atol=1e-12)
    deviation = assumed_error_response(BELOW_ONE).deviation
    # A derivative per position: (1 - s) on top and 1 / (1 - s) below.
    np.testing.assert_allclose(assumed_error_response(other).deviation, deviation * scale**2)
    # Of a squared position, which is 1 / (1 - s) as large.
    np.testing.assert_allclose(weight(other, 320), weight(BELOW_ONE, 320) * scale**2)


@given(flow_runs, st.randoms(use_true_random=False))
def test_how_alike_two_features_are_depends_on_their_two_sigmas_alone(sigmas: np.ndarray, rng: random.Random) -> None:
    some = np.array(rng.sample(range(len(sigmas)), rng.randint(1, len(sigmas))))
    whole, part = generic_gram(sigmas)[0], generic_gram(sigmas[some])[0]
    np.testing.assert_array_equal(part[:-1, :-1], whole[np.ix_(some, some)])


def test_features_are_less_alike_the_further_apart_their_sigmas_are() -> None:
    gram = generic_gram(np.linspace(0.95, 0.05, 40))[0, :-1, :-1]
    for row, each in enumerate(gram):
        assert np.all(np.diff(each[row:]) < 0.0)
    assert gram[0, -1] < 0.1


def test_features_at_one_sigma_are_the_same() -> None:
    np.testing.assert_array_equal(generic_gram(np.array([0.7, 0.3, 0.7]))[0, 0, 2], 1.0)


def test_networks_do_not_tell_sigmas_below_a_thousandth_nor_that_close_to_pure_noise() -> None:
    gram = generic_gram(np.array([1.0, 1.0 - 1e-5, 1e-5, 1e-9]))[0]
    assert gram[[0, 2], [1, 3]] == pytest.approx(1.0, abs=1e-6)


@given(any_runs)
def test_error_response_is_finite_bounded_and_says_nothing_about_its_direction(sigmas: np.ndarray) -> None:
    error_response = assumed_error_response(sigmas)
    np.testing.assert_array_equal(error_response.gain, np.zeros(len(sigmas)))
    assert np.isfinite(error_response.deviation).all()
    assert error_response.deviation.min() >= 0.0


@given(flow_runs)
def test_error_response_over_sigma_stays_within_its_limits(sigmas: np.ndarray) -> None:
    sizes = assumed_error_response(sigmas).deviation * np.maximum(sigmas, 1e-3)
    assert sizes.min() > LEAST_ERROR_RESPONSE - 1e-9
    assert sizes.max() < MOST_ERROR_RESPONSE + 1e-9


def test_error_response_is_one_over_what_is_left_of_the_signal() -> None:
    deviation = assumed_error_response(np.array([1.0, 0.95, 0.8, 0.5, 0.1])).deviation
    assert deviation == pytest.approx([MOST_ERROR_RESPONSE, MOST_ERROR_RESPONSE / 0.95, 5.0, 2.0, 5.0])


def test_weight_is_squared_growth_times_how_far_the_denoiser_follows_the_coarsest_structure() -> None:
    """Both in closed form, against a Gaussian mode whose sampling is integrated step by step."""
    positions, sigma, fine = 2000, 0.7, 200_000
    variance = 0.03 * positions

    def rate(s: np.ndarray) -> np.ndarray:
        """dx / dsigma over x, on the mode's probability flow."""
        return (s - (1 - s) * variance) / (s**2 + (1 - s) ** 2 * variance)

    steps = (np.arange(fine) + 0.5) * sigma / fine
    growth = np.exp(-np.sum(rate(steps)) * sigma / fine)
    gain = (1 - sigma) * variance / (sigma**2 + (1 - sigma) ** 2 * variance)
    assert weight(np.array([sigma]), positions) == pytest.approx([growth**2 * gain], rel=1e-6)


def test_weight_moves_to_the_start_of_the_run_with_the_size_of_the_latent() -> None:
    sigmas = np.linspace(0.999, 0.0, 1000)
    assert weight(sigmas, 320)[-1] == pytest.approx(1.0)
    peaks = [sigmas[weight(sigmas, positions).argmax()] for positions in (320, 16_384, 131_040)]
    assert 0.6 < peaks[0] < 0.9 < peaks[1] < 0.98 < peaks[2] < 1.0


def test_flow_sigmas_stay_what_they_are_and_rounding_above_one_does_not_make_another_model() -> None:
    np.testing.assert_array_equal(flow_sigmas(FLOW), FLOW)
    rounded = np.array([1.0 + 1e-7, 0.5])
    np.testing.assert_array_equal(flow_sigmas(rounded), rounded)
    assert np.isfinite(generic_gram(rounded)).all()
    assert assumed_error_response(rounded).deviation == pytest.approx([MOST_ERROR_RESPONSE, 2.0])
    assert flow_sigmas(np.array([3.0, 1.0])) == pytest.approx([0.75, 0.5])
