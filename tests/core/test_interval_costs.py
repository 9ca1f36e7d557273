"""The table of skipped interval costs, against each skipped interval worked out alone on explicit features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ertacache.erta import interval_costs as module
from ertacache.erta.interval_costs import Key, interval_costs, met
from ertacache.erta.planner import euler_response
from ertacache.erta.predictors import FittedLine, Hold, Line, Predictor, line
from ertacache.erta.response import ImpulseResponse
from ertacache.erta.schedules import possible_intervals
from ertacache.erta.simulation import MAX_CORRECTION, MAX_SLOPE, ErrorResponse, Simulation

COUNT = 10
SCHEDULE = 3.0 * np.linspace(1, 0, COUNT + 1) / (1 + 2.0 * np.linspace(1, 0, COUNT + 1))
EULER = euler_response(SCHEDULE)


def uneven() -> ImpulseResponse:
    """Two model calls at each sigma, as heun has them, two so close that no line is drawn, and an impulse response with
    signs, weak in one row."""
    sigmas = np.array([1.0, 0.9, 0.9, 0.7, 0.7, 0.699, 0.5, 0.4, 0.3, 0.1])
    weights = np.random.default_rng(3).uniform(0.5, 1.5, COUNT) * np.where(np.arange(COUNT) == 4, -0.3, 1.0)
    weights[7] *= 0.05
    return ImpulseResponse(sigmas, EULER.matrix * weights[:, None])


RESPONSES = [pytest.param(EULER, id="euler"), pytest.param(uneven(), id="uneven")]


def recorded(noise: float = 0.05, elements: int = 40) -> np.ndarray:
    """(3, M, n) features of runs of other sizes."""
    rng = np.random.default_rng(1)
    shapes = np.stack([np.ones(COUNT), SCHEDULE[:-1], np.sin(3 * SCHEDULE[:-1])])
    runs = np.array([1.0, 0.5, 2.0])[:, None, None] * rng.normal(0.4, 1.0, (3, elements, 3))
    features: np.ndarray = np.swapaxes(runs @ shapes, 1, 2) + noise * rng.normal(size=(3, COUNT, elements))
    return features


def simulation_of(
    features: np.ndarray,
    response: ImpulseResponse = EULER,
    deviation: float = 0.0,
    resets: frozenset[int] = frozenset({0}),
) -> Simulation:
    extended = np.concatenate([features, np.ones((len(features), 1, features.shape[-1]))], axis=1)
    grams = extended @ np.swapaxes(extended, 1, 2) / features.shape[-1]
    # A gain that has to be left alone: what it does depends on skipped intervals before the last two.
    error_response = ErrorResponse(
        np.full(COUNT, 7.0), deviation * (1.2 + np.sin(2.0 * np.arange(COUNT))), np.eye(COUNT)
    )
    return Simulation(response, grams, error_response, resets)


def mean_squares(errors: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.mean(errors**2, axis=-1)
    return found


class Alone:
    """One skipped interval on (T, M, n) features. ``across``: (T,) how far its closing model call's output changes
    across the error, per unit of impulse response.
    """

    def __init__(self, simulation: Simulation, features: np.ndarray, key: Key, slope: float | None) -> None:
        self.simulation, self.features = simulation, features
        self.history, self.t = key
        self.end, self.count = simulation.response.end, simulation.response.calls
        self.reused = range(self.history[0] + 1, self.t)
        self.slope = self.fitted() if slope is None else slope
        self.left = self.left_with(self.slope)
        self.arriving = mean_squares(self.left)
        deviation = simulation.error_response.deviation[min(self.t, self.count - 1)]
        self.across = deviation * np.sqrt(features.shape[-1] * self.arriving)

    def coefficients(self, i: int, slope: float) -> tuple[float, ...]:
        # Drawn for the whole skipped interval or not at all, its closing model call included.
        sigmas, last = self.simulation.response.sigmas, min(self.t, self.count - 1)
        drawn = len(line(sigmas, self.history, last, 1.0).coefficients) > 1
        return line(sigmas, self.history, i, slope if drawn else 0.0).coefficients

    def predicted(self, i: int, slope: float) -> np.ndarray:
        coefficients = self.coefficients(i, slope)
        parts = [c * self.features[:, n] for c, n in zip(coefficients, self.history, strict=False)]
        return np.asarray(np.sum(parts, axis=0))

    def left_with(self, slope: float) -> np.ndarray:
        parts = [self.end[i] * (self.features[:, i] - self.predicted(i, slope)) for i in self.reused]
        return np.asarray(np.sum(parts, axis=0))

    def fitted(self) -> float:
        held = self.left_with(0.0)
        moved = held - self.left_with(1.0)
        if not moved.any():
            return 0.0
        (best,), *_ = np.linalg.lstsq(moved.reshape(-1, 1), held.reshape(-1))
        return float(np.clip(best, 0.0, MAX_SLOPE))

    def corrected(self, corrector: bool = True) -> tuple[np.ndarray, float]:
        """(T,) squares left at the end, and the correction. The change across the error at t is an element of its
        own in the residual at t alone; besides what the correction makes of it, it enters the latent with output t."""
        weight = self.end[self.t] if self.t < self.count else 0.0
        own = (weight * self.across) ** 2 / self.features.shape[-1]
        left = np.concatenate([self.left, np.zeros((len(self.features), 1))], axis=1)
        best = 0.0
        if corrector and self.t < self.count and self.t not in self.simulation.resets:
            residual = self.features[:, self.t] - self.predicted(self.t, self.slope)
            residual = weight * np.concatenate([residual, self.across[:, None]], axis=1)
            (best,), *_ = np.linalg.lstsq(residual.reshape(-1, 1), left.reshape(-1))
            best = float(best) if abs(best) <= MAX_CORRECTION * len(self.reused) else 0.0
            left = left - best * residual
        return (left**2).sum(axis=-1) / self.features.shape[-1] + own, best

    def made_of_an_error(self) -> float:
        """Mean square that an error of the newest feature becomes wherever it is reused, per mean square of it and on
        top of what it is by being used itself."""
        itself = self.end[self.history[0]]
        reused = sum(self.end[i] * self.coefficients(i, self.slope)[0] for i in self.reused)
        return max(float((itself + reused) ** 2 - itself**2), 0.0)


def naive(
    simulation: Simulation, features: np.ndarray, keys: list[Key], slope: float | None, corrector: bool
) -> tuple[dict[Key, np.ndarray], list[float]]:
    """(T,) squares of each skipped interval, and the corrections made."""
    alone = {key: Alone(simulation, features, key, slope) for key in keys}
    squares, corrections = {}, []
    for key, interval in alone.items():
        squares[key], correction = interval.corrected(corrector)
        corrections.append(correction)
        history, _ = key
        if len(history) > 1:
            before = [other.arriving for (h, t), other in alone.items() if (h[0], t) == (history[1], history[0])]
            arrived = np.mean(before, axis=0) if before else 0.0
            squares[key] += arrived * simulation.error_response.deviation[history[0]] ** 2 * interval.made_of_an_error()
    return squares, corrections


def at_one_sigma(simulation: Simulation, key: Key) -> bool:
    """Whether all that a skipped interval reuses lies at the newest's own sigma: its line changes nothing, whatever the
    slope.
    """
    (s, *_), t = key
    return bool(np.ptp(simulation.response.sigmas[s:t]) == 0.0)


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("resets", [frozenset({0}), frozenset({0, 5})], ids=["no reset", "a reset"])
@pytest.mark.parametrize("slope", [None, 0.0, 1.0])
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("deviation", [0.0, 3.0])
def test_costs_are_those_of_each_interval_alone(
    response: ImpulseResponse, resets: frozenset[int], slope: float | None, corrector: bool, deviation: float
) -> None:
    features = recorded()
    simulation = simulation_of(features, response, deviation, resets)
    keys = possible_intervals(COUNT, 6, {0}, resets)
    assert any(t == COUNT for _, t in keys)
    assert any(len(history) == 1 for history, _ in keys)
    found = interval_costs(simulation, keys, slope, corrector)
    squares, corrections = naive(simulation, features, keys, slope, corrector)
    assert list(found) == keys
    sloped = [key for key in keys if not at_one_sigma(simulation, key)]
    expected = [np.mean(squares[key]) for key in sloped]
    np.testing.assert_allclose([found[key] for key in sloped], expected, rtol=1e-7, atol=1e-13)
    assert not corrector or np.count_nonzero(corrections) > len(keys) / 4


def test_cases_have_slopes_at_and_between_their_limits_and_corrections_that_are_refused() -> None:
    """Otherwise the comparison above would leave some of it out."""
    features = recorded()
    keys = possible_intervals(COUNT, 6, {0}, {0})
    alone = [Alone(simulation_of(features, uneven(), 3.0), features, key, None) for key in keys]
    shares = [interval.slope for interval in alone]
    assert 0.0 in shares
    assert MAX_SLOPE in shares
    assert any(0.1 < share < 1.4 for share in shares)
    assert any(interval.corrected()[1] == 0.0 for interval in alone if interval.t < COUNT)


def test_an_interval_whose_line_changes_nothing_is_held_as_in_the_simulation() -> None:
    features = recorded()
    simulation = simulation_of(features, uneven())
    keys = [key for key in possible_intervals(COUNT, 6, {0}, {0}) if at_one_sigma(simulation, key)]
    assert len(keys) > 3
    fitted, held = (list(interval_costs(simulation, keys, slope, True).values()) for slope in (None, 0.0))
    np.testing.assert_allclose(fitted, held, rtol=1e-9)


def test_exact_predictions_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 1, 40)) + SCHEDULE[:-1, None] * rng.normal(size=(3, 1, 40))
    keys = [key for key in possible_intervals(COUNT, 6, {0}, {0}) if len(key[0]) > 1]
    for slope in (None, 1.0):
        costs = interval_costs(simulation_of(features), keys, slope, False)
        assert max(costs.values()) < 1e-12
    assert min(interval_costs(simulation_of(features), keys, 0.0, False).values()) > 1e-6


@pytest.mark.parametrize("key", [((0,), 3), ((2, 1), 5), ((6, 5), COUNT)])
@pytest.mark.parametrize("slope", [None, 0.0, 1.0])
@pytest.mark.parametrize("corrector", [False, True])
def test_cost_of_the_only_interval_is_the_square_that_the_simulation_finds(
    key: Key, slope: float | None, corrector: bool
) -> None:
    known: dict[float | None, type[Predictor]] = {None: FittedLine, 0.0: Hold, 1.0: Line}
    simulation = replace(
        simulation_of(recorded()[:1]), error_response=ErrorResponse(np.zeros(COUNT), np.zeros(COUNT), np.eye(COUNT))
    )
    compute = tuple(not key[0][0] < i < key[1] for i in range(COUNT))
    (square,) = simulation.fit(compute, known[slope], corrector).squares
    assert interval_costs(simulation, [key], slope, corrector)[key] == pytest.approx(square, rel=1e-8)


@pytest.mark.parametrize("corrector", [False, True])
def test_costs_are_the_same_however_many_intervals_are_worked_on_at_once(
    monkeypatch: pytest.MonkeyPatch, corrector: bool
) -> None:
    simulation = simulation_of(recorded(), deviation=3.0)
    keys = possible_intervals(COUNT, 6, {0}, {0})
    whole = interval_costs(simulation, keys, None, corrector)
    for numbers in (1, 25 * 3 * 7):
        monkeypatch.setattr(module, "MAX_NUMBERS", numbers)
        parts = interval_costs(simulation, keys, None, corrector)
        assert list(parts) == list(whole)
        np.testing.assert_allclose(list(parts.values()), list(whole.values()), rtol=1e-9)


def test_nothing_to_leave_out_costs_nothing() -> None:
    assert interval_costs(simulation_of(recorded()), [], None, True) == {}


def test_cost_over_runs_is_their_mean() -> None:
    simulation = simulation_of(recorded())
    keys = possible_intervals(COUNT, 6, {0}, {0})
    each = [interval_costs(replace(simulation, grams=gram[None]), keys, 0.0, False) for gram in simulation.grams]
    assert each[0] != each[1]
    for key, cost in interval_costs(simulation, keys, 0.0, False).items():
        assert cost == pytest.approx(np.mean([costs[key] for costs in each]), rel=1e-9)


# What the model meets


def test_a_sampler_whose_outputs_move_all_later_latents_alike_takes_nothing_back() -> None:
    keys = possible_intervals(COUNT, 5, {0}, {0})
    for response in (EULER, uneven()):
        np.testing.assert_array_equal(met(simulation_of(recorded(), response), keys, None), 1.0)


@pytest.mark.parametrize(("slope", "share"), [(None, 1.0), (0.0, 0.0)], ids=["line", "hold"])
def test_an_error_counts_by_what_the_model_meets_at_the_end_of_the_interval(
    slope: float | None, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the errors themselves, of a sampler whose every output moves every later latent by another amount."""
    monkeypatch.setattr(module, "MAX_NUMBERS", 8 * COUNT * 7)  # seven at once
    matrix = np.triu(np.random.default_rng(8).normal(size=(COUNT, COUNT + 1)), 1)
    response, features = ImpulseResponse(SCHEDULE[:-1], matrix), recorded()
    keys = possible_intervals(COUNT, 4, {0}, {0})
    found = met(simulation_of(features, response), keys, slope)
    assert found.max() == module.MOST_MET and (found == 1.0).any() and ((found > 1.0) & (found < module.MOST_MET)).any()
    for (history, t), ratio in zip(keys, found, strict=True):
        at, end = np.zeros_like(features[:, 0]), np.zeros_like(features[:, 0])
        for i in range(history[0] + 1, t):
            terms = zip(line(SCHEDULE[:-1], history, i, share).coefficients, history, strict=False)
            error = features[:, i] - sum(c * features[:, n] for c, n in terms)
            at, end = at + matrix[i, t] * error, end + matrix[i, -1] * error
        assert ratio == pytest.approx(np.clip(np.mean(at**2) / np.mean(end**2), 1.0, module.MOST_MET), rel=1e-6)
