"""A candidate for a plan: one schedule, filled in one way, fitted and predicted once whatever is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from . import schedules
from .plan import MOST_RESIDUAL, Part, Plan, drawn, predicted_calls, rounded, slopes_of
from .predictors import Affine, FittedLine, Hold, Predictor
from .problem import Problem
from .schedules import Schedule
from .settings import Settings
from .simulation import Fit

# Rounding alone makes residuals of so much.
LEAST_RESIDUAL = 1e-6

# A predicted error is no less than this share of the prior's: below lie tables that no model gives. The least of two
# trained models at nine settings was 0.05.
LEAST_SHARE = 0.001


@dataclass(frozen=True)
class Point:
    """One speed of an error curve. computed, of: model calls. median, worst: predicted relative error of the final
    latent over the recorded runs, at most 1; 0 where nothing was measured. compute: the schedule as text."""

    speed: float
    computed: int
    of: int
    median: float
    worst: float
    compute: str


@dataclass(frozen=True)
class Way:
    """One way to fill the skipped intervals of a run: a predictor, with or without corrections."""

    problem: Problem
    settings: Settings
    predictor: type[Predictor]
    corrector: bool
    by_prior: bool = False  # fitted to the prior alone, as the built-in plan is

    def held(self) -> Way | None:
        """The same with a zero-order hold and no corrections, which amplifies no error; None where that is no choice.

        Nor where fresh noise covers what is amplified: holding lost 5 dB in the median there, for 1 dB in the worst.
        """
        measured, stochastic = self.problem.profile is not None, self.problem.response.stochastic
        if not measured or self.predictor is not FittedLine or not self.corrector or stochastic:
            return None
        return replace(self, predictor=Hold, corrector=False)

    def required(self) -> frozenset[int]:
        """Calls that are computed whatever the search prefers: ends and history resets."""
        count = self.problem.calls
        start, end = min(self.settings.protect_start, count), max(count - self.settings.protect_end, 0)
        return frozenset({0, *range(start), *range(end, count)}) | self.problem.resets


@dataclass(frozen=True)
class Filled:
    """A schedule filled in one way: fitted and predicted once, whatever is asked of it. given: what was fitted to more
    than this problem, of which it is a part."""

    way: Way
    compute: Schedule
    given: Fit | None = field(default=None, compare=False)

    @cached_property
    def parts(self) -> tuple[Filled, ...]:
        """The same for each part of a nested latent; none where the latent is whole."""
        problems = self.way.problem.parts
        return tuple(Filled(replace(self.way, problem=problem), self.compute, self.fit) for problem in problems)

    @cached_property
    def fit(self) -> Fit:
        """Slopes and corrections."""
        if self.given is not None:
            return self.given
        problem = self.way.problem
        simulation = problem.built_in if self.way.by_prior else problem.fitting
        return simulation.fit(self.compute, self.way.predictor, self.way.corrector)

    @cached_property
    def predicted(self) -> Fit:
        """What becomes of them, as errors are predicted."""
        return self.way.problem.prediction.follow(self.compute, self.fit)

    @cached_property
    def errors(self) -> np.ndarray:
        """(T,) the predicted relative error of the final latent in each recorded run."""
        found: np.ndarray = np.maximum(
            self.way.problem.calibrated(self.predicted.squares), min(LEAST_SHARE * self.prior_error, 1.0)
        )
        return found

    @cached_property
    def prior_error(self) -> float:
        """What the prior says of it."""
        fit = self.fit
        decided = Fit(fit.coefficients, list(self._offsets()), fit.corrections, fit.residuals)
        return self.way.problem.prior_error(self.compute, decided)

    @cached_property
    def rank(self) -> float:
        """What candidates are compared by: the predicted error, or, where no error response was measured, its geometric
        mean with the error by the prior. Recorded runs alone were 3.5 times too hopeful on a rough model."""
        problem = self.way.problem
        (error,) = problem.calibrated(np.array([problem.mean_square(self.compute, self.fit)]))
        if problem.perturbed:
            return float(error)
        return float(np.sqrt(error * self.prior_error))

    @property
    def loss(self) -> float:
        """The median predicted error, as it is before `calibrated` if that is less: one perturbed run says little about
        a far larger error. 0 where nothing was measured: the prior has no size. Of the parts of a nested latent the
        largest."""
        if self.way.problem.profile is None:
            return 0.0
        if self.parts:
            return max(part.loss for part in self.parts)
        return float(min(np.median(self.errors), np.median(self.predicted.squares) ** 0.5))

    @property
    def safe(self) -> bool:
        """Whether errors do not grow in it by the prior, whatever the profile says."""
        return not self.way.problem.amplifies(self.prior_error, self.compute, self.way.predictor)

    def point(self, speed: float) -> Point:
        """Of an error curve."""
        median, worst = self.median_and_worst or (0.0, 0.0)
        return Point(speed, sum(self.compute), len(self.compute), median, worst, schedules.as_text(self.compute))

    def plan(self) -> Plan:
        """The plan, on the problem's own sigmas."""
        problem, fit = self.way.problem, self.fit
        sigmas, resets = rounded(problem.response.sigmas), tuple(sorted(problem.resets))
        coefficients = tuple(rounded(c) for c in fit.coefficients)
        if self.way.predictor is not Affine:
            coefficients = drawn(sigmas, self.compute, resets, slopes_of(sigmas, self.compute, resets, coefficients))
        return Plan(
            settings=self.way.settings,
            sigmas=sigmas,
            compute=self.compute,
            coefficients=coefficients,
            offsets=self._offsets(),
            corrections=rounded(fit.corrections),
            resets=resets,
            residual_limits=self._limits(resets),
            predicted_error=self.median_and_worst,
            parts=tuple(Part(part.median_and_worst, part._limits(resets)) for part in self.parts),
        )

    @property
    def median_and_worst(self) -> tuple[float, ...]:
        """A Plan's ``predicted_error``."""
        if self.parts:
            return tuple(map(max, zip(*(part.median_and_worst for part in self.parts), strict=True)))
        measured = self.way.problem.profile is not None
        return rounded([np.median(self.errors), self.errors.max()]) if measured else ()

    def _offsets(self) -> tuple[float, ...]:
        """In root mean squares of the newest computed feature, over the recorded runs."""
        grams, found = self.way.problem.fitting.grams.sum(axis=0), np.array(self.fit.offsets)
        for i, history in enumerate(schedules.histories(self.compute, self.way.problem.resets)):
            if found[i]:
                found[i] /= np.sqrt(grams[history[0], history[0]] / grams[-1, -1])
        return rounded(found)

    def _limits(self, resets: tuple[int, ...]) -> tuple[float, ...]:
        """A Plan's ``residual_limits``: what was recorded, where it was, and MOST_RESIDUAL elsewhere."""
        if self.parts:
            return tuple(map(max, zip(*(part._limits(resets) for part in self.parts), strict=True)))
        problem, limits = self.way.problem, unmeasured_limits(self.way.settings, self.compute, resets)
        if problem.profile is not None and not problem.sparse:
            # The worst of few runs says less about the next one.
            wider = (1.0 + 1.0 / len(problem.profile.tables)) * np.array(self.predicted.residuals)
            known = np.setdiff1d(np.flatnonzero(limits), problem.unreached)
            limits[known] = np.clip(wider[known], LEAST_RESIDUAL, MOST_RESIDUAL)
        return rounded(limits)


def unmeasured_limits(settings: Settings, compute: Schedule, resets: tuple[int, ...]) -> np.ndarray:
    """(M,) residual limits where none was recorded: MOST_RESIDUAL at computed calls that a prediction was made for."""
    limits = np.zeros(len(compute))
    if settings.checks:
        limits[[i for i, _ in predicted_calls(compute, resets) if compute[i]]] = MOST_RESIDUAL
    return limits
