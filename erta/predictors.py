"""What takes the place of a feature that is not computed (docs/method.md, Predictors).

Notation: a skipped interval lies between two computed model calls s < t; the calls between them are reused. ``history``
holds the computed calls up to s, newest first. A new predictor is one class here and one line in `PREDICTORS`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np

History = tuple[int, ...]

# A line is extrapolated no further than this many times the distance of its two points: beyond, it amplifies rounding.
MAX_EXTRAPOLATION = 16.0

# A rectified feature is no more than this many times the one it is made of, and its offset no larger than that feature:
# what an affine fit makes beyond comes from features that are nearly constant, or that no model gives.
MAX_SCALE = 2.0


class Prediction(NamedTuple):
    """F_i is taken as ``sum_k coefficients[k] * F[history[k]] + offset``."""

    coefficients: tuple[float, ...]
    offset: float = 0.0


HELD = Prediction((1.0,))


def line(sigmas: np.ndarray, history: History, i: int, slope: float) -> Prediction:
    """Linear extrapolation in sigma through the two newest computed features, with a share of its slope.

    sigmas: (M,). ``F_i = F_s + slope (F_s - F_s2) (sigma_i - sigma_s) / (sigma_s - sigma_s2)``; slope 1 is the line
    itself, 0 holds. Holds where there is only one feature, or two so close that the line would amplify rounding.
    """
    if len(history) < 2 or slope == 0.0:
        return HELD
    newest, before = sigmas[history[0]], sigmas[history[1]]
    if abs(sigmas[i] - newest) >= MAX_EXTRAPOLATION * abs(newest - before):
        return HELD  # also where both have one sigma (heun, dpm_2), which gives no slope
    ratio = slope * float((sigmas[i] - newest) / (newest - before))
    return Prediction((1.0 + ratio, -ratio))


class Predictor:
    """One way to predict a feature. sigmas: (M,) of the run's calls. grams: (T, M + 1, M + 1) extended Gram matrices.

    slope: share of the line's slope that it uses, which the search over schedules assumes; None: fitted to each
    interval. selectable: an artist may choose it by name. needs_profile: nothing can be fitted without one.
    """

    slope: ClassVar[float | None]
    selectable: ClassVar[bool] = True
    needs_profile: ClassVar[bool] = False

    def __init__(self, sigmas: np.ndarray, grams: np.ndarray) -> None:
        self.sigmas, self.grams = sigmas, grams

    def predict(self, history: History, i: int, slope: float) -> Prediction:
        """The prediction of call i. slope: the share of the line's slope that was fitted to its interval."""
        return line(self.sigmas, history, i, slope)


class Hold(Predictor):
    """Zero-order hold: the newest computed feature, unchanged. What every published step cache does first."""

    slope = 0.0


class Line(Predictor):
    """Linear extrapolation in sigma; the two-step Adams-Bashforth method where Euler's method is the sampler."""

    slope = 1.0


class FittedLine(Predictor):
    """Linear extrapolation with a share of its slope fitted to each interval. What "auto" stands for when planned."""

    slope = None
    selectable = False


class Affine(Predictor):
    """The paper's one-term rectification (ERTACache, closed-form rectification), corrected.

    The reuse error eps = v~ - v is modelled as ``mean(eps) + slope * (v~ - mean(v~))`` with slope = S_v~eps / S_v~v~.
    The printed B is four times too large in its last term (docs/method.md, The paper). The fit is pooled over the
    recorded runs. The search assumes a hold: what rectifies a held feature is small beside the interval's own cost.
    """

    slope = 0.0
    needs_profile = True

    def predict(self, history: History, i: int, slope: float) -> Prediction:
        """Scale and offset fitted for the pair (newest computed call, i)."""
        one = self.grams.shape[-1] - 1
        # All that a fit of two numbers needs: F_s, F_i and the constant.
        nodes = [history[0], i, one]
        scale, offset = _affine_fit(self.grams[:, nodes][:, :, nodes].sum(axis=0))
        return Prediction((scale,), offset)


# By the name that settings and plans use.
PREDICTORS: Mapping[str, type[Predictor]] = MappingProxyType(
    {"hold": Hold, "affine": Affine, "linear": Line, "fitted": FittedLine}
)


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
    offset = mean_i - scale * mean_s
    if not 0.0 <= scale <= MAX_SCALE or offset**2 > ss / count:
        return 1.0, 0.0
    return float(scale), float(offset)
