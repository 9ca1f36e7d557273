"""Predictors and the corrector, against least squares on the tensors themselves and where the answer is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ertacache.erta.planner import euler_response
from ertacache.erta.predictors import (
    MAX_EXTRAPOLATION,
    Affine,
    Fitted,
    GapModel,
    LinearInSigma,
    Prediction,
    Predictor,
    hold,
    make_predictor,
    mean_squares,
    profile_grams,
    shape_weights,
)
from ertacache.erta.profile import Measured, Profile
from ertacache.erta.recorder import Recorder
from ertacache.erta.response import Response

MEASURED = Measured("WAN21", 1, "0" * 64, "", "flow", 8.0, "euler", "simple", 8, 6.0, (1, 4), "output", "1", "1")


def flow(steps: int, shift: float = 8.0) -> np.ndarray:
    t = 1 - np.arange(steps + 1) / steps
    return shift * t / (1 + (shift - 1) * t)


SCHEDULE = flow(12)
SIGMAS = SCHEDULE[:-1]


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


# Hold and linear


def test_hold_gives_the_newest_computed_feature() -> None:
    assert hold((7, 3, 0), 9) == Prediction((1.0,), 0.0)


def test_linear_is_exact_for_features_linear_in_sigma() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=50) + np.outer(SIGMAS, rng.normal(size=50))
    predict = LinearInSigma(SIGMAS)
    for history, i in [((1, 0), 2), ((4, 1), 7), ((8, 5, 2), 11), ((9, 8), 11)]:
        np.testing.assert_allclose(apply(predict(history, i), history, features), features[i], atol=2e-14)


def test_linear_holds_where_there_is_no_second_node_or_no_slope() -> None:
    heun = LinearInSigma(np.array([1.0, 0.8, 0.8, 0.5, 0.5]))
    assert heun((0,), 1) == hold((0,), 1)
    assert heun((2, 1), 3) == hold((2, 1), 3)  # both at sigma 0.8
    assert heun((2, 0), 3).coefficients == pytest.approx((2.5, -1.5))
    assert heun((1, 0), 2) == Prediction((1.0, 0.0)), "at the newest's own sigma the line passes through it"


def test_linear_holds_where_the_line_would_be_drawn_too_far() -> None:
    near = LinearInSigma(np.array([1.0, 0.99, 0.99 - 0.01 * (MAX_EXTRAPOLATION - 0.5), 0.5]))
    assert near((1, 0), 2).coefficients == pytest.approx((MAX_EXTRAPOLATION + 0.5, 0.5 - MAX_EXTRAPOLATION))
    assert near((1, 0), 3) == hold((1, 0), 3)


# Affine


def test_affine_of_one_run_is_least_squares_over_its_elements() -> None:
    features = smooth_run(1)
    predict = Affine(profile_grams(profile_of([features])))
    for s, i in [(0, 1), (0, 5), (3, 4), (8, 11)]:
        columns = np.stack([features[s], np.ones_like(features[s])], axis=1)
        (scale, offset), *_ = np.linalg.lstsq(columns, features[i])
        prediction = predict((s,), i)
        assert prediction.coefficients == pytest.approx((scale,), abs=1e-10)
        assert prediction.offset == pytest.approx(offset, abs=1e-10)


def test_affine_of_runs_that_agree_is_least_squares_over_all_of_them() -> None:
    features = smooth_run(1)
    one, two = (Affine(profile_grams(profile_of([features] * n)))((2,), 5) for n in (1, 3))
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
    ours = apply(Affine(profile_grams(profile_of([features])))((2,), 5), (2,), features)

    def rectified(b: float) -> np.ndarray:
        return reused - ((k * reused + b) / 4 + 0.5)

    np.testing.assert_allclose(ours, rectified(corrected), atol=1e-9)
    assert abs(slope * reused.mean()) > 0.01, "otherwise the two could not be told apart"
    assert np.abs(ours - rectified(printed)).min() > 1e-3

    def left(predicted: np.ndarray) -> float:
        return float(np.linalg.norm(true - predicted))

    assert left(rectified(corrected)) < left(reused) < left(rectified(printed))


def test_affine_that_only_holds_on_one_run_is_shrunk_to_holding() -> None:
    """Run 0 halves its feature from 2 to 5; in the others it does not change, so what run 0 teaches is wrong there."""
    runs = [smooth_run(seed) for seed in range(4)]
    for features in runs:
        features[5] = features[2]
    runs[0][5] = 0.5 * runs[0][2]
    prediction = Affine(profile_grams(profile_of(runs)))((2,), 5)
    assert prediction.coefficients == pytest.approx((1.0,), abs=1e-6)
    assert prediction.offset == pytest.approx(0.0, abs=1e-6)


def test_affine_that_holds_on_every_run_is_kept() -> None:
    runs = [smooth_run(seed) for seed in range(4)]
    for features in runs:
        features[5] = as_float32(0.7 * features[2] + 0.1)
    prediction = Affine(profile_grams(profile_of(runs)))((2,), 5)
    assert prediction.coefficients == pytest.approx((0.7,), abs=1e-5)
    assert prediction.offset == pytest.approx(0.1, abs=1e-5)


def test_affine_holds_where_a_feature_has_no_spread() -> None:
    flat = np.ones((len(SIGMAS), 20))
    assert Affine(profile_grams(profile_of([flat])))((2,), 5) == Prediction((1.0,), 0.0)


# Fitted


def test_fitted_is_least_squares_where_all_runs_agree() -> None:
    features = smooth_run(3, noise=0.2)
    grams = profile_grams(profile_of([features] * 3))
    for history, i in [((3, 0), 5), ((6, 4, 1), 9)]:
        expected, *_ = np.linalg.lstsq(features[list(history[:2])].T, features[i])
        exact = Fitted(grams, SIGMAS, ridge=0.0)(history, i)
        assert exact.coefficients == pytest.approx(tuple(expected), abs=1e-8)
        assert exact.offset == 0.0
        assert Fitted(grams, SIGMAS)(history, i).coefficients == pytest.approx(tuple(expected), abs=1e-3)


def test_fitted_from_one_run_is_the_line_in_sigma() -> None:
    grams = profile_grams(profile_of([smooth_run(3)]))
    assert Fitted(grams, SIGMAS)((3, 0), 5) == LinearInSigma(SIGMAS)((3, 0), 5)
    assert Fitted(profile_grams(profile_of([smooth_run(3)] * 2)), SIGMAS)((0,), 5) == hold((0,), 5)


def test_fitted_that_only_holds_on_one_run_is_shrunk_to_the_line_in_sigma() -> None:
    """Three runs lie on a line in sigma; in run 0 evaluation 5 is something else that its two nodes explain."""
    rng = np.random.default_rng(4)
    runs = [as_float32(rng.normal(size=300) + np.outer(SIGMAS, rng.normal(size=300))) for _ in range(4)]
    runs[0][5] = as_float32(0.3 * runs[0][3] + 0.2 * runs[0][0])
    line = LinearInSigma(SIGMAS)((3, 0), 5)
    fitted = Fitted(profile_grams(profile_of(runs)), SIGMAS)((3, 0), 5)
    assert fitted.coefficients == pytest.approx(line.coefficients, abs=1e-5)


def test_fitted_that_holds_on_every_run_is_kept() -> None:
    rng = np.random.default_rng(5)
    runs = [as_float32(rng.normal(size=(len(SIGMAS), 300))) for _ in range(4)]
    for features in runs:
        features[5] = as_float32(0.3 * features[3] + 0.2 * features[0])
    fitted = Fitted(profile_grams(profile_of(runs)), SIGMAS)((3, 0), 5)
    assert fitted.coefficients == pytest.approx((0.3, 0.2), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_shrinkage_is_the_factor_that_does_best_on_the_runs_left_out(seed: int) -> None:
    """Against a search over factors, with every fit and every error computed on the tensors."""
    runs = [smooth_run(10 * seed + r, noise=0.1) for r in range(3)]
    history, i = (4, 2), 7
    base = np.array(LinearInSigma(SIGMAS)(history, i).coefficients)

    def fit(kept_runs: list[np.ndarray]) -> np.ndarray:
        nodes = np.concatenate([run[list(history)] for run in kept_runs], axis=1)
        return np.linalg.lstsq(nodes.T, np.concatenate([run[i] for run in kept_runs]))[0]

    def left_out(factor: float) -> float:
        total = 0.0
        for r, run in enumerate(runs):
            c = base + factor * (fit(runs[:r] + runs[r + 1 :]) - base)
            total += float(np.sum((run[i] - c @ run[list(history)]) ** 2))
        return total

    factors = np.linspace(0, 1, 1001)
    best = factors[np.argmin([left_out(f) for f in factors])]
    fitted = Fitted(profile_grams(profile_of(runs)), SIGMAS, ridge=0.0)(history, i)
    np.testing.assert_allclose(fitted.coefficients, base + best * (fit(runs) - base), atol=2e-3)


def test_predictors_of_a_profile_of_zeros_are_finite() -> None:
    """Such a file is valid, and planning with it must not fail."""
    grams = profile_grams(profile_of([np.zeros((len(SIGMAS), 8))] * 2))
    for predict in (Affine(grams), Fitted(grams, SIGMAS)):
        assert np.isfinite(predict((3, 0), 5).coefficients).all()


def test_make_predictor_knows_its_names_and_no_others() -> None:
    grams = profile_grams(profile_of([smooth_run(1)]))
    kinds = {"hold": type(hold), "linear": LinearInSigma, "affine": Affine, "fitted": Fitted}
    for name, kind in kinds.items():
        assert isinstance(make_predictor(name, SIGMAS, grams), kind)
    assert isinstance(make_predictor("fitted", SIGMAS, None), LinearInSigma), "nothing measured, nothing fitted"
    with pytest.raises(ValueError, match=r"'cubic'.*hold, affine, linear, fitted"):
        make_predictor("cubic", SIGMAS, grams)


def test_mean_squares_are_those_of_the_tensors() -> None:
    runs = [smooth_run(r) for r in range(3)]
    weights = np.zeros(len(SIGMAS) + 1)
    weights[[2, 5, 6, -1]] = (0.3, -1.0, 0.8, 0.05)
    expected = [np.mean((weights[:-1] @ run + weights[-1]) ** 2) for run in runs]
    np.testing.assert_allclose(mean_squares(weights, profile_grams(profile_of(runs))), expected, rtol=1e-9)
    np.testing.assert_array_equal(mean_squares(np.zeros(len(SIGMAS) + 1), np.ones((3, 13, 13))), np.zeros(3))


# The corrector


def responses() -> dict[str, Response]:
    """Euler, and one whose outputs weigh differently, with signs, as a multistep sampler's do."""
    euler = euler_response(SCHEDULE)
    rng = np.random.default_rng(6)
    influence = euler.influence * rng.uniform(0.5, 1.5, euler.evaluations)[:, None]
    influence[3] *= -0.3
    return {"euler": euler, "other": Response(euler.sigmas, influence)}


