"""Simulation, against runs that are really stepped through: explicit features, float64, noise where there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ertacache.erta.planner import euler_response
from ertacache.erta.predictors import PREDICTORS, FittedLine, Hold, Predictor, line
from ertacache.erta.response import ImpulseResponse
from ertacache.erta.schedules import Schedule, histories
from ertacache.erta.simulation import MAX_CORRECTION, MAX_SLOPE, ErrorResponse, Fit, Simulation

COUNT = 12
SCHEDULE = 3.0 * np.linspace(1, 0, COUNT + 1) / (1 + 2.0 * np.linspace(1, 0, COUNT + 1))
SIGMAS, STEPS = SCHEDULE[:-1], np.diff(SCHEDULE)
FIRST = frozenset({0})

Model = Callable[[int, np.ndarray], np.ndarray]
"""(model call, x) -> the derivative there."""

Sampler = Callable[[Model], np.ndarray]
"""One whole run from x = 0; its last x."""


def euler(model: Model) -> np.ndarray:
    x = np.zeros(())
    for e, step in enumerate(STEPS):
        x = x + step * model(e, x)
    return x


def two_step(model: Model) -> np.ndarray:
    """Adams-Bashforth with the weights of equal steps."""
    x, before = np.zeros(()), np.zeros(())
    for e, step in enumerate(STEPS):
        d = model(e, x)
        x = x + step * (1.5 * d - 0.5 * before if e else d)
        before = d
    return x


def two_step_response() -> ImpulseResponse:
    """An output moves the latent by its own step, and half of the next one is taken back."""
    matrix = np.zeros((COUNT, COUNT + 1))
    for i in range(COUNT):
        matrix[i, i + 1 :] = STEPS[i] * (1.5 if i else 1.0)
        matrix[i, i + 2 :] -= 0.5 * STEPS[i + 1] if i + 1 < COUNT else 0.0
    return ImpulseResponse(SIGMAS, matrix)


EULER = euler_response(SCHEDULE)
SAMPLERS = [pytest.param(euler, EULER, id="euler"), pytest.param(two_step, two_step_response(), id="two steps")]


def responding(gain: float = 0.0, deviation: float = 0.0, correlated: float = 0.0) -> ErrorResponse:
    """Another number at each model call, so that none can be mistaken for its neighbour's.

    correlated: over how many model calls the responses to one error are correlated, 0 for independent ones.
    """
    places = np.arange(COUNT)
    apart = np.abs(places[:, None] - places[None, :])
    correlation = np.exp(-((apart / correlated) ** 2)) if correlated else np.eye(COUNT)
    return ErrorResponse(gain * np.cos(1.0 + 0.9 * places), deviation * (1.2 + np.sin(2.0 * places)), correlation)


Directions = Callable[[int, np.ndarray], np.ndarray]


def directions_across(error_response: ErrorResponse, elements: int, rng: np.random.Generator) -> Directions:
    """A model's linear response to an error (T, n) at call e: a random matrix that changes as ``correlation`` says."""
    mixing = np.linalg.cholesky(error_response.correlation + 1e-9 * np.eye(COUNT))
    parts = rng.normal(size=(COUNT, elements, elements)) / np.sqrt(elements)
    matrices = error_response.deviation[:, None, None] * np.tensordot(mixing, parts, 1)
    return lambda e, off: off @ matrices[e]


def recorded(seed: int = 0, elements: int = 60, noise: float = 0.05) -> np.ndarray:
    """(3, M, n) features that bend with sigma, of runs of other sizes, with a mean and some noise."""
    rng = np.random.default_rng(seed)
    shapes = np.stack([np.ones(COUNT), SIGMAS, np.sin(3 * SIGMAS), noise * rng.normal(size=COUNT)])
    runs = np.array([1.0, 0.5, 2.0])[:, None, None] * rng.normal(0.4, 1.0, (3, elements, 4))
    features: np.ndarray = np.swapaxes(runs @ shapes, 1, 2) + noise * rng.normal(size=(3, COUNT, elements))
    return features


def grams(features: np.ndarray) -> np.ndarray:
    """(T, M + 1, M + 1) per element, with the constant 1."""
    extended = np.concatenate([features, np.ones((len(features), 1, features.shape[-1]))], axis=1)
    found: np.ndarray = extended @ np.swapaxes(extended, 1, 2) / features.shape[-1]
    return found


