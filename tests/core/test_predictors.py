"""Predictors, against least squares on the tensors themselves and where the result is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ertacache.erta.predictors import HELD, MAX_EXTRAPOLATION, Affine, Hold, Prediction, line
from ertacache.erta.problem import profile_grams
from ertacache.erta.profile import Measured, Profile
from ertacache.erta.recorder import Recorder
from ertacache.tests.core.made import flow

MEASURED = Measured("WAN21", 1, "0" * 64, "", "flow", 8.0, "euler", "simple", 8, 6.0, (1, 4), "output", "1", "1")


SIGMAS = flow(12)[:-1]


def profile_of(runs: Sequence[np.ndarray], sigmas: np.ndarray = SIGMAS) -> Profile:
    """As the Recorder makes it. runs: features (M, n) each."""
    tables = []
    for run, features in enumerate(runs):
        recorder = Recorder(sigmas)
        for i, feature in enumerate(features):
            recorder.observe(i, "guided", torch.from_numpy(feature))
        tables += recorder.tables(run, 1.0)
    return Profile(MEASURED, tuple(tables))


def as_float32(features: np.ndarray) -> np.ndarray:
    """What a Recorder keeps, so that a table and the tensors it is compared with hold the same numbers."""
    return features.astype(np.float32).astype(np.float64)


def smooth_run(seed: int, noise: float = 0.01, elements: int = 300) -> np.ndarray:
    """(M, n) features that bend with sigma, with a mean that is not 0 and some noise."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(0.3, 1, (3, elements))
    bent = np.sin(3 * SIGMAS)[:, None]
    return as_float32(a + b * SIGMAS[:, None] + c * bent + noise * rng.normal(size=(len(SIGMAS), elements)))


def apply(prediction: Prediction, history: Sequence[int], features: np.ndarray) -> np.ndarray:
    used = features[list(history[: len(prediction.coefficients)])]
    return np.array(prediction.coefficients) @ used + prediction.offset


# Hold and line


def test_hold_gives_the_newest_computed_feature() -> None:
    assert Hold(SIGMAS, np.zeros((0, 0, 0))).predict((7, 3, 0), 9, 0.0) == HELD == Prediction((1.0,), 0.0)


CASES = [((1, 0), 2), ((4, 1), 7), ((8, 5, 2), 11), ((9, 8), 11)]


@pytest.mark.parametrize(("history", "i"), CASES)
def test_line_is_exact_for_features_linear_in_sigma(history: tuple[int, ...], i: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=50) + np.outer(SIGMAS, rng.normal(size=50))
    np.testing.assert_allclose(apply(line(SIGMAS, history, i, 1.0), history, features), features[i], atol=2e-14)


@pytest.mark.parametrize(("history", "i"), CASES)
@pytest.mark.parametrize("share", [0.25, 1.5, -0.5])
def test_line_with_a_share_of_its_slope_goes_that_far_from_the_newest(
    history: tuple[int, ...], i: int, share: float
) -> None:
    features = smooth_run(0)
    newest, whole = features[history[0]], apply(line(SIGMAS, history, i, 1.0), history, features)
    found = apply(line(SIGMAS, history, i, share), history, features)
    np.testing.assert_allclose(found - newest, share * (whole - newest), atol=1e-13)
    assert np.abs(whole - newest).max() > 1e-3


@pytest.mark.parametrize(("history", "i"), CASES)
def test_line_without_slope_holds(history: tuple[int, ...], i: int) -> None:
    assert line(SIGMAS, history, i, 0.0) == HELD


def test_line_holds_where_there_is_no_second_node_or_no_slope() -> None:
    heun = np.array([1.0, 0.8, 0.8, 0.5, 0.5])
    assert line(heun, (0,), 1, 1.0) == HELD
    assert line(heun, (2, 1), 3, 1.0) == HELD  # both at sigma 0.8
    assert line(heun, (2, 1), 2, 1.0) == HELD
    assert line(heun, (2, 0), 3, 1.0).coefficients == pytest.approx((2.5, -1.5))
    assert line(heun, (1, 0), 2, 1.0) == Prediction((1.0, 0.0)), "at the newest's own sigma it passes through it"


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_line_is_not_drawn_too_far_however_little_of_its_slope_is_taken(share: float) -> None:
    near = np.array([1.0, 0.99, 0.99 - 0.01 * (MAX_EXTRAPOLATION - 0.5), 0.99 - 0.01 * (MAX_EXTRAPOLATION + 0.5)])
    reach = share * (MAX_EXTRAPOLATION - 0.5)
    assert line(near, (1, 0), 2, share).coefficients == pytest.approx((1.0 + reach, -reach))
    assert line(near, (1, 0), 3, share) == HELD
    rising = 2.0 - near
    assert line(rising, (1, 0), 3, share) == HELD