RESPONSES = responses()


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
@pytest.mark.parametrize(("history", "t"), [((1, 0), 4), ((4, 2), 7), ((7, 4), 11)])
def test_corrector_makes_up_exactly_for_a_parabola_under_the_line(response: Response, history, t: int) -> None:
    """Features quadratic in sigma, predicted by a line: the gap's error is c (sigma - a) (sigma - b), known from t."""
    rng = np.random.default_rng(7)
    a, b, c = rng.normal(size=(3, 40))
    features = a + np.outer(SIGMAS, b) + np.outer(SIGMAS**2, c)
    with_constant = np.vstack([features, np.ones(40)])
    plain = GapModel(response, LinearInSigma(SIGMAS), False).work_out(history, t)
    mended = GapModel(response, LinearInSigma(SIGMAS), True).work_out(history, t)
    assert np.abs(mended.weights @ with_constant).max() < 1e-14
    assert np.abs(plain.weights @ with_constant).max() > 1e-6
    assert mended.correction != 0.0


def test_corrector_makes_up_exactly_for_a_line_under_holding() -> None:
    rng = np.random.default_rng(8)
    features = rng.normal(size=40) + np.outer(SIGMAS, rng.normal(size=40))
    gap = GapModel(RESPONSES["euler"], hold, True).work_out((3, 1), 6)
    np.testing.assert_allclose(gap.weights[:-1] @ features, 0.0, atol=1e-14)


