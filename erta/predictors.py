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

# So many numbers are worked on at once, 32 MB of them.
MAX_NUMBERS = 4_000_000

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
    _memory: dict[tuple[int, int], Prediction] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, history: History, i: int) -> Prediction:
        if (history[0], i) not in self._memory:
            self._memory[history[0], i] = self._fit(history[0], i)
        return self._memory[history[0], i]

    def _fit(self, s: int, i: int) -> Prediction:
        one = self.grams.shape[-1] - 1
        # All that a fit of two numbers needs: F_s, F_i and the constant.
        nodes = [s, i, one]
        grams = self.grams[:, nodes][:, :, nodes]
        total = grams.sum(axis=0)
        scale, offset = _affine_fit(total)
        kept = 1.0
        if len(grams) > 1:
            left_out = np.array([_affine_fit(total - gram) for gram in grams])
            target = np.tile((-1.0, 1.0, 0.0), (len(grams), 1))
            moved = np.stack([left_out[:, 0] - 1.0, np.zeros(len(grams)), left_out[:, 1]], axis=1)
            kept = _shrinkage(grams, target, moved)
        return Prediction((1.0 + kept * (scale - 1.0),), kept * offset)


def _affine_fit(gram: np.ndarray) -> tuple[float, float]:
    """Scale and offset that take F_s to F_i by least squares over all elements. gram: (3, 3) of F_s, F_i and 1."""
    (ss, si, s1), (_, _, i1), (_, _, count) = gram
    if count <= 0.0:
        return 1.0, 0.0
    mean_s, mean_i = s1 / count, i1 / count
    variance = ss / count - mean_s**2
    if not variance > 0.0:
        return 1.0, 0.0
    scale = (si / count - mean_s * mean_i) / variance
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