def simulation_of(
    features: np.ndarray,
    response: ImpulseResponse = EULER,
    error_response: ErrorResponse | None = None,
    resets: frozenset[int] = FIRST,
) -> Simulation:
    return Simulation(response, grams(features), error_response or responding(), resets)


def schedule(text: str) -> Schedule:
    """C computed, r reused."""
    return tuple(letter == "C" for letter in text)


def predictor(name: str) -> type[Predictor]:
    return PREDICTORS["linear" if name == "line" else name]


@dataclass
class Trace:
    """One cached run. Arrays (2, T, n): along what was recorded, and in new directions. seen: what computed model calls
    gave. used: what the sampler got. error: of its last x."""

    seen: dict[int, np.ndarray]
    used: list[np.ndarray]
    error: np.ndarray

    @property
    def squares(self) -> np.ndarray:
        found: np.ndarray = np.mean(self.error.sum(axis=0) ** 2, axis=-1)
        return found


def cached_run(
    sampler: Sampler,
    features: np.ndarray,
    shape: Fit,
    compute: Schedule,
    error_response: ErrorResponse,
    resets: frozenset[int] = FIRST,
    across: Directions | None = None,
    forgets: bool = False,
) -> Trace:
    """Step through what a plan of this shape does, with a model whose output changes with x.

    forgets: the gain does not act on what earlier changes across the error have done to x.
    """
    true: list[np.ndarray] = []

    def recording(e: int, x: np.ndarray) -> np.ndarray:
        true.append(x)
        return features[:, e]

    end = sampler(recording)
    past = histories(compute, resets)
    trace = Trace({}, [], np.zeros(0))

    def predicted(e: int) -> np.ndarray:
        total = np.zeros((2, *features[:, e].shape))
        total[0] += shape.offsets[e]
        for coefficient, node in zip(shape.coefficients[e], past[e], strict=False):
            total += coefficient * trace.seen[node]
        return total

    def cached(e: int, x: np.ndarray) -> np.ndarray:
        if not compute[e]:
            trace.used.append(predicted(e))
            return trace.used[-1]
        off = np.broadcast_to(x, (2, *features[:, e].shape)).copy()
        off[0] -= true[e]
        seen = error_response.gain[e] * off
        if forgets:
            seen[1] = 0.0
        seen[0] += features[:, e]
        if across is not None:
            seen[1] += across(e, off.sum(axis=0))
        trace.seen[e] = seen
        correction = shape.corrections[e] * (seen - predicted(e)) if shape.coefficients[e] else 0.0
        trace.used.append(seen + correction)
        return trace.used[-1]

    trace.error = sampler(cached) - np.stack([end, np.zeros_like(end)])
    return trace


SCHEDULES = ["CCrrCrCrrrCC", "CrrCCrrrCCrr", "CCCrCrCrCrrC"]
NAMES = ["fitted", "line", "hold", "affine"]


# Squares


