"""The closed loop: what a cached run will do to itself, followed in the space of weights over recorded features.

A cached run evaluates its model at latents that are off, so what it computes is off as well, and what it predicts and
corrects from that too. With delta the position error at a computed model call t, taken in units of recorded features,

    F~_t = F_t + gain_t * delta + rho_t

where the answer along the error is a number, and the rest, rho_t, a direction of its own with the mean square
``spread_t^2 |delta|^2``. Errors that are alike are answered alike while sigma has not changed much: the inner product
of two of these directions is ``spread_t spread_s likeness_ts <delta_t, delta_s>``, so that errors of one sign add up.
Everything else about a sampler and a plan is linear, so a whole run is some matrix arithmetic on vectors of weights,
lengths are taken in the profile's Gram matrices, and the best slope and correction of each skipped interval are least
squares in what the run will really have at hand. Measured against runs of a small trained video model (make studies,
"predicted"): rank correlation above 0.9 over schedules, speeds, predictors and samplers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .predictors import History, Prediction, Predictor, line
from .response import ImpulseResponse
from .schedules import Schedule

# A correction beyond this many times the skipped interval's length is drawn from an output that hardly moves the
# latent.
MAX_CORRECTION = 4.0

# A slope above the line's own is taken from noise.
MAX_SLOPE = 1.5

# Errors that grow beyond all measure are followed up to here (weights, and mean squares), where squares stay finite.
MAX_WEIGHT, MAX_SQUARE = 1e40, 1e100


@dataclass(frozen=True)
class ErrorResponse:
    """How the model answers to a position error, per model call. gain, spread: (M,), in units of 1 / sigma.

    correlation: (M, M), positive semidefinite with ones on its diagonal: how alike one error is answered at two
    model calls. The identity where each answer is taken to be a direction of its own.
    """

    gain: np.ndarray
    deviation: np.ndarray
    correlation: np.ndarray


@dataclass
class Fit:
    """What a schedule becomes. coefficients, offsets, corrections, misses: as in a Plan. squares: (T,) squared relative
    error of the final latent in each recorded run."""

    coefficients: list[tuple[float, ...]]
    offsets: list[float]
    corrections: list[float]
    residual_limits: list[float]
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Simulation:
    """One sampler's run on one profile.

    grams: (T, M + 1, M + 1) extended Gram matrices in units of the final latent's mean square. history resets: model
    calls at which what the model is asked changes, so that nothing older is used and no skipped interval is corrected.
    """

    response: ImpulseResponse
    grams: np.ndarray
    error_response: ErrorResponse
    resets: frozenset[int]

    def shape(self, compute: Schedule, predictor: Predictor | None, corrector: bool) -> Fit:
        """Follow a schedule and fit what it needs. predictor: None for the line with a slope fitted to each skipped
        interval.
        """
        return _Pass(self, compute, predictor, corrector).shape()

    def follow(self, compute: Schedule, found: Fit) -> Fit:
        """What becomes of a schedule with the coefficients and corrections that another loop gave it."""
        return _Pass(self, compute, None, True, found).shape()


class _Pass:
    """One pass through a schedule. Vectors have M + 1 + K entries: recorded features, the constant 1, and rho of each
    of the K computed model calls, whose inner products are ``across``."""

    def __init__(
        self,
        simulation: Simulation,
        compute: Schedule,
        predictor: Predictor | None,
        corrector: bool,
        given: Fit | None = None,
    ) -> None:
        """given: what is already decided, instead of being fitted."""
        self.simulation, self.compute, self.predictor, self.corrector, self.given = (
            simulation,
            compute,
            predictor,
            corrector,
            given,
        )
        self.count = len(compute)
        self.computed = [i for i in range(self.count) if compute[i]]
        self.known = self.count + 1
        self.size = self.known + len(self.computed)
        self.across = np.zeros((len(simulation.grams), len(self.computed), len(self.computed)))
        self.deltas = np.zeros((len(self.computed), self.size))  # position errors at computed model calls
        self.used = np.zeros((self.count, self.size))  # used minus true, per model call
        self.seen: dict[int, np.ndarray] = {}  # what computed model calls will really give
        nothing = [0.0] * self.count
        self.found = Fit([()] * self.count, nothing, list(nothing), list(nothing))

    def shape(self) -> Fit:
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
        end = self.simulation.response.end @ self.used
        self.found.squares = np.maximum(self._inner(end, end), 0.0)
        return self.found

    def _inner(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(T,) inner products of two vectors, (T, N) of one with each row of N."""
        known = self.known
        products: np.ndarray = (one[:known] @ self.simulation.grams) @ other[..., :known].T
        products += (one[known:] @ self.across) @ other[..., known:].T
        return products

    def _compute(self, i: int, history: History, slope: float) -> None:
        delta = np.clip(self.simulation.response.matrix[:i, i] @ self.used[:i], -MAX_WEIGHT, MAX_WEIGHT)
        given = self.simulation.error_response.gain[i] * delta
        if self.simulation.response.stochastic:
            # Fresh noise takes the latent to where earlier answers are neither repeated nor undone.
            given[self.known :] = 0.0
        given[i] += 1.0
        given[self.known + len(self.seen)] = 1.0
        self._answer(i, delta)
        self.seen[i] = given
        self.used[i] = given
        if history and not self.compute[i - 1]:
            told = given - self._predict(history, i, slope)
            size = np.maximum(self.simulation.grams[:, i, i], 1e-30)
            self.found.residual_limits[i] = float(np.sqrt(np.max(np.maximum(self._inner(told, told), 0.0) / size)))
            self.found.corrections[i] = self._correction(i, history, given, told)
            self.used[i] += self.found.corrections[i] * told
        self.used[i, i] -= 1.0

    def _answer(self, i: int, delta: np.ndarray) -> None:
        """The inner products of the rho of model call i with those before it."""
        error_response, own = self.simulation.error_response, len(self.seen)
        here = self.computed[: own + 1]
        self.deltas[own] = delta
        scale = error_response.deviation[i] * error_response.deviation[here] * error_response.correlation[i, here]
        products = np.clip(scale * self._inner(delta, self.deltas[: own + 1]), -MAX_SQUARE, MAX_SQUARE)
        products[:, own] = np.maximum(products[:, own], 0.0)
        self.across[:, own, : own + 1] = self.across[:, : own + 1, own] = products

    def _correction(self, i: int, history: History, given: np.ndarray, told: np.ndarray) -> float:
        """How much of what output i told is handed to the sampler on top of it: the least is left of all errors so far.

        Zero where output i hardly moves the latent any more, so that it cannot mend what the skipped interval did.
        """
        if self.given:
            return self.given.corrections[i]
        end = self.simulation.response.end
        if not self.corrector or abs(end[i]) <= 1e-2 * np.abs(end[history[0] + 1 : i]).max():
            return 0.0
        left = end[:i] @ self.used[:i] + end[i] * given
        left[i] -= end[i]
        length = self._inner(told, told).sum()
        factor = -float(self._inner(told, left).sum() / length / end[i]) if length > 0.0 else 0.0
        return factor if abs(factor) <= MAX_CORRECTION * (i - history[0] - 1) else 0.0

    def _predict(self, history: History, i: int, slope: float) -> np.ndarray:
        sigmas = self.simulation.response.sigmas
        if self.given:
            prediction = Prediction(self.given.coefficients[i], self.given.offsets[i])
        else:
            prediction = self.predictor(history, i) if self.predictor else line(sigmas, history, i, slope)
        self.found.coefficients[i], self.found.offsets[i] = prediction
        predicted = np.zeros(self.size)
        for coefficient, node in zip(prediction.coefficients, history, strict=False):
            predicted += coefficient * self.seen[node]
        predicted[self.count] += prediction.offset
        return predicted

    def _slope(self, history: History, first: int) -> float:
        """The share of the line's slope that leaves the least of the skipped interval that begins at ``first``."""
        if self.given or self.predictor or len(history) < 2:
            return 1.0
        sigmas, end = self.simulation.response.sigmas, self.simulation.response.end
        last = next((i for i in range(first, self.count) if self.compute[i]), self.count)
        newest, before = self.seen[history[0]], self.seen[history[1]]
        missed, moved = np.zeros(self.size), 0.0
        for i in range(first, last):
            coefficients = line(sigmas, history, i, 1.0).coefficients
            if len(coefficients) < 2:
                return 0.0
            missed[i] = end[i]
            moved -= end[i] * coefficients[1]
        step = moved * (newest - before)
        missed -= end[first:last].sum() * newest
        length = self._inner(step, step).sum()
        return float(np.clip(self._inner(missed, step).sum() / length, 0.0, MAX_SLOPE)) if length > 0.0 else 0.0
