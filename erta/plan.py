"""Plan: for every model call of one coming run, compute it or what to reuse, decided before the first one.

A plan is complete by itself. plan_file.py makes it the JSON that travels in a workflow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .notes import Note
from .schedules import Schedule
from .settings import Settings


@dataclass(frozen=True)
class Plan:
    """One run of M model calls, decided. All numbers are rounded to 9 digits when made, so JSON carries them exactly.

    sigmas: (M,) sigma that each call is expected at. compute: (M,), True = computed. coefficients: (M,) of tuples,
    weights of the newest computed features, newest first; at a computed call those of the prediction that it is
    compared with, () where there is none. offsets: (M,) added constants. corrections: (M,) share of the residual that
    is handed to the sampler on top, 0 for none. residual_limits: (M,) largest residual to expect, over the feature's
    length; 0: not checked. resets: calls from which on older features are not used. schedule: the adjusted sigmas to
    sample on, with the trailing one, () for the nominal ones. predicted_error: (median, worst) over recorded runs of
    the final latent's relative error, () where nothing was measured. profile and model: digests of what it was made
    for, or "". notes: for the report.
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


def full_plan(sigmas: np.ndarray, settings: Settings, *notes: Note) -> Plan:
    """Everything computed, with the reason why."""
    count = len(sigmas)
    nothing = (0.0,) * count
    return Plan(settings, rounded(sigmas), (True,) * count, ((),) * count, nothing, nothing, nothing, notes=notes)


def rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """To 9 digits: more than float32 arithmetic uses, and what JSON then carries without loss."""
    return tuple(float(f"{value:.9g}") for value in values)
