"""What each skipped interval that a schedule may have costs: the table that the search works on (docs/method.md,
Interval costs).

An interval costs the error of the final latent that its reused calls leave after its slope and its correction. Of what
the simulation adds, it counts what the interval and the one before it determine: the error response at the call that
ends it, and that its line is drawn from an output that is off itself.
"""

from dataclasses import dataclass

import numpy as np

from .predictors import MAX_EXTRAPOLATION, History
from .response import ImpulseResponse
from .simulation import MAX_CORRECTION, MAX_SLOPE, Simulation

# So many numbers are worked on at once, 32 MB of them.
MAX_NUMBERS = 4_000_000

# Beyond this what is left in the final latent is next to nothing by chance, and says nothing about the interval.
MOST_MET = 16.0

Key = tuple[History, int]
"""(the newest computed calls, t) of an interval; t = M where the run ends inside it."""


@dataclass(frozen=True)
class _Intervals:
    """N intervals. s, before, t: (N,), before = s where there is no older computed call. Vectors have a weight for each
    of ``nodes`` (N, 5): the sums of end * F up to t and up to s, then F_s, F_before, F_t."""

    s: np.ndarray
    before: np.ndarray
    t: np.ndarray
    nodes: np.ndarray
    held: np.ndarray  # (N, 5) what the features add to the latent, minus what a hold adds
    moved: np.ndarray  # (N, 5) what the line's whole slope changes
    reach: np.ndarray  # (N,) how far the line goes at t, in distances of its two points
    ends: np.ndarray  # (N,) impulse response of output t on the final latent