def test_shape_weights_by_hand() -> None:
    """sigmas 4 3 2 1, influences 1: held from 0, the errors of 1 and 2 are -1 and -2 where 3 shows -3: w = 3/3."""
    held = shape_weights(np.array([[4.0, 3.0, 2.0, 1.0]]), np.ones((1, 2)), np.ones((1, 1), bool))
    assert held == pytest.approx([1.0])
    # Line through 0 and 1: at 2 it errs by (-2) (-1) = 2, at 3 by (-3) (-2) = 6. Used or not is for each gap to say:
    # held from 1, the error of 2 is -1 where 3 shows -2.
    lines = np.array([[3.0, 4.0, 2.0, 1.0]] * 2)
    assert shape_weights(lines, np.ones((2, 1)), np.array([[True, True], [True, False]])) == pytest.approx(
        [1 / 3, 1 / 2]
    )
    # An evaluation at the newest node's own sigma shows nothing.
    assert shape_weights(np.array([[4.0, 3.0, 4.0]]), np.ones((1, 1)), np.ones((1, 1), bool)) == 0.0


def predictors(runs: list[np.ndarray]) -> dict[str, Predictor]:
    grams = profile_grams(profile_of(runs))
    return {name: make_predictor(name, SIGMAS, grams) for name in ("hold", "linear", "affine", "fitted")}


