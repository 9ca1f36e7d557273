"""What to put in the place of a feature that is not computed, how wrong that is, and how to make up for it.

Notation: a *gap* lies between two computed evaluations s < t; the evaluations between them are reused. ``history`` is
the tuple of computed evaluations up to s, newest first. A *weight vector* has one entry per evaluation and one more for
the constant 1, so any error that is linear in the recorded features has the squared length ``w' G w`` with the extended
Gram matrix G of a profile's table, correlations inside the gap included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .profile import Profile
from .response import Response

History = tuple[int, ...]

# A line is not drawn further than this many times the distance of its two points: past that it amplifies rounding.
MAX_EXTRAPOLATION = 16.0

# An affine fit beyond this comes from a feature that is nearly constant, and fits its rounding.
MAX_SCALE = 64.0


class Prediction(NamedTuple):
    """F_i is taken as ``sum_k coefficients[k] * F[history[k]] + offset``."""

    coefficients: tuple[float, ...]
    offset: float = 0.0


Predictor = Callable[[History, int], Prediction]


def hold(history: History, i: int) -> Prediction:
    """The newest computed feature, unchanged: what every published step cache does first."""
    return Prediction((1.0,))


@dataclass(frozen=True)
class LinearInSigma:
    """The straight line in sigma through the two newest computed features; holds where there is only one.

    sigmas: (M,). Needs nothing measured. ``F_i = F_s + (F_s - F_s2) (sigma_i - sigma_s) / (sigma_s - sigma_s2)``.
    """

    sigmas: np.ndarray

    def __call__(self, history: History, i: int) -> Prediction:
        if len(history) < 2:
            return hold(history, i)
        newest, before = self.sigmas[history[0]], self.sigmas[history[1]]
        if abs(self.sigmas[i] - newest) >= MAX_EXTRAPOLATION * abs(newest - before):
            return hold(history, i)  # also where both were evaluated at one sigma (heun, dpm_2), which gives no slope
        ratio = float((self.sigmas[i] - newest) / (newest - before))
        return Prediction((1.0 + ratio, -ratio))


@dataclass(frozen=True)
class Affine:
    """The paper's one-term rectification (ERTACache, section on closed-form rectification), mended and shrunk.

    The reuse error eps = v~ - v is modelled as ``mean(eps) + slope * (v~ - mean(v~))`` with slope = S_v~eps / S_v~v~.
    The printed B is four times too large in its last term; K = 4 slope, B = 4 (mean(eps) - 1/2) - K mean(v~) is what
    least squares gives, and the sigmoid is only meant in its linearised form. Both numbers are pooled over the recorded
    runs and shrunk towards holding by what holds up on a run left out (one recorded run: taken as it is).
    """

    grams: np.ndarray

    def __call__(self, history: History, i: int) -> Prediction:
        s = history[0]
        one = self.grams.shape[-1] - 1
        fits = [_affine_fit(self._pooled(without), s, i, one) for without in self._folds()]
        scale, offset = _affine_fit(self._pooled(None), s, i, one)
        kept = 1.0
        if len(self.grams) > 1:
            target = np.zeros((len(fits), one + 1))
            moved = np.zeros_like(target)
            for fold, (fold_scale, fold_offset) in enumerate(fits):
                target[fold, [i, s]] += (1.0, -1.0)
                moved[fold, [s, one]] += (fold_scale - 1.0, fold_offset)
            kept = _shrinkage(self.grams, target, moved)
        return Prediction((1.0 + kept * (scale - 1.0),), kept * offset)

    def _folds(self) -> range:
        return range(len(self.grams))

    def _pooled(self, without: int | None) -> np.ndarray:
        total = self.grams.sum(axis=0)
        pooled: np.ndarray = total if without is None else total - self.grams[without]
        return pooled


def _affine_fit(gram: np.ndarray, s: int, i: int, one: int) -> tuple[float, float]:
    """Scale and offset that take F_s to F_i by least squares over all elements."""
    count = gram[one, one]
    if count <= 0.0:
        return 1.0, 0.0
    mean_s, mean_i = gram[s, one] / count, gram[i, one] / count
    variance = gram[s, s] / count - mean_s**2
    if not variance > 0.0:
        return 1.0, 0.0
    covariance = gram[s, i] / count - mean_s * mean_i
    scale = covariance / variance
    if abs(scale) > MAX_SCALE:
        return 1.0, 0.0
    return float(scale), float(mean_i - scale * mean_s)


@dataclass(frozen=True)
class Fitted:
    """Two terms by least squares from the Gram matrices, pulled towards the line in sigma.

    ``c = c0 + kept (c_ls - c0)``: c0 is the line in sigma, c_ls the ridge solution over all recorded runs, and ``kept``
    in [0, 1] the closed-form factor that does best on runs left out. One recorded run proves nothing, so it keeps c0.
    """

    grams: np.ndarray
    sigmas: np.ndarray
    ridge: float = 1e-6
    _memory: dict[tuple[History, int], Prediction] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, history: History, i: int) -> Prediction:
        history = history[:2]
        if (history, i) not in self._memory:
            self._memory[history, i] = self._fit(history, i)
        return self._memory[history, i]

    def _fit(self, history: History, i: int) -> Prediction:
        start = LinearInSigma(self.sigmas)(history, i)
        runs = len(self.grams)
        if len(start.coefficients) < 2 or runs < 2:
            return start
        nodes = list(history)
        base = np.array(start.coefficients)
        total = self.grams.sum(axis=0)
        left_out = [_ridge(total - gram, nodes, i, base, self.ridge) for gram in self.grams]
        target = np.zeros((runs, self.grams.shape[-1]))
        target[:, i] = 1.0
        target[:, nodes] -= base
        moved = np.zeros_like(target)
        moved[:, nodes] = np.array(left_out) - base
        kept = _shrinkage(self.grams, target, moved)
        fit = base + kept * (_ridge(total, nodes, i, base, self.ridge) - base)
        return Prediction(tuple(float(c) for c in fit))


def _ridge(gram: np.ndarray, nodes: list[int], i: int, base: np.ndarray, ridge: float) -> np.ndarray:
    """argmin_c |F_i - sum c_k F_k|^2 + ridge trace |c - base|^2."""
    normal = gram[np.ix_(nodes, nodes)]
    damping = (ridge * np.trace(normal) + 1e-300) * np.eye(len(nodes))  # base where all features are zero
    return np.linalg.solve(normal + damping, gram[nodes, i] + damping @ base)


def _shrinkage(grams: np.ndarray, target: np.ndarray, moved: np.ndarray) -> float:
    """The factor in [0, 1] that minimises sum_r |target_r - factor moved_r|^2, lengths taken in each run's Gram."""
    along = np.einsum("ri,rij,rj->", target, grams, moved)
    length = np.einsum("ri,rij,rj->", moved, grams, moved)
    return float(np.clip(along / length, 0.0, 1.0)) if length > 0.0 else 0.0