def interval_costs(simulation: Simulation, keys: list[Key], slope: float | None, corrector: bool) -> dict[Key, float]:
    """Cost of each interval: mean square error over recorded runs, in units of the final latent's mean square.

    slope: share of the line's slope that the predictor uses; None: fitted to each interval. corrector: the error is
    corrected at the call that ends the interval.
    """
    if not keys:
        return {}  # everything is required, nothing can be left out
    count, runs = simulation.response.calls, len(simulation.grams)
    basis = _basis(simulation)
    products = basis @ simulation.grams[:, :count, :count] @ basis.T
    intervals = _intervals(simulation, keys)
    size = max(1, MAX_NUMBERS // (25 * runs))
    parts = [
        _costs_of(simulation, products, _part(intervals, slice(k, k + size)), slope, corrector)
        for k in range(0, len(keys), size)
    ]
    squares, arriving, amplified = (np.concatenate(found, axis=-1) for found in zip(*parts, strict=True))
    squares += _from_before(simulation, intervals, arriving, amplified)
    # The mean over recorded runs: a high power of their errors, nearer to the largest, was worth 0.1 dB either way.
    return dict(zip(keys, squares.mean(axis=0).tolist(), strict=True))


def met(simulation: Simulation, keys: list[Key], slope: float | None) -> np.ndarray:
    """(N,) how much larger an interval's squared error is in the latent at the interval's end than in the final one.

    1 to MOST_MET, and 1 for samplers whose outputs move all later latents alike, as Euler's do. Multistep samplers take
    part of an error back later on, but by then the model has met it. slope: as in `interval_costs`, None for 1.
    """
    response, count = simulation.response, simulation.response.calls
    if np.allclose(response.matrix[:, :count], np.triu(response.end[:, None] + np.zeros(count), 1), atol=1e-9):
        return np.ones(len(keys))
    gram = simulation.grams[:, :count, :count].mean(axis=0)
    size = max(1, MAX_NUMBERS // (8 * count))
    parts = [keys[k : k + size] for k in range(0, len(keys), size)]
    return np.concatenate([_met(response, part, gram, 1.0 if slope is None else slope) for part in parts])


def _met(response: ImpulseResponse, keys: list[Key], gram: np.ndarray, slope: float) -> np.ndarray:
    rows, calls, sigmas = np.arange(len(keys)), np.arange(response.calls), response.sigmas
    s, before = np.array([(history[0], history[-1]) for history, _ in keys]).T
    t = np.array([t for _, t in keys])
    apart = (sigmas[s] - sigmas[before])[:, None]
    reach = np.divide(sigmas - sigmas[s][:, None], apart, out=np.zeros((len(keys), len(calls))), where=apart != 0.0)
    reach = slope * np.where(np.abs(reach) < MAX_EXTRAPOLATION, reach, 0.0)
    reused = (calls > s[:, None]) & (calls < t[:, None])

    def square(moved: np.ndarray) -> np.ndarray:
        left = reused * moved
        along = (left * reach).sum(axis=1)
        left[rows, s] -= left.sum(axis=1) + along
        left[rows, before] += along
        found: np.ndarray = np.maximum(((left @ gram) * left).sum(axis=1), 1e-30)
        return found

    found: np.ndarray = square(response.matrix[:, t].T) / square(response.end[None])
    return found.clip(1.0, MOST_MET)


def _basis(simulation: Simulation) -> np.ndarray:
    """(2 M + 1, M): each feature, then what the first 0 to M outputs together put into the final latent."""
    count = simulation.response.calls
    sums = np.tril(np.ones((count + 1, count)), -1) * simulation.response.end
    return np.concatenate([np.eye(count), sums])


def _intervals(simulation: Simulation, keys: list[Key]) -> _Intervals:
    sigmas, end, count = simulation.response.sigmas, simulation.response.end, simulation.response.calls
    s = np.array([history[0] for history, _ in keys])
    before = np.array([history[min(1, len(history) - 1)] for history, _ in keys])
    t = np.array([t for _, t in keys])
    ending = np.minimum(t, count - 1)
    apart = sigmas[s] - sigmas[before]
    drawn = np.abs(sigmas[ending] - sigmas[s]) < MAX_EXTRAPOLATION * np.abs(apart)
    apart = np.where(drawn, apart, 1.0)
    total, along = (np.concatenate([[0.0], np.cumsum(each)]) for each in (end, end * sigmas))
    weight = total[t] - total[s + 1]
    rise = along[t] - along[s + 1] - weight * sigmas[s]
    # Where all lies at one sigma (heun) only rounding is left, to which a slope would be fitted.
    drawn &= np.abs(rise) > 1e-12 * np.abs(along).max()
    rise = np.where(drawn, rise / apart, 0.0)
    nothing, one = np.zeros(len(keys)), np.ones(len(keys))
    return _Intervals(
        s=s,
        before=before,
        t=t,
        nodes=np.stack([count + t, count + s + 1, s, before, ending], axis=1),
        held=np.stack([one, -one, -weight, nothing, nothing], axis=1),
        moved=np.stack([nothing, nothing, rise, -rise, nothing], axis=1),
        reach=np.where(drawn, (sigmas[ending] - sigmas[s]) / apart, 0.0),
        ends=np.where(t < count, end[ending], 0.0),
    )


def _part(intervals: _Intervals, where: slice) -> _Intervals:
    return _Intervals(**{name: value[where] for name, value in vars(intervals).items()})


def _costs_of(
    simulation: Simulation, products: np.ndarray, intervals: _Intervals, slope: float | None, corrector: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T, N) mean square left in the final latent, (T, N) the same at t before the correction, (N,) weight of an error
    of F_s in the final latent."""
    near = products[:, intervals.nodes[:, :, None], intervals.nodes[:, None, :]]

    def inner(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        product: np.ndarray = np.einsum("tni,ni->tn", (near @ other[:, :, None])[..., 0], one)
        return product

    if slope is None:
        along = inner(intervals.held, intervals.moved).sum(axis=0)
        length = inner(intervals.moved, intervals.moved).sum(axis=0)
        share = np.clip(np.divide(along, length, out=np.zeros_like(along), where=length > 0.0), 0.0, MAX_SLOPE)
    else:
        share = np.full(len(intervals.s), slope)
    missed = intervals.held - share[:, None] * intervals.moved
    arriving = np.maximum(inner(missed, missed), 0.0)
    residual = np.zeros_like(missed)
    residual[:, 2], residual[:, 3], residual[:, 4] = -1.0 - share * intervals.reach, share * intervals.reach, 1.0
    response = simulation.error_response.deviation[intervals.nodes[:, 4]] ** 2
    # The weight of the residual in the final latent: the correction times the impulse response of output t.
    along, length = inner(missed, residual).sum(axis=0), (inner(residual, residual) + response * arriving).sum(axis=0)
    most = MAX_CORRECTION * (intervals.t - intervals.s - 1) * np.abs(intervals.ends)
    can = corrector & (length > 0.0) & ~np.isin(intervals.t, list(simulation.resets))
    weight = np.divide(along, length, out=np.zeros_like(along), where=can)
    weight = np.where(np.abs(weight) <= most, weight, 0.0)
    left = missed - weight[:, None] * residual
    squares = np.maximum(inner(left, left), 0.0) + response * arriving * (intervals.ends**2 + weight**2)
    amplified = simulation.response.end[intervals.s] - intervals.held[:, 2] + share * intervals.moved[:, 2]
    return squares, arriving, amplified


def _from_before(
    simulation: Simulation, intervals: _Intervals, arriving: np.ndarray, amplified: np.ndarray
) -> np.ndarray:
    """(T, N) what a line makes of the error response at s to the error of the interval before it, on average."""
    count = simulation.response.calls
    place = intervals.s * (count + 1) + intervals.t
    size = count * (count + 1)
    ways = np.maximum(np.bincount(place, minlength=size), 1)
    mean = np.stack([np.bincount(place, weights=row, minlength=size) for row in arriving]) / ways
    left: np.ndarray = mean[:, intervals.before * (count + 1) + intervals.s]
    # The error itself is counted in the interval before.
    more = np.maximum(amplified**2 - simulation.response.end[intervals.s] ** 2, 0.0)
    left *= simulation.error_response.deviation[intervals.s] ** 2 * more
    return left