@pytest.mark.parametrize("name", ["hold", "linear", "affine", "fitted"])
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
def test_gap_weights_are_the_position_error_of_the_tensors(response: Response, name: str, corrector: bool) -> None:
    """Walk the gap with the recorded features: what x lacks at its end is weights @ features."""
    runs = [smooth_run(20 + r) for r in range(3)]
    gaps = GapModel(response, predictors(runs)[name], corrector, profile_grams(profile_of(runs)))
    for history, t in [((0,), 3), ((1, 0), 4), ((5, 3), 8), ((8, 7), 12), ((4, 3), 5)]:
        gap = gaps.work_out(history, t)
        assert len(gap.predictions) == t - history[0] - 1
        for features in runs:
            error = np.zeros(features.shape[1])
            for i, prediction in enumerate(gap.predictions, start=history[0] + 1):
                error += response.end[i] * (features[i] - apply(prediction, history, features))
            if gap.closing is not None:
                seen = features[t] - apply(gap.closing, history, features)
                error -= response.end[t] * gap.correction * seen
            found = gap.weights[:-1] @ features + gap.weights[-1]
            np.testing.assert_allclose(found, error, atol=1e-13)
            arriving = np.zeros(features.shape[1])
            for i, prediction in enumerate(gap.predictions, start=history[0] + 1):
                arriving += response.influence[i, t] * (features[i] - apply(prediction, history, features))
            np.testing.assert_allclose(gap.arriving[:-1] @ features + gap.arriving[-1], arriving, atol=1e-13)


