"""A cached run, simulated in the space of weights over recorded features (docs/method.md, Simulation).

A cached run calls its model at latents that are off: with a position error delta at a computed call t, the output is
``F_t + gain_t delta + rho_t``, where rho_t is a direction of its own. All else is linear.
"""

from dataclasses import dataclass, field

import numpy as np

from .predictors import HELD, History, Prediction, Predictor, line
from .response import ImpulseResponse
from .schedules import Schedule

# A correction beyond this many times the interval's length comes from an output that hardly moves the latent.
MAX_CORRECTION = 4.0

# A slope above the line's own is fitted to noise.
MAX_SLOPE = 1.5

# Errors that grow without bound are followed up to here (weights, and mean squares), where squares stay finite.
MAX_WEIGHT, MAX_SQUARE = 1e40, 1e100


@dataclass(frozen=True)
class ErrorResponse:
    """How the model's output responds to a position error, per call. gain, deviation: (M,), in units of 1 / sigma.

    gain: the change along the error. deviation: the standard deviation of the change across it, per unit of error.
    correlation: (M, M), positive semidefinite with ones on its diagonal, of the changes that one error causes at two
    calls; the identity where they are taken to be independent.
    """

    gain: np.ndarray
    deviation: np.ndarray
    correlation: np.ndarray


@dataclass
class Fit:
    """What a schedule needs and what becomes of it. coefficients, offsets, corrections: as in a Plan. residuals: (M,)
    largest residual over the recorded runs at each computed call, over the feature's length. squares: (T,) squared
    relative error of the final latent in each recorded run."""

    coefficients: list[tuple[float, ...]]
    offsets: list[float]
    corrections: list[float]
    residuals: list[float]
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Simulation:
    """One sampler's run on one profile.

    grams: (T, M + 1, M + 1) extended Gram matrices in units of the final latent's mean square. resets: calls at which
    what the model is asked changes, so that nothing older is used and no interval is corrected.
    """

    response: ImpulseResponse
    grams: np.ndarray
    error_response: ErrorResponse
    resets: frozenset[int]

    def fit(self, compute: Schedule, predictor: type[Predictor], corrector: bool) -> Fit:
        """Follow a schedule, and fit the slopes and corrections that leave the least error of the final latent."""
        return _Pass(self, compute, predictor(self.response.sigmas, self.grams), corrector).follow()

    def follow(self, compute: Schedule, fit: Fit) -> Fit:
        """What becomes of a schedule with the coefficients and corrections that another simulation fitted."""
        return _Pass(self, compute, None, True, fit).follow()