def shape_weight(sigmas: np.ndarray, influence: np.ndarray, nodes: Sequence[int], gap: range, t: int) -> float:
    """Closed-form weight of the corrector, with nothing measured.

    An interpolation through the nodes errs like ``prod_k (sigma - sigma_k)``; the error seen at t therefore tells those
    inside the gap: ``sum_i influence_i e_i / e_t``. influence: (M,). Zero where the shape vanishes at t.
    """
    places = sigmas[list(nodes)]
    seen = float(np.prod(sigmas[t] - places))
    inside = np.array([np.prod(sigmas[i] - places) for i in gap])
    if abs(seen) < 1e-3 * float(np.abs(inside).max(initial=0.0)) or seen == 0.0:
        return 0.0
    return float(influence[list(gap)] @ inside / seen)


class Gap(NamedTuple):
    """One gap, worked out.

    predictions: for each reused evaluation. correction: u, with which the sampler is handed F_t + u (F_t - F^_t);
    0 for none. closing: the prediction F^_t that u needs. weights: (M + 1,) what is left of the position error at the
    end of the trajectory (true minus used). arriving: (M + 1,) the position error with which the sampler arrives at t,
    before anything is corrected; at the end of the run that is the same.
    """

    predictions: tuple[Prediction, ...]
    correction: float
    closing: Prediction | None
    weights: np.ndarray
    arriving: np.ndarray


