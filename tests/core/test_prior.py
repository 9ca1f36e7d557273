"""What stands in where nothing was measured."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ertacache.erta.prior import MAX_ERROR_RESPONSE, conservative_error_response, flow_sigmas, generic_gram

STEPS = np.arange(20) / 20
FLOW = 8.0 * (1 - STEPS) / (8.0 - 7.0 * STEPS)  # from 1 down, shifted
BELOW_ONE = FLOW[1:]

flow_runs = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60).map(np.array)
any_runs = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60).map(np.array)


@given(any_runs)
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


def test_gram_of_noise_levels_is_that_of_the_flow_sigmas_with_the_same_signal_to_noise_ratio() -> None:
    np.testing.assert_allclose(generic_gram(BELOW_ONE / (1 - BELOW_ONE)), generic_gram(BELOW_ONE), atol=1e-12)
    assert np.ptp(generic_gram(BELOW_ONE)) > 0.5, "otherwise they would be equal anyway"


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
    error_response = conservative_error_response(sigmas)
    np.testing.assert_array_equal(error_response.gain, np.zeros(len(sigmas)))
    in_sigmas = error_response.deviation * sigmas
    assert in_sigmas.min() > 1.0 - 1e-9
    assert in_sigmas.max() < MAX_ERROR_RESPONSE + 1e-9


def test_error_response_of_a_flow_model_is_one_over_sigma_and_what_is_left_of_the_signal_up_to_its_limit() -> None:
    error_response = conservative_error_response(np.array([1.0, 0.95, 0.9, 0.5, 0.01, 1e-9]))
    assert error_response.deviation == pytest.approx([MAX_ERROR_RESPONSE, 16.0 / 0.95, 10 / 0.9, 4.0, 100 / 0.99, 1e9])


def test_error_response_of_other_models_is_one_over_sigma() -> None:
    sigmas = np.array([14.6, 2.0, 1.0, 0.03])
    assert conservative_error_response(sigmas).deviation == pytest.approx(1 / sigmas)


def test_flow_sigmas_stay_what_they_are_and_rounding_above_one_does_not_make_another_model() -> None:
    np.testing.assert_array_equal(flow_sigmas(FLOW), FLOW)
    rounded = np.array([1.0 + 1e-7, 0.5])
    np.testing.assert_array_equal(flow_sigmas(rounded), rounded)
    assert np.isfinite(generic_gram(rounded)).all()
    assert conservative_error_response(rounded).deviation == pytest.approx([MAX_ERROR_RESPONSE, 4.0])
    assert flow_sigmas(np.array([3.0, 1.0])) == pytest.approx([0.75, 0.5])
