"""Plan: for every model call of one coming run, compute it or what to reuse, decided before the first one.

A plan is complete by itself. plan_file.py makes it the JSON that travels in a workflow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .notes import Note
from .predictors import History, line
from .schedules import Schedule, histories
from .settings import Settings
from .simulation import Fit

# A residual of twice so many times the feature's length is no prediction, whatever was recorded.
MOST_RESIDUAL = 4.0


@dataclass(frozen=True)
class Part:
    """What a plan says of one part of a nested latent, such as its picture or its sound. Fields: as the Plan's."""

    predicted_error: tuple[float, ...]
    residual_limits: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """One run of M model calls, decided. All numbers are rounded to 9 digits when made, so JSON carries them exactly.

    sigmas: (M,) sigma that each call is expected at. compute: (M,), True = computed. coefficients: (M,) of tuples,
    weights of the newest computed features, newest first; at a computed call those of the prediction that it is
    compared with, () where there is none. offsets: (M,) added constants, in root mean squares of the newest feature.
    corrections: (M,) share of the residual that is handed to the sampler on top, 0 for none. residual_limits: (M,)
    largest residual to expect, over the feature's length, up to MOST_RESIDUAL; 0: not checked. resets: calls from which
    on older features are not used. schedule: the adjusted sigmas to sample on, with the trailing one, () for the
    nominal ones. predicted_error: (median, worst) over recorded runs of the final latent's relative error, () where
    nothing was measured. parts: of a nested latent whose parts were measured apart; the largest of their errors and
    limits are the plan's. notes: for the report.

    What it was made for: nominal: (N + 1,) sigmas. factors: (N,) that made ``schedule`` of them, or (). edges: of
    conditioning and guidance, in sigmas. impulse: the sampler's `response.signature`. guidance: the scale, None where
    there is no such number. profile and model: digests, or "".
    """

    settings: Settings
    sigmas: tuple[float, ...]
    compute: Schedule
    coefficients: tuple[tuple[float, ...], ...]
    offsets: tuple[float, ...]
    corrections: tuple[float, ...]
    residual_limits: tuple[float, ...]
    resets: tuple[int, ...] = (0,)
    schedule: tuple[float, ...] = ()
    predicted_error: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()
    nominal: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    impulse: tuple[float, ...] = ()
    guidance: float | None = None
    profile: str = ""
    model: str = ""
    notes: tuple[Note, ...] = field(default=(), compare=False)

    @property
    def calls(self) -> int:
        """M, the run's model calls."""
        return len(self.compute)

    @property
    def computed(self) -> int:
        """How many of them are computed."""
        return sum(self.compute)


def decided(plan: Plan) -> Fit:
    """What a plan decides, for a simulation to follow."""
    return Fit(list(plan.coefficients), list(plan.offsets), list(plan.corrections), [])


def full_plan(sigmas: np.ndarray, settings: Settings, *notes: Note) -> Plan:
    """Everything computed, with the reason why."""
    count = len(sigmas)
    nothing = (0.0,) * count
    return Plan(settings, rounded(sigmas), (True,) * count, ((),) * count, nothing, nothing, nothing, notes=notes)


def predicted_calls(compute: Schedule, resets: Sequence[int]) -> Iterator[tuple[int, History]]:
    """(call, computed calls before it) of each call that is predicted: the reused ones, and those right behind them."""
    for i, history in enumerate(histories(compute, resets)):
        if history and not (compute[i] and compute[i - 1]):
            yield i, history


def slopes_of(
    sigmas: Sequence[float], compute: Schedule, resets: Sequence[int], weights: Sequence[tuple[float, ...]]
) -> tuple[float, ...]:
    """(M,) share of the line's slope behind each prediction's coefficients, to 6 digits; 0 where nothing is drawn."""
    found, places = [0.0] * len(compute), np.asarray(sigmas)
    for i, history in predicted_calls(compute, resets):
        whole = line(places, history, i, 1.0).coefficients
        if len(whole) == 2 == len(weights[i]) and whole[1]:
            found[i] = float(f"{weights[i][1] / whole[1]:.6g}")
    return tuple(found)


def drawn(
    sigmas: Sequence[float], compute: Schedule, resets: Sequence[int], slopes: Sequence[float]
) -> tuple[tuple[float, ...], ...]:
    """(M,) coefficients from slopes, the reverse of `slopes_of`: the same for equal numbers, on every machine."""
    found: list[tuple[float, ...]] = [()] * len(compute)
    places = np.asarray(sigmas)
    for i, history in predicted_calls(compute, resets):
        found[i] = rounded(line(places, history, i, slopes[i]).coefficients)
    return tuple(found)


def rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """To 9 digits: more than float32 arithmetic uses, and what JSON then carries without loss."""
    return tuple(float(f"{value:.9g}") for value in values)