def test_fitted_corrector_weight_is_least_squares_where_all_runs_agree() -> None:
    features = smooth_run(30)
    grams = profile_grams(profile_of([features] * 3))
    response, history, t = RESPONSES["euler"], (4, 2), 7
    gap = GapModel(response, LinearInSigma(SIGMAS), True, grams).work_out(history, t)
    plain = GapModel(response, LinearInSigma(SIGMAS), False).work_out(history, t)
    error = plain.weights[:-1] @ features
    seen = features[t] - apply(LinearInSigma(SIGMAS)(history, t), history, features)
    expected = float(seen @ error / (seen @ seen))
    assert gap.correction * response.end[t] == pytest.approx(expected, rel=1e-6)
    shape = GapModel(response, LinearInSigma(SIGMAS), True).work_out(history, t)
    assert mean_squares(gap.weights, grams)[0] < mean_squares(shape.weights, grams)[0]


def left_out_best(start: float, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """(best factor, weight it gives) between a start and least squares of error on seen, by trying 2001 factors."""
    along = np.array([float(s @ e) for s, e in pairs])
    length = np.array([float(s @ s) for s, e in pairs])
    factors = np.linspace(0, 1, 2001)
    left_out = np.zeros(2001)
    for r in range(len(pairs)):
        others = np.arange(len(pairs)) != r
        weights = start + factors * (along[others].sum() / length[others].sum() - start)
        left_out += weights**2 * length[r] - 2 * weights * along[r]  # |e - w s|^2 but for the constant |e|^2
    best = float(factors[np.argmin(left_out)])
    return best, start + best * (along.sum() / length.sum() - start)


def test_corrector_weight_is_shrunk_to_its_shape_by_the_runs_left_out() -> None:
    """Against a search over factors on the tensors, where the fit is worth something, nothing, and a part."""
    response, history, t = RESPONSES["euler"], (4, 2), 7
    line = LinearInSigma(SIGMAS)
    shape = GapModel(response, line, True).work_out(history, t).correction * response.end[t]
    plain = GapModel(response, line, False).work_out(history, t).weights[:-1]
    factors = []
    for seed in range(40):
        runs = [smooth_run(100 * seed + r, noise=0.3 * (r + 1), elements=6) for r in range(2 + seed % 3)]
        pairs = [(run[t] - apply(line(history, t), history, run), plain @ run) for run in runs]
        factor, expected = left_out_best(shape, pairs)
        found = GapModel(response, line, True, profile_grams(profile_of(runs))).work_out(history, t)
        assert found.correction * response.end[t] == pytest.approx(expected, abs=1e-3 * abs(expected - shape) + 1e-5)
        factors.append(factor)
    assert factors.count(0.0) >= 1
    assert factors.count(1.0) >= 1
    assert sum(0.0 < f < 1.0 for f in factors) > 2


def test_no_correction_where_it_would_tell_nothing_or_could_do_nothing() -> None:
    euler = RESPONSES["euler"]
    line = LinearInSigma(SIGMAS)
    weak = euler.influence.copy()
    weak[6] *= 1e-3
    wild = euler.influence.copy()
    wild[6] *= 0.02
    cases = {
        "switched off": (GapModel(euler, line, False), (3, 1), 6),
        "the model is asked something else from there on": (
            GapModel(euler, line, True, None, frozenset({0, 6})),
            (3, 1),
            6,
        ),
        "the run ends": (GapModel(euler, line, True), (8, 6), 12),
        "nothing was reused": (GapModel(euler, line, True), (3, 1), 4),
        "its output hardly moves the end": (GapModel(Response(SIGMAS, weak), line, True), (3, 1), 6),
        "it would have to be blown up": (GapModel(Response(SIGMAS, wild), line, True), (3, 1), 6),
    }
    assert GapModel(euler, line, True).work_out((3, 1), 6).correction != 0.0
    for name, (gaps, history, t) in cases.items():
        gap = gaps.work_out(history, t)
        assert gap.correction == 0.0, name
        assert gap.closing is None, name
