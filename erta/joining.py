"""Profiles that reach over part of a run: which calls they reach, how parts become one, and what stands in for the rest
(docs/method.md, Reach).

Features that were never recorded together get the scalar products that the prior's correlation implies: each part's own
root of its Gram matrix, turned as the prior turns it. What no profile reaches is a part like that, the prior's own.
"""

from dataclasses import replace

import numpy as np

from . import gram as grams
from .prior import LENGTH, assumed_error_response, correlation, flow_sigmas, log_snr
from .profile import Profile, Table
from .resampling import resampled

# A call is reached where a measured one is as near as this, in the log signal-to-noise ratio or in sigma: at pure noise
# the ratio runs away from features that hardly change.
NEAR_SNR, NEAR_SIGMA = LENGTH / 2.0, 0.05

# Added to the diagonals, relative: correlations of neighbours are singular to float64.
_JITTER = 1e-9

# Mean of absolute values over root mean square, of Gaussian numbers.
_GAUSSIAN = np.sqrt(2.0 / np.pi)


def reached(measured: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(M',) whether a model call at each wanted sigma has a measured one (M,) near it."""
    scale = max(float(measured.max()), float(wanted.max()), 1.0)
    ours, theirs = (flow_sigmas(np.append(sigmas, scale))[:-1] for sigmas in (wanted, measured))
    near = np.abs(log_snr(ours)[:, None] - log_snr(theirs)) <= NEAR_SNR
    near |= np.abs(ours[:, None] - theirs) <= NEAR_SIGMA
    found: np.ndarray = near.any(axis=1)
    return found


def joined(one: Profile, other: Profile) -> Profile:
    """Both as one profile: all calls of one, and those of the other beyond its range or reach, by falling sigma.

    Run k of one goes with run k of the other, or with its last one, stream by stream. An error response is kept where
    both have one.
    """
    beyond = (other.sigmas > one.sigmas.max()) | (other.sigmas < one.sigmas.min()) | ~reached(one.sigmas, other.sigmas)
    if not beyond.any():
        return one
    order = np.argsort(-np.append(one.sigmas, other.sigmas[beyond]), kind="stable")
    pairs = ((table, _partner(table, other)) for table in one.tables)
    return Profile(one.measured, tuple(_joined(table, _part(more, beyond), order) for table, more in pairs))


def _partner(table: Table, other: Profile) -> Table:
    same = [more for more in other.tables if more.stream == table.stream] or other.tables
    return same[min(table.run, len(same) - 1)]


def filled(profile: Profile, sigmas: np.ndarray) -> Profile | None:
    """The profile at a run's sigmas (M',), with the prior's features at calls beyond its reach.

    None where it reaches less than two calls. Raises ProfileError for bad sigmas.
    """
    here = reached(profile.sigmas, sigmas)
    if here.all():
        return resampled(profile, sigmas)
    if here.sum() < 2:
        return None
    order = np.argsort(np.append(np.flatnonzero(here), np.flatnonzero(~here)))
    tables = resampled(profile, sigmas[here]).tables
    return Profile(profile.measured, tuple(_joined(table, _assumed(table, sigmas[~here]), order) for table in tables))


Part = dict[str, np.ndarray]
"""sigmas, gram per element, l1, norm1, mean, gain and deviation of some calls of a run."""


def _part(table: Table, calls: np.ndarray) -> Part:
    rows = {name: getattr(table, name)[calls] for name in ("sigmas", "norm1", "mean", "gain", "deviation")}
    both = np.ix_(calls, calls)
    return {**rows, "gram": table.gram[both] / table.elements, "l1": table.l1[both]}


def _assumed(table: Table, sigmas: np.ndarray) -> Part:
    """The prior's features, as large as the table's on average."""
    count, square = len(sigmas), float(np.diag(table.gram).mean()) / table.elements
    gram = square * correlation(sigmas, LENGTH)
    nothing = np.zeros(count)
    deviation = assumed_error_response(sigmas).deviation if table.has_error_response else nothing
    norm1 = np.full(count, _GAUSSIAN * np.sqrt(square))
    apart = _GAUSSIAN * grams.distances(gram)
    values = {"sigmas": sigmas, "gram": gram, "l1": apart, "norm1": norm1, "mean": nothing}
    return {**values, "gain": nothing, "deviation": deviation}


def _joined(table: Table, more: Part, order: np.ndarray) -> Table:
    """The table with a part's calls behind its own, then all of them put in order."""
    ours = _part(table, np.arange(table.sigmas.size))
    means = np.append(ours["mean"], more["mean"])
    # Around the means, so that any means go with the result.
    roots = [_root(part["gram"] - np.outer(part["mean"], part["mean"])) for part in (ours, more)]
    across = roots[0] @ _turn(ours["sigmas"], more["sigmas"]) @ roots[1].T
    gram = np.block([[roots[0] @ roots[0].T, across], [across.T, roots[1] @ roots[1].T]]) + np.outer(means, means)
    l1 = _GAUSSIAN * grams.distances(gram)
    count = len(ours["mean"])
    l1[:count, :count], l1[count:, count:] = ours["l1"], more["l1"]
    both = np.ix_(order, order)
    rows = {name: np.append(ours[name], more[name])[order] for name in ("sigmas", "norm1", "gain", "deviation")}
    if not more["deviation"].any() and not more["gain"].any():
        rows |= {"gain": np.zeros(len(order)), "deviation": np.zeros(len(order))}
    square = grams.mirrored(table.elements * gram[both])
    return replace(table, **rows, gram=square, l1=grams.mirrored(l1[both]), mean=means[order])


def _root(gram: np.ndarray) -> np.ndarray:
    """Lower triangular with a diagonal of 0 or more, times its transpose the Gram matrix."""
    values, vectors = np.linalg.eigh(grams.mirrored(gram))
    # Negative by rounding.
    upper = np.linalg.qr((vectors * np.sqrt(np.maximum(values, 0.0))).T)[1]
    found: np.ndarray = (np.where(np.diag(upper) < 0.0, -1.0, 1.0)[:, None] * upper).T
    return found


def _turn(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The scalar products of the prior's features at two lists of sigmas, each in the basis of its own root."""
    count = len(one)
    together = correlation(np.append(one, other), LENGTH) + _JITTER * len(one) * len(other) * np.eye(count + len(other))
    roots = (np.linalg.cholesky(together[:count, :count]), np.linalg.cholesky(together[count:, count:]))
    left = np.linalg.solve(roots[0], together[:count, count:])
    found: np.ndarray = np.linalg.solve(roots[1], left.T).T
    return found