# Affine


def affine(grams: np.ndarray) -> Affine:
    return Affine(SIGMAS, grams)


def test_affine_of_one_run_is_least_squares_over_its_elements() -> None:
    features = smooth_run(1)
    predict = affine(profile_grams(profile_of([features]))).predict
    for s, i in [(0, 1), (0, 5), (3, 4), (8, 11)]:
        columns = np.stack([features[s], np.ones_like(features[s])], axis=1)
        (scale, offset), *_ = np.linalg.lstsq(columns, features[i])
        prediction = predict((s,), i, 0.0)
        assert prediction.coefficients == pytest.approx((scale,), abs=1e-10)
        assert prediction.offset == pytest.approx(offset, abs=1e-10)


def test_affine_of_runs_that_agree_is_least_squares_over_all_of_them() -> None:
    features = smooth_run(1)
    one, two = (affine(profile_grams(profile_of([features] * n))).predict((2,), 5, 0.0) for n in (1, 3))
    assert two.coefficients == pytest.approx(one.coefficients, abs=1e-9)
    assert two.offset == pytest.approx(one.offset, abs=1e-9)


def test_affine_is_the_papers_rectification_with_the_corrected_b_and_not_with_the_printed_one() -> None:
    """eps^ = (K v~ + B) / 4 + 1/2 with K = 4 S / S; B = 4 (mean eps - 1/2) - K mean v~, printed - 4 K mean v~."""
    features = as_float32(smooth_run(2) + 1.0)
    reused, true = features[2], features[5]
    eps = reused - true
    slope = np.cov(reused, eps, bias=True)[0, 1] / reused.var()
    k = 4 * slope
    corrected = 4 * (eps.mean() - 0.5) - k * reused.mean()
    printed = 4 * (eps.mean() - 0.5) - 4 * k * reused.mean()
    ours = apply(affine(profile_grams(profile_of([features]))).predict((2,), 5, 0.0), (2,), features)

    def rectified(b: float) -> np.ndarray:
        return reused - ((k * reused + b) / 4 + 0.5)

    np.testing.assert_allclose(ours, rectified(corrected), atol=1e-9)
    assert abs(slope * reused.mean()) > 0.01, "otherwise the two would not differ"
    assert np.abs(ours - rectified(printed)).min() > 1e-3

    def left(predicted: np.ndarray) -> float:
        return float(np.linalg.norm(true - predicted))

    assert left(rectified(corrected)) < left(reused) < left(rectified(printed))


def test_affine_that_holds_on_every_run_is_kept() -> None:
    runs = [smooth_run(seed) for seed in range(4)]
    for features in runs:
        features[5] = as_float32(0.7 * features[2] + 0.1)
    prediction = affine(profile_grams(profile_of(runs))).predict((2,), 5, 0.0)
    assert prediction.coefficients == pytest.approx((0.7,), abs=1e-5)
    assert prediction.offset == pytest.approx(0.1, abs=1e-5)


def test_affine_holds_where_a_feature_does_not_vary() -> None:
    flat = np.ones((len(SIGMAS), 20))
    assert affine(profile_grams(profile_of([flat]))).predict((2,), 5, 0.0) == Prediction((1.0,), 0.0)


def test_affine_of_a_profile_of_zeros_is_finite() -> None:
    """Such a file is valid, and planning with it must not fail."""
    prediction = affine(profile_grams(profile_of([np.zeros((len(SIGMAS), 8))] * 2))).predict((3, 0), 5, 0.0)
    assert prediction == Prediction((1.0,), 0.0)


# Grams


def test_grams_give_the_mean_squares_of_the_tensors() -> None:
    runs = [smooth_run(r) for r in range(3)]
    weights = np.zeros(len(SIGMAS) + 1)
    weights[[2, 5, 6, -1]] = (0.3, -1.0, 0.8, 0.05)
    found = [weights @ gram @ weights for gram in profile_grams(profile_of(runs))]
    expected = [np.mean((weights[:-1] @ run + weights[-1]) ** 2) for run in runs]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
