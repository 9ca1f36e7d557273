"""What to put in the place of a feature that is not computed.

Notation: a *skipped interval* lies between two computed model calls s < t; the model calls between them are reused.
``history`` is the tuple of computed model calls up to s, newest first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .profile import Profile

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


def line(sigmas: np.ndarray, history: History, i: int, slope: float) -> Prediction:
    """The straight line in sigma through the two newest computed features, with a share of its slope.

    sigmas: (M,). ``F_i = F_s + slope (F_s - F_s2) (sigma_i - sigma_s) / (sigma_s - sigma_s2)``; slope 1 is the line
    itself, 0 holds. Holds where there is only one feature, or two so close that the line would amplify rounding.
    """
    if len(history) < 2 or slope == 0.0:
        return hold(history, i)
    newest, before = sigmas[history[0]], sigmas[history[1]]
    if abs(sigmas[i] - newest) >= MAX_EXTRAPOLATION * abs(newest - before):
        return hold(history, i)  # also where both were evaluated at one sigma (heun, dpm_2), which gives no slope
    ratio = slope * float((sigmas[i] - newest) / (newest - before))
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


def _shrinkage(grams: np.ndarray, target: np.ndarray, moved: np.ndarray) -> float:
    """The factor in [0, 1] that minimises sum_r |target_r - factor moved_r|^2, lengths taken in each run's Gram."""
    along = np.einsum("ri,rij,rj->", target, grams, moved)
    length = np.einsum("ri,rij,rj->", moved, grams, moved)
    return float(np.clip(along / length, 0.0, 1.0)) if length > 0.0 else 0.0


def profile_grams(profile: Profile) -> np.ndarray:
    """(T, M + 1, M + 1): the extended Gram matrix per element of each recorded run and stream."""
    return np.stack([table.extended_gram() / table.elements for table in profile.tables])