@dataclass(frozen=True)
class GapModel:
    """Predictor and corrector of every possible gap of one run.

    grams: (T, M + 1, M + 1), or None without a profile. restarts: evaluations at which what the model is asked changes,
    so that an error seen there says nothing about the gap before it.
    """

    response: Response
    predictor: Predictor
    corrector: bool
    grams: np.ndarray | None = None
    restarts: frozenset[int] = frozenset()

    def work_out(self, history: History, t: int) -> Gap:
        """The gap between history[0] and t; t may be M, the end of the run, where nothing is left to correct."""
        count, influence = self.response.evaluations, self.response.end
        gap = range(history[0] + 1, t)
        predictions = tuple(self.predictor(history, i) for i in gap)
        misses = np.array([_miss(count, history, i, p) for i, p in zip(gap, predictions, strict=True)])
        misses = misses.reshape(len(gap), count + 1)
        error, arriving = influence[list(gap)] @ misses, self.response.influence[list(gap), t] @ misses
        if not (self.corrector and predictions and self._can_correct(gap, t)):
            return Gap(predictions, 0.0, None, error, arriving)
        closing = self.predictor(history, t)
        seen = _miss(count, history, t, closing)
        nodes = history[: len(closing.coefficients)]
        weight = self._fit(error, seen, shape_weight(self.response.sigmas, influence, nodes, gap, t))
        correction = weight / influence[t]
        if correction == 0.0 or abs(correction) > 4 * len(gap):
            return Gap(predictions, 0.0, None, error, arriving)
        return Gap(predictions, float(correction), closing, error - weight * seen, arriving)

    def _can_correct(self, gap: range, t: int) -> bool:
        """Whether output t tells the gap's error and still moves the final latent enough to make up for it."""
        if t in self.restarts or t >= self.response.evaluations:
            return False
        return bool(abs(self.response.end[t]) > 1e-2 * np.abs(self.response.end[list(gap)]).max())

    def _fit(self, error: np.ndarray, seen: np.ndarray, shape: float) -> float:
        """Least squares over the recorded runs, shrunk towards the closed-form shape by leaving one run out."""
        if self.grams is None or len(self.grams) < 2:
            return shape
        where = np.flatnonzero(np.abs(seen) + np.abs(error))
        part = self.grams[:, where[:, None], where] @ np.stack([error[where], seen[where]], axis=1)
        along, length = (seen[where] @ part).T
        rest = length.sum() - length
        if not (length.sum() > 0.0 and np.all(rest > 0.0)):
            return shape
        left_out = (along.sum() - along) / rest - shape
        kept = ((along - shape * length) * left_out).sum() / max((length * left_out**2).sum(), 1e-300)
        return float(shape + np.clip(kept, 0.0, 1.0) * (along.sum() / length.sum() - shape))


def _miss(count: int, history: History, i: int, prediction: Prediction) -> np.ndarray:
    """(M + 1,) weights of F_i minus its prediction."""
    miss = np.zeros(count + 1)
    miss[i] = 1.0
    for node, coefficient in zip(history, prediction.coefficients, strict=False):
        miss[node] -= coefficient
    miss[-1] -= prediction.offset
    return miss


def make_predictor(name: str, sigmas: np.ndarray, profile: Profile | None) -> Predictor:
    """hold, linear, affine or fitted; the last two need a profile on these sigmas."""
    if name == "hold":
        return hold
    if name == "linear" or profile is None:
        return LinearInSigma(sigmas)
    if name == "affine":
        return Affine(profile_grams(profile))
    if name == "fitted":
        return Fitted(profile_grams(profile), sigmas)
    raise ValueError(f"predictor is {name!r}; it must be one of hold, affine, linear, fitted")


def profile_grams(profile: Profile) -> np.ndarray:
    """(T, M + 1, M + 1): the extended Gram matrix per element of each recorded run and stream."""
    return np.stack([table.extended_gram() / table.elements for table in profile.tables])


def mean_squares(weights: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """(T,) mean squared error per element that a weight vector stands for in each recorded run."""
    where = np.flatnonzero(weights)
    part = weights[where]
    squares: np.ndarray = np.einsum("i,rij,j->r", part, grams[:, where[:, None], where], part)
    clipped: np.ndarray = np.maximum(squares, 0.0)
    return clipped
