"""A profile at other sigmas than it was recorded at, for other step counts and samplers (docs/method.md, Resampling).

Features are interpolated over sigma by fixed weights, which carries over to their scalar products. Mean absolute values
follow from the distances by their measured ratio, which changes slowly with sigma.
"""

from dataclasses import replace

import numpy as np

from . import gram as grams
from .profile import SIGMA_TOLERANCE, Profile, Table, as_floats, same_sigmas

# Sum of a cubic's absolute weights. One spacing beyond equally spaced sigmas it is 15, in between 1.6 at most.
_MAX_AMPLIFICATION = 16.0


def resampled(profile: Profile, sigmas: np.ndarray) -> Profile:
    """The same runs as if the model had been called at other sigmas (M',).

    Returns the profile itself where the sigmas are the measured ones. Raises ProfileError for bad sigmas.
    """
    wanted = as_floats("sigmas", sigmas)
    if same_sigmas(wanted, profile.sigmas):
        return profile
    return Profile(profile.measured, tuple(_resampled(table, wanted) for table in profile.tables))


def _resampled(table: Table, sigmas: np.ndarray) -> Table:
    last = last_at_each_sigma(table.sigmas)
    linear = linear_weights(table.sigmas[last], sigmas)
    weights = interpolation(table.sigmas, sigmas)
    gram = _resampled_gram(table.gram, weights)
    mean = weights @ table.mean
    # 1 / sqrt(n) for features of equal magnitudes, less for features with outliers.
    apart = ratio_of(table.l1[np.ix_(last, last)], grams.distances(table.gram[np.ix_(last, last)]))
    size = ratio_of(table.norm1[last], np.sqrt(np.diag(table.gram)[last]))
    l1 = grams.distances(gram) * (linear @ with_diagonal(apart) @ linear.T)
    norm1 = np.sqrt(np.maximum(np.diag(gram), 0)) * (linear @ size)
    # In units of 1 / sigma an error response changes slowly.
    gain, deviation = (
        linear @ (response * table.sigmas)[last] / np.maximum(sigmas, 1e-12)
        for response in (table.gain, table.deviation)
    )
    return replace(
        table,
        sigmas=sigmas,
        gram=gram,
        l1=grams.mirrored(l1),
        norm1=np.maximum(norm1, np.abs(mean)),
        mean=mean,
        gain=gain,
        deviation=deviation,
    )


def _resampled_gram(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    found = grams.mirrored(weights @ gram @ weights.T)
    if grams.is_semidefinite(found):
        return found
    # The measured one is semidefinite up to rounding, which is too much where the resampled features are small.
    values, vectors = np.linalg.eigh(gram)
    roots = weights @ (vectors * np.sqrt(np.maximum(values, 0.0)))
    return grams.mirrored(roots @ roots.T)


def interpolation(measured: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(M', M) weights that give features at the wanted sigmas (M',) from those at the measured ones (M,).

    Cubic through the four measured sigmas around each wanted one (the nearest four at the ends), or linear where
    uneven sigmas would make a cubic amplify rounding. Beyond one spacing outside the measured range the feature is
    held. Of model calls that share a sigma (heun) the last counts.
    """
    last = last_at_each_sigma(measured)
    nodes = measured[last]
    width = min(4, nodes.size)
    low, high = (2 * nodes[0] - nodes[1], 2 * nodes[-1] - nodes[-2]) if nodes.size > 1 else (nodes[0], nodes[0])
    at = np.clip(wanted, max(low, 0.0), high)
    first = np.clip(np.searchsorted(nodes, at, side="right") - 2, 0, nodes.size - width)
    window = first[:, None] + np.arange(width)
    near = nodes[window]
    same = np.eye(width, dtype=bool)
    numerator = np.where(same, 1.0, (at[:, None] - near)[:, None, :])
    denominator = np.where(same, 1.0, near[:, :, None] - near[:, None, :])
    cubic = np.zeros((wanted.size, nodes.size))
    np.put_along_axis(cubic, window, (numerator / denominator).prod(axis=2), axis=1)
    steady = np.abs(cubic).sum(axis=1, keepdims=True) <= _MAX_AMPLIFICATION
    weights = np.zeros((wanted.size, measured.size))
    weights[:, last] = np.where(steady, cubic, linear_weights(nodes, wanted))
    return weights


def last_at_each_sigma(sigmas: np.ndarray) -> np.ndarray:
    """Index of the last model call at each different sigma, sigmas rising."""
    order = np.argsort(sigmas, kind="stable")
    rising = sigmas[order]
    group = np.r_[0, np.cumsum(np.diff(rising) > SIGMA_TOLERANCE * np.maximum(rising[1:], 1e-3))]
    last = np.zeros(group[-1] + 1, dtype=np.intp)
    np.maximum.at(last, group, order)
    return last


def ratio_of(mean: np.ndarray, length: np.ndarray) -> np.ndarray:
    """A mean of absolute values over the root of the sum of squares, 0 where that is 0; never above 1."""
    ratio: np.ndarray = np.divide(mean, length, out=np.zeros_like(mean), where=length > mean)
    # Between equal features both are rounding.
    return np.where((length <= mean) & (length > 0), 1.0, ratio)


def with_diagonal(ratio: np.ndarray) -> np.ndarray:
    """(M, M) symmetric ratios with those of a feature to itself, which are 0 / 0, taken from its neighbours."""
    beside = np.diag(ratio, 1) if len(ratio) > 1 else np.zeros(1)
    filled = ratio.copy()
    np.fill_diagonal(filled, (np.r_[beside[0], beside] + np.r_[beside, beside[-1]]) / 2)
    return filled


def linear_weights(nodes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(M', K) weights of linear interpolation over rising nodes (K,), held at the ends."""
    return np.stack([np.interp(wanted, nodes, unit) for unit in np.eye(nodes.size)], axis=1)