def shape_weights(sigmas: np.ndarray, influence: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(B,) closed-form weights of the corrector for B gaps of one length, with nothing measured.

    An interpolation through the nodes errs like ``prod_k (sigma - sigma_k)``; the error seen at t therefore tells those
    inside the gap: ``sum_i influence_i e_i / e_t``. Zero where the shape vanishes at t.

    sigmas: (B, n), first the history's, then those inside the gap, last that of t. influence: (B, g) of those inside.
    used: (B, h) which of the history the prediction goes through.
    """
    terms = used.shape[1]
    apart = sigmas[:, terms:, None] - sigmas[:, None, :terms]
    error = np.where(used[:, None], apart, 1.0).prod(axis=2)
    inside, seen = error[:, :-1], error[:, -1]
    told = (np.abs(seen) >= 1e-3 * np.abs(inside).max(axis=1)) & (seen != 0.0)
    weights: np.ndarray = np.where(told, (influence * inside).sum(axis=1) / np.where(told, seen, 1.0), 0.0)
    return weights


class Gap(NamedTuple):
    """One gap, worked out.

    predictions: for each reused evaluation. correction: u, with which the sampler is handed F_t + u (F_t - F^_t);
    0 for none. closing: the prediction F^_t that u needs. weights: (M + 1,) what is left of the position error at the
    end of the trajectory (true minus used). arriving: (M + 1,) the position error with which the sampler arrives at t,
    before anything is corrected; at the end of the run that is the same. squares: (T,) mean square of what ``weights``
    stands for in each recorded run, empty without a profile.
    """

    predictions: tuple[Prediction, ...]
    correction: float
    closing: Prediction | None
    weights: np.ndarray
    arriving: np.ndarray
    squares: np.ndarray


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
        return self.work_out_all([(history, t)])[0]

    def work_out_all(self, gaps: Sequence[tuple[History, int]]) -> list[Gap]:
        """As ``work_out``, for many: gaps of one length and kind go through the linear algebra together."""
        kinds: dict[tuple[int, int, bool], list[int]] = {}
        can_correct = {ends: self._can_correct(*ends) for ends in {(history[0], t) for history, t in gaps}}
        for place, (history, t) in enumerate(gaps):
            kinds.setdefault((len(history), t - history[0], can_correct[history[0], t]), []).append(place)
        found: dict[int, Gap] = {}
        for (terms, length, correctable), places in kinds.items():
            runs = 1 if self.grams is None else len(self.grams)
            at_once = max(1, MAX_NUMBERS // (runs * (terms + length + 2) ** 2))
            for first in range(0, len(places), at_once):
                some = places[first : first + at_once]
                found.update(zip(some, self._alike([gaps[place] for place in some], correctable), strict=True))
        return [found[place] for place in range(len(gaps))]

    def _alike(self, gaps: Sequence[tuple[History, int]], correctable: bool) -> list[Gap]:
        """Gaps of one length and one length of history, all or none of which can be corrected."""
        count = self.response.evaluations
        inside = [range(history[0] + 1, t) for history, t in gaps]
        predictions = [
            tuple(self.predictor(history, i) for i in gap) for (history, _), gap in zip(gaps, inside, strict=True)
        ]
        # What a gap's errors are made of: the history, the evaluations inside, the one that ends it, and the constant.
        nodes = np.array([(*h, *g, min(t, count), count) for (h, t), g in zip(gaps, inside, strict=True)])
        terms = len(gaps[0][0])
        reused = np.arange(terms, nodes.shape[1] - 2)
        misses = _misses(predictions, terms, reused, nodes.shape[1])
        within, ends = nodes[:, reused], nodes[:, -2]
        error = np.einsum("bg,bgn->bn", self.response.end[within], misses)
        arriving = np.einsum("bg,bgn->bn", self.response.influence[within, ends[:, None]], misses)
        grams = None if self.grams is None else self.grams[:, nodes[:, :, None], nodes[:, None, :]]
        correction = np.zeros(len(gaps))
        closing: list[Prediction | None] = [None] * len(gaps)
        if correctable:
            correction, closing, error = self._correct(gaps, nodes, error, grams)
        squares = np.empty((len(gaps), 0))
        if grams is not None:
            squares = np.maximum(np.einsum("bi,rbij,bj->br", error, grams, error, optimize=True), 0.0)
        full = [np.zeros((len(gaps), count + 1)) for _ in range(2)]
        for whole, part in zip(full, (error, arriving), strict=True):
            # Where the gap ends with the run, its end and the constant share a place: add, do not set.
            np.add.at(whole, (np.arange(len(gaps))[:, None], nodes), part)
        return [Gap(*row) for row in zip(predictions, correction.tolist(), closing, *full, squares, strict=True)]

    def _correct(
        self, gaps: Sequence[tuple[History, int]], nodes: np.ndarray, error: np.ndarray, grams: np.ndarray | None
    ) -> tuple[np.ndarray, list[Prediction | None], np.ndarray]:
        """Corrections, the predictions they need (None where nothing is corrected), and the errors that are left."""
        terms = len(gaps[0][0])
        closing = [self.predictor(history, t) for history, t in gaps]
        seen = _misses([(p,) for p in closing], terms, np.array([nodes.shape[1] - 2]), nodes.shape[1])[:, 0]
        used = np.array([[k < len(p.coefficients) for k in range(terms)] for p in closing])
        shape = shape_weights(self.response.sigmas[nodes[:, :-1]], self.response.end[nodes[:, terms:-2]], used)
        weight = shape if grams is None else _fitted_weights(grams, error, seen, shape)
        correction = weight / self.response.end[nodes[:, -2]]
        correction[np.abs(correction) > 4 * (nodes.shape[1] - terms - 2)] = 0.0
        kept = correction != 0.0
        needed = [p if keep else None for p, keep in zip(closing, kept, strict=True)]
        return correction, needed, error - np.where(kept, weight, 0.0)[:, None] * seen

    def _can_correct(self, newest: int, t: int) -> bool:
        """Whether something was reused, and output t tells its error and still moves the latent enough to mend it."""
        if not self.corrector or t <= newest + 1 or t in self.restarts or t >= self.response.evaluations:
            return False
        return bool(abs(self.response.end[t]) > 1e-2 * np.abs(self.response.end[newest + 1 : t]).max())


def _misses(predictions: Sequence[Sequence[Prediction]], terms: int, at: np.ndarray, width: int) -> np.ndarray:
    """(B, len(at), width) weights of a feature minus its prediction. Columns: ``terms`` of history first, the predicted
    one at ``at[k]``, the constant 1 last."""
    misses = np.zeros((len(predictions), len(at), width))
    padding = (0.0,) * terms
    if len(at):
        misses[:, :, :terms] = [[(p.coefficients + padding)[:terms] for p in row] for row in predictions]
        misses[:, :, -1] = [[p.offset for p in row] for row in predictions]
    misses *= -1.0
    misses[:, np.arange(len(at)), at] = 1.0
    return misses


def _fitted_weights(grams: np.ndarray, error: np.ndarray, seen: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """(B,) the corrector's weights by least squares over recorded runs, shrunk towards the closed-form shape by leaving
    one run out.

    grams: (T, B, n, n). error, seen: (B, n) weights of the gap's error and of what is seen of it. One run proves
    nothing, so it keeps the shape.
    """
    if len(grams) < 2:
        return shape
    part = np.einsum("rbij,bj->rbi", grams, seen)
    along, length = (part * error).sum(axis=-1), (part * seen).sum(axis=-1)
    rest = length.sum(axis=0) - length
    known = (length.sum(axis=0) > 0.0) & np.all(rest > 0.0, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = (along.sum(axis=0) - along) / rest - shape
        gained = ((along - shape * length) * left_out).sum(axis=0)
        kept = np.clip(gained / np.maximum((length * left_out**2).sum(axis=0), 1e-300), 0.0, 1.0)
        fitted: np.ndarray = np.where(known, shape + kept * (along.sum(axis=0) / length.sum(axis=0) - shape), shape)
    return fitted


def make_predictor(name: str, sigmas: np.ndarray, grams: np.ndarray | None) -> Predictor:
    """hold, linear, affine or fitted; the last two need the Gram matrices of a profile on these sigmas."""
    if name == "hold":
        return hold
    if name == "linear" or grams is None:
        return LinearInSigma(sigmas)
    if name == "affine":
        return Affine(grams)
    if name == "fitted":
        return Fitted(grams, sigmas)
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