@dataclass
class _Pass:
    """One pass through a schedule. Vectors have M + 1 + K entries: recorded features, the constant 1, and rho of each
    of the K computed calls, whose inner products are ``across``. decided: coefficients and corrections to use; then
    nothing is fitted and predictor is None."""

    simulation: Simulation
    compute: Schedule
    predictor: Predictor | None
    corrector: bool
    decided: Fit | None = None

    def __post_init__(self) -> None:
        self.end = self.simulation.response.end
        self.count = len(self.compute)
        self.computed = [i for i in range(self.count) if self.compute[i]]
        self.known = self.count + 1
        self.size = self.known + len(self.computed)
        self.across = np.zeros((len(self.simulation.grams), len(self.computed), len(self.computed)))
        self.deltas = np.zeros((len(self.computed), self.size))  # position errors at computed calls
        self.used = np.zeros((self.count, self.size))  # used minus true, per call
        self.seen: dict[int, np.ndarray] = {}  # what computed calls will really give
        nothing = [0.0] * self.count
        self.found = Fit([()] * self.count, nothing, list(nothing), list(nothing))

    def follow(self) -> Fit:
        history: History = ()
        slope = 1.0
        for i in range(self.count):
            if i in self.simulation.resets:
                history = ()
            if self.compute[i]:
                self._compute(i, history, slope)
                history = (i, *history)[:2]
            else:
                if self.compute[i - 1]:
                    slope = self._slope(history, i)
                self.used[i] = self._predict(history, i, slope)
                self.used[i, i] -= 1.0
        error = self.end @ self.used
        self.found.squares = np.maximum(self._inner(error, error), 0.0)
        return self.found

    def _inner(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(T,) inner products of two vectors, (T, N) of one with each row of N."""
        known = self.known
        products: np.ndarray = (one[:known] @ self.simulation.grams) @ other[..., :known].T
        products += (one[known:] @ self.across) @ other[..., known:].T
        return products

    def _compute(self, i: int, history: History, slope: float) -> None:
        delta = self.simulation.response.matrix[:i, i] @ self.used[:i]
        delta = _within(delta, MAX_WEIGHT)
        output = self.simulation.error_response.gain[i] * delta
        if self.simulation.response.stochastic:
            # Fresh noise takes the latent to where earlier changes are neither repeated nor undone.
            output[self.known :] = 0.0
        output[i] += 1.0
        output[self.known + len(self.seen)] = 1.0
        if not all(self.compute[:i]):  # else the latent is not off yet
            self._add_direction(i, delta)
        self.seen[i] = output
        self.used[i] = output
        if history and not self.compute[i - 1]:
            residual = output - self._predict(history, i, slope)
            size = np.maximum(self.simulation.grams[:, i, i], 1e-30)
            square = np.maximum(self._inner(residual, residual), 0.0)
            self.found.residuals[i] = float(np.sqrt(np.max(square / size)))
            self.found.corrections[i] = self._correction(i, history, output, residual)
            self.used[i] += self.found.corrections[i] * residual
        self.used[i, i] -= 1.0

    def _add_direction(self, i: int, delta: np.ndarray) -> None:
        """The inner products of the rho of call i with those before it."""
        response, own = self.simulation.error_response, len(self.seen)
        here = self.computed[: own + 1]
        self.deltas[own] = delta
        scale = response.deviation[i] * response.deviation[here] * response.correlation[i, here]
        products = _within(scale * self._inner(delta, self.deltas[: own + 1]), MAX_SQUARE)
        products[:, own] = np.maximum(products[:, own], 0.0)
        self.across[:, own, : own + 1] = self.across[:, : own + 1, own] = products

    def _correction(self, i: int, history: History, output: np.ndarray, residual: np.ndarray) -> float:
        """The share of the residual of call i that, handed to the sampler on top of output i, leaves the least error.

        Zero where output i hardly moves the latent any more, so that it cannot correct what the interval did.
        """
        if self.decided:
            return self.decided.corrections[i]
        end = self.end
        if not self.corrector or abs(end[i]) <= 1e-2 * np.abs(end[history[0] + 1 : i]).max():
            return 0.0
        left = end[:i] @ self.used[:i] + end[i] * output
        left[i] -= end[i]
        length = self._inner(residual, residual).sum()
        factor = -float(self._inner(residual, left).sum() / length / end[i]) if length > 0.0 else 0.0
        return factor if abs(factor) <= MAX_CORRECTION * (i - history[0] - 1) else 0.0

    def _predict(self, history: History, i: int, slope: float) -> np.ndarray:
        prediction = HELD
        if self.decided:
            prediction = Prediction(self.decided.coefficients[i], self.decided.offsets[i])
        elif self.predictor:
            prediction = self.predictor.predict(history, i, slope)
        self.found.coefficients[i], self.found.offsets[i] = prediction
        predicted = np.zeros(self.size)
        for coefficient, node in zip(prediction.coefficients, history, strict=False):
            predicted += coefficient * self.seen[node]
        predicted[self.count] += prediction.offset
        return predicted

    def _slope(self, history: History, first: int) -> float:
        """The predictor's own share of the line's slope, or the one that leaves the least of the interval at first."""
        if self.predictor is None or len(history) < 2:
            return 1.0
        if self.predictor.slope is not None:
            return self.predictor.slope
        sigmas, end = self.simulation.response.sigmas, self.end
        last = next((i for i in range(first, self.count) if self.compute[i]), self.count)
        newest, before = self.seen[history[0]], self.seen[history[1]]
        left, moved = np.zeros(self.size), 0.0
        for i in range(first, last):
            coefficients = line(sigmas, history, i, 1.0).coefficients
            if len(coefficients) < 2:
                return 0.0
            left[i] = end[i]
            moved -= end[i] * coefficients[1]
        step = moved * (newest - before)
        left -= end[first:last].sum() * newest
        length = self._inner(step, step).sum()
        return float(np.clip(self._inner(left, step).sum() / length, 0.0, MAX_SLOPE)) if length > 0.0 else 0.0


def _within(values: np.ndarray, most: float) -> np.ndarray:
    """Clipped to -most .. most; np.clip takes three times as long."""
    found: np.ndarray = np.minimum(np.maximum(values, -most), most)
    return found