@pytest.mark.parametrize(("sampler", "response"), SAMPLERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("text", SCHEDULES)
def test_squares_are_those_of_a_run_stepped_through_whose_model_ignores_errors(
    sampler: Sampler, response: ImpulseResponse, name: str, corrector: bool, text: str
) -> None:
    features, compute = recorded(), schedule(text)
    shape = simulation_of(features, response).fit(compute, predictor(name), corrector)
    found = cached_run(sampler, features, shape, compute, responding()).squares
    np.testing.assert_allclose(shape.squares, found, rtol=1e-8)
    assert found.min() > 1e-8


@pytest.mark.parametrize(("sampler", "response"), SAMPLERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("resets", [{0}, {0, 4, 8}], ids=["no reset", "resets"])
def test_squares_are_those_of_a_run_whose_model_is_linear_in_its_own_error(
    sampler: Sampler, response: ImpulseResponse, name: str, corrector: bool, resets: set[int]
) -> None:
    features, compute, error_response = recorded(), schedule("CrrCCrrrCCrr"), responding(gain=4.0)
    simulation = simulation_of(features, response, error_response, frozenset(resets))
    shape = simulation.fit(compute, predictor(name), corrector)
    found = cached_run(sampler, features, shape, compute, error_response, frozenset(resets)).squares
    np.testing.assert_allclose(shape.squares, found, rtol=1e-8)
    without = cached_run(sampler, features, shape, compute, responding(), frozenset(resets)).squares
    assert np.abs(found / without - 1.0).max() > 0.1, "the error response has to matter for this to show anything"


@pytest.mark.parametrize(("sampler", "response"), SAMPLERS)
@pytest.mark.parametrize("gain", [0.0, -3.0])
@pytest.mark.parametrize("correlated", [0.0, 3.0], ids=["independent", "correlated"])
@pytest.mark.parametrize("name", ["fitted", "hold"])
def test_squares_are_the_mean_over_models_that_respond_in_random_directions(
    sampler: Sampler, response: ImpulseResponse, gain: float, correlated: float, name: str
) -> None:
    features, compute = recorded(elements=150), schedule("CCrrCrCrrrCr")
    error_response = responding(gain, 3.0, correlated)
    shape = simulation_of(features, response, error_response).fit(compute, predictor(name), True)
    rng = np.random.default_rng(0)
    models = [directions_across(error_response, 150, rng) for _ in range(150)]
    runs = [cached_run(sampler, features, shape, compute, error_response, across=model).squares for model in models]
    np.testing.assert_allclose(shape.squares, np.mean(runs, axis=0), rtol=0.03)
    without = cached_run(sampler, features, shape, compute, responding(gain)).squares
    assert (shape.squares / without).max() > 1.1, "the error response has to matter for this to show anything"


def test_under_fresh_noise_the_gain_acts_on_what_lies_along_recorded_features_alone() -> None:
    features, compute, error_response = recorded(elements=150), schedule("CCrrCrCrrrCr"), responding(-3.0, 3.0)
    noisy = replace(EULER, stochastic=True)
    shape = simulation_of(features, noisy, error_response).fit(compute, Hold, True)
    rng = np.random.default_rng(0)
    models = [directions_across(error_response, 150, rng) for _ in range(150)]
    runs = [
        cached_run(euler, features, shape, compute, error_response, across=model, forgets=True).squares
        for model in models
    ]
    np.testing.assert_allclose(shape.squares, np.mean(runs, axis=0), rtol=0.03)
    elsewhere = simulation_of(features, EULER, error_response).follow(compute, shape).squares
    assert np.abs(elsewhere / shape.squares - 1.0).max() > 0.05, "it has to matter for this to show anything"


def test_errors_of_one_sign_add_up_where_the_responses_to_them_are_correlated() -> None:
    features, compute = recorded(), schedule("CCrCrCrCrCrC")
    apart, together = (simulation_of(features, error_response=responding(0.0, 3.0, calls)) for calls in (0.0, 5.0))
    shape = apart.fit(compute, Hold, False)
    assert np.all(together.follow(compute, shape).squares > 1.2 * apart.follow(compute, shape).squares)


def test_an_interval_leaves_its_residuals_by_hand() -> None:
    """Steps of -1/12 and features 0 1 2 ... of one element: held from 0, outputs 1 and 2 are 1 + 2 too small."""
    response = euler_response(np.linspace(1, 0, COUNT + 1))
    features = np.arange(float(COUNT))[None, :, None]
    held = simulation_of(features, response).fit(schedule("CrrCCCCCCCCC"), Hold, False)
    assert held.squares == pytest.approx([(3 / 12) ** 2])
    # The residual of model call 3 is 3: once more on top of it makes up for all.
    mended = simulation_of(features, response).fit(schedule("CrrCCCCCCCCC"), Hold, True)
    assert mended.corrections[3] == pytest.approx(1.0)
    assert mended.squares == pytest.approx([0.0], abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_computing_everything_leaves_no_error_and_nothing_to_predict(name: str) -> None:
    features = recorded()
    shape = simulation_of(features, error_response=responding(4.0, 5.0)).fit((True,) * COUNT, predictor(name), True)
    assert shape.squares.tolist() == [0.0] * 3
    assert shape.coefficients == [()] * COUNT
    assert shape.offsets == shape.corrections == [0.0] * COUNT


# Slopes


def slopes(shape: Fit, compute: Schedule, resets: frozenset[int] = FIRST) -> dict[int, float]:
    """By the skipped interval's first model call, where there are two computed ones before it."""
    found = {}
    for i, history in enumerate(histories(compute, resets)):
        if not compute[i] and compute[i - 1] and len(history) > 1:
            ratio = (SIGMAS[i] - SIGMAS[history[0]]) / (SIGMAS[history[0]] - SIGMAS[history[1]])
            found[i] = -shape.coefficients[i][1] / ratio if len(shape.coefficients[i]) > 1 else 0.0
    return found


@pytest.mark.parametrize(("sampler", "response"), SAMPLERS)
@pytest.mark.parametrize("gain", [0.0, 4.0])
@pytest.mark.parametrize("corrector", [False, True])
def test_slope_is_least_squares_over_what_the_interval_leaves_at_the_end_in_all_runs(
    sampler: Sampler, response: ImpulseResponse, gain: float, corrector: bool
) -> None:
    inside = 0
    for seed, text in enumerate(SCHEDULES * 5):
        features, compute, error_response = recorded(seed, noise=0.1), schedule(text), responding(gain)
        shape = simulation_of(features, response, error_response).fit(compute, FittedLine, corrector)
        seen = cached_run(sampler, features, shape, compute, error_response).seen
        past = histories(compute)
        for first, found in slopes(shape, compute).items():
            newest, before = past[first][:2]
            interval = range(first, next((i for i in range(first, COUNT) if compute[i]), COUNT))
            left = np.sum([response.end[i] * (features[:, i] - seen[newest][0]) for i in interval], axis=0)
            reach = sum(response.end[i] * (SIGMAS[i] - SIGMAS[newest]) for i in interval)
            step = reach / (SIGMAS[newest] - SIGMAS[before]) * (seen[newest][0] - seen[before][0])
            (best,), *_ = np.linalg.lstsq(step.reshape(-1, 1), left.reshape(-1))
            assert found == pytest.approx(np.clip(best, 0.0, MAX_SLOPE), rel=1e-8), (text, first)
            inside += 0.0 < best < MAX_SLOPE
    assert inside >= 15


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.4, 1.0, 1.4, 3.0])
def test_slope_is_the_share_that_all_runs_follow_and_never_backwards_nor_too_steep(share: float) -> None:
    features = recorded(noise=0.0)
    step = (features[:, 1] - features[:, 0]) / (SIGMAS[1] - SIGMAS[0])
    for i in range(2, COUNT):
        features[:, i] = features[:, 1] + share * (SIGMAS[i] - SIGMAS[1]) * step
    shape = simulation_of(features).fit(schedule("CCrrrCCCCCCC"), FittedLine, False)
    (found,) = slopes(shape, schedule("CCrrrCCCCCCC")).values()
    assert found == pytest.approx(np.clip(share, 0.0, MAX_SLOPE), abs=1e-8)
    ratios = (SIGMAS[2:5] - SIGMAS[1]) / (SIGMAS[1] - SIGMAS[0])
    if share > 0.0:
        np.testing.assert_allclose([-shape.coefficients[i][1] for i in (2, 3, 4)], found * ratios)
        np.testing.assert_allclose([sum(shape.coefficients[i]) for i in (2, 3, 4)], 1.0)


@pytest.mark.parametrize("text", SCHEDULES)
def test_an_interval_has_one_slope_which_its_closing_call_is_compared_with_too(text: str) -> None:
    compute = schedule(text)
    shape = simulation_of(recorded()).fit(compute, FittedLine, True)
    found = slopes(shape, compute)
    share = 0.0
    for i, history in enumerate(histories(compute)):
        share = found.get(i, share)
        if shape.coefficients[i] and len(history) > 1:
            assert shape.coefficients[i] == pytest.approx(line(SIGMAS, history, i, share).coefficients), i
    assert found


def test_an_interval_in_which_the_line_would_be_drawn_too_far_is_held_from_its_first_call() -> None:
    sigmas = np.array([1.0, 0.999, 0.99, 0.95, *np.linspace(0.9, 0.1, COUNT - 4), 0.0])
    features = (sigmas[:-1, None] - sigmas[1]) * np.arange(1.0, 6.0)[None, None]
    one, two = (
        simulation_of(features, euler_response(sigmas)).fit(schedule(text), FittedLine, False).coefficients
        for text in ("CCrCCCCCCCCC", "CCrrCCCCCCCC")
    )
    assert len(one[2]) == 2
    assert two[2:4] == [(1.0,), (1.0,)]


# Corrections


@pytest.mark.parametrize(("sampler", "response"), SAMPLERS)
@pytest.mark.parametrize("gain", [0.0, 4.0])
@pytest.mark.parametrize("name", NAMES)
def test_correction_is_least_squares_over_all_that_is_wrong_so_far(
    sampler: Sampler, response: ImpulseResponse, gain: float, name: str
) -> None:
    made = 0
    for seed, text in enumerate(SCHEDULES * 2):
        features, compute, error_response = recorded(seed), schedule(text), responding(gain)
        shape = simulation_of(features, response, error_response).fit(compute, predictor(name), True)
        trace = cached_run(sampler, features, shape, compute, error_response)
        past = histories(compute)
        for t in [i for i in range(1, COUNT) if shape.coefficients[i] and compute[i]]:
            nodes = zip(shape.coefficients[t], past[t], strict=False)
            residual = trace.seen[t][0] - sum(c * trace.seen[n][0] for c, n in nodes) - shape.offsets[t]
            left = sum(response.end[i] * (trace.used[i][0] - features[:, i]) for i in range(t))
            left = left + response.end[t] * (trace.seen[t][0] - features[:, t])
            (best,), *_ = np.linalg.lstsq(response.end[t] * residual.reshape(-1, 1), -left.reshape(-1))
            assert shape.corrections[t] == pytest.approx(best, rel=1e-6), (text, t)
            made += 1
    assert made >= 6


def test_correction_counts_the_new_direction_of_what_it_is_drawn_from() -> None:
    """Least squares with one element more: the output's own new direction, wrong before anything is put on top."""
    features, compute, error_response = recorded(), schedule("CCrrCCCCCCCC"), responding(deviation=8.0)
    shape = simulation_of(features, error_response=error_response).fit(compute, Hold, True)
    error = sum(EULER.end[i] * (features[:, 1] - features[:, i]) for i in (2, 3))
    residual = EULER.end[4] * (features[:, 4] - features[:, 1])
    new = EULER.end[4] * error_response.deviation[4] * np.linalg.norm(error, axis=-1)
    one = np.concatenate([residual.reshape(-1), new])
    (best,), *_ = np.linalg.lstsq(one[:, None], -np.concatenate([np.reshape(error, -1), new]))
    assert shape.corrections[4] == pytest.approx(best, rel=1e-8)
    quiet = simulation_of(features).fit(compute, Hold, True).corrections[4]
    assert abs(best) < 0.9 * abs(quiet), "a residual that is mostly new direction is worth less"


def held_with(share: float, length: int, weak: float = 1.0) -> Fit:
    """Held from 0 over ``length`` model calls that all have the same residual a, the next ``share`` of it; there the
    impulse response is ``weak`` of the others'. The correction is then length / share / weak."""
    even = euler_response(np.linspace(1, 0, COUNT + 1))
    matrix = even.matrix.copy()
    matrix[length + 1] *= weak
    features = np.zeros((1, COUNT, 5))
    features[:, 1 : length + 1] = np.arange(1.0, 6.0)
    features[:, length + 1] = share * np.arange(1.0, 6.0)
    compute = tuple(not 1 <= i <= length for i in range(COUNT))
    return simulation_of(features, ImpulseResponse(even.sigmas, matrix)).fit(compute, Hold, True)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_correction_beyond_its_limit_is_refused(length: int, sign: float) -> None:
    t, most = length + 1, MAX_CORRECTION * length
    near = held_with(sign * length / (0.99 * most), length)
    assert near.corrections[t] == pytest.approx(sign * 0.99 * most)
    assert near.coefficients[t] == (1.0,)
    beyond = held_with(sign * length / (1.01 * most), length)
    assert beyond.corrections[t] == 0.0
    assert beyond.coefficients[t] == (1.0,), "what it is compared with all the same"
    assert beyond.squares[0] == pytest.approx((length / COUNT) ** 2 * 11.0)


def test_no_correction_by_an_output_that_hardly_moves_the_latent() -> None:
    enough, little = (held_with(100.0, 2, weak) for weak in (0.011, 0.009))
    assert enough.corrections[3] == pytest.approx(2 / 1.1)
    assert (little.corrections[3], little.coefficients[3]) == (0.0, (1.0,))


def test_nothing_is_corrected_where_nothing_was_reused_or_the_model_is_asked_something_else() -> None:
    features, compute = recorded(), schedule("CCrrCCrrCCrr")
    shape = simulation_of(features).fit(compute, FittedLine, True)
    assert [i for i in range(COUNT) if shape.corrections[i]] == [4, 8]
    reset = simulation_of(features, resets=frozenset({0, 4})).fit(compute, FittedLine, True)
    assert [i for i in range(COUNT) if reset.corrections[i]] == [8]
    assert reset.coefficients[4] == ()
    off = simulation_of(features).fit(compute, FittedLine, False)
    assert off.corrections == [0.0] * COUNT
    assert [i for i in range(COUNT) if off.coefficients[i]] == [2, 3, 4, 6, 7, 8, 10, 11]


# Residuals


@pytest.mark.parametrize(("sampler", "response"), SAMPLERS)
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_residuals_are_the_largest_that_a_recorded_run_has_at_the_call_that_ends_an_interval(
    sampler: Sampler, response: ImpulseResponse, corrector: bool, name: str
) -> None:
    features, compute, error_response = recorded(), schedule("CCrrCrCrrrCC"), responding(gain=4.0)
    shape = simulation_of(features, response, error_response).fit(compute, predictor(name), corrector)
    trace = cached_run(sampler, features, shape, compute, error_response)
    past = histories(compute)
    for t in range(COUNT):
        if t not in (4, 6, 10):
            assert shape.residuals[t] == 0.0, t
            continue
        nodes = zip(shape.coefficients[t], past[t], strict=False)
        residual = trace.seen[t][0] - sum(c * trace.seen[n][0] for c, n in nodes) - shape.offsets[t]
        found = np.linalg.norm(residual, axis=-1) / np.linalg.norm(features[:, t], axis=-1)
        assert shape.residuals[t] == pytest.approx(found.max(), rel=1e-6), t


# What was decided with another error response


@pytest.mark.parametrize(("sampler", "response"), SAMPLERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("corrector", [False, True])
def test_followed_shape_keeps_its_coefficients_and_has_the_errors_of_the_other_model(
    sampler: Sampler, response: ImpulseResponse, name: str, corrector: bool
) -> None:
    features, compute, error_response = recorded(), schedule("CCrrCrCrrrCC"), responding(gain=4.0)
    calm = simulation_of(features, response)
    shape = calm.fit(compute, predictor(name), corrector)
    followed = simulation_of(features, response, error_response).follow(compute, shape)
    for kept in ("coefficients", "offsets", "corrections"):
        assert list(getattr(followed, kept)) == list(getattr(shape, kept)), kept
    np.testing.assert_allclose(
        followed.squares, cached_run(sampler, features, shape, compute, error_response).squares, rtol=1e-8
    )
    assert np.abs(followed.squares / shape.squares - 1.0).max() > 0.1
    again = calm.follow(compute, shape)
    np.testing.assert_allclose(again.squares, shape.squares)
    np.testing.assert_allclose(again.residuals, shape.residuals)


# History resets


@pytest.mark.parametrize("name", NAMES)
def test_history_does_not_reach_over_a_reset(name: str) -> None:
    """Whatever was computed before it: what follows is predicted and fitted from what came after alone."""
    compute, features, other = schedule("CCrrCrrCCrrC"), recorded(0), recorded(1)
    other[:, 4:] = features[:, 4:]
    one, two = (
        simulation_of(each, resets=frozenset({0, 4})).fit(compute, predictor(name), False) for each in (features, other)
    )
    assert np.all(one.squares != two.squares)
    for i in range(4, COUNT):
        assert one.coefficients[i] == pytest.approx(two.coefficients[i], rel=1e-9), i
    assert len(one.coefficients[5]) == len(one.coefficients[6]) == 1
    through = simulation_of(features).fit(compute, predictor("line"), False)
    assert len(through.coefficients[5]) == 2
