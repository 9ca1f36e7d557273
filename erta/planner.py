"""From a problem and settings to a plan. All of it is arithmetic on small tables: deterministic, no model.

1. `_budget`: how many calls to compute. 2. `_search`, or a list or the paper's rule: which ones. 3. The simulation fits
slopes and corrections. 4. `_best`: another candidate takes the plan's place where it is predicted to be far better.
5. The paper's timestep adjustment moves the sigmas, if asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from . import schedules
from .interval_costs import Key
from .notes import Note, note
from .plan import Plan, full_plan, rounded
from .predictors import FittedLine, Hold, Predictor
from .problem import MAX_WORK, Problem
from .profile import Profile
from .response import ImpulseResponse
from .schedules import Schedule
from .settings import Settings
from .simulation import Fit
from .timesteps import adjusted, phi

# A relative residual that only says "lost"; a feature that is all zero would have an infinite one.
MAX_RESIDUAL = 1e6

# A search over more than so many intervals would take seconds: runs of hundreds of calls at high speeds.
MAX_INTERVALS = 200_000

# Predictions rank plans to about these factors, with and without a measured error response; smaller differences are
# ignored.
ACCURACY, UNMEASURED_ACCURACY = 2.0, 1.5

# The prior's share in the costs of the search, in logarithms. Both costs are off by unknown factors, and neither is
# known to be nearer, so the plan has half of each. Candidates beside it: recorded runs alone, and the prior alone.
SHARES = (0.5, 0.0, 1.0)

# Other candidates: computed calls spread by these powers of their rank. Lists published for Wan2.1 lie near 1.6.
POWERS = (1.0, 1.6)

# Speeds of the error curve.
CURVE = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)

# With fewer calls there is nothing between the ends that could be predicted.
MIN_CALLS = 6


def solve(problem: Problem, settings: Settings) -> Plan:
    """The plan of one run. No randomness. Raises UnknownResponse where the sampler cannot be planned for."""
    if settings.computes_all:
        return full_plan(problem.response.sigmas, settings)
    if problem.calls < MIN_CALLS:
        return full_plan(problem.response.sigmas, settings, note("too_few_calls", calls=problem.calls, least=MIN_CALLS))
    notes = list(problem.notes())
    way = _Way(problem, settings, *settings.method(problem.profile is not None, problem.response.stochastic))
    filled = _best(way, *_choose(way, notes))
    if filled.way.predictor is not way.predictor:
        notes.append(note("held"))
    moved = _adjust(way, filled.compute, notes)
    if len(moved):
        elsewhere = problem.on(moved)
        if elsewhere.resets == problem.resets:
            filled = _Filled(replace(filled.way, problem=elsewhere), filled.compute)
            notes.append(note("timesteps_not_predicted"))
        else:
            moved = np.empty(0)
            notes.append(note("timesteps_cross_edge"))
    digest = "" if problem.profile is None else problem.digest
    return replace(filled.plan(), schedule=rounded(moved), profile=digest, notes=tuple(notes))


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


def error_curve(problem: Problem, settings: Settings) -> tuple[Point, ...]:
    """The same settings at the speeds of CURVE, on one problem; nothing for runs so long that it takes seconds."""
    if problem.calls**3 > MAX_WORK:
        return ()
    points = []
    for speed in CURVE:
        plan = solve(problem, replace(settings, speed=speed))
        median, worst = plan.predicted_error or (0.0, 0.0)
        points.append(Point(speed, plan.computed, plan.calls, median, worst, schedules.as_text(plan.compute)))
    return tuple(points)


@dataclass(frozen=True)
class _Way:
    """One way to fill the skipped intervals of a run: a predictor, with or without corrections."""

    problem: Problem
    settings: Settings
    predictor: type[Predictor]
    corrector: bool

    def held(self) -> _Way | None:
        """The same with a zero-order hold and no corrections, which amplifies no error; None where that is no choice.

        Nor where fresh noise covers what is amplified: holding lost 5 dB in the median there, for 1 dB in the worst.
        """
        measured, stochastic = self.problem.profile is not None, self.problem.response.stochastic
        if not measured or self.predictor is not FittedLine or not self.corrector or stochastic:
            return None
        return replace(self, predictor=Hold, corrector=False)

    def required(self) -> frozenset[int]:
        """Calls that are computed whatever the search prefers: ends, history resets, and what was not measured."""
        count = self.problem.calls
        start, end = min(self.settings.protect_start, count), max(count - self.settings.protect_end, 0)
        return frozenset({0, *range(start), *range(end, count)}) | self.problem.unmeasured | self.problem.resets


@dataclass(frozen=True)
class _Filled:
    """A schedule filled in one way: fitted and predicted once, whatever is asked of it."""

    way: _Way
    compute: Schedule

    @cached_property
    def fit(self) -> Fit:
        """Slopes and corrections."""
        return self.way.problem.fitting.fit(self.compute, self.way.predictor, self.way.corrector)

    @cached_property
    def predicted(self) -> Fit:
        """What becomes of them, as errors are predicted."""
        return self.way.problem.prediction.follow(self.compute, self.fit)

    @cached_property
    def errors(self) -> np.ndarray:
        """(T,) the predicted relative error of the final latent in each recorded run."""
        known = self.way.problem.followed(self.fit)
        return self.way.problem.calibrated(self.predicted.squares if known is None else known)

    @cached_property
    def rank(self) -> float:
        """What candidates are compared by: the median predicted error, or, where no error response was measured, its
        geometric mean with the error by the prior. Recorded runs alone were 3.5 times too hopeful on a rough model."""
        median = float(np.median(self.errors))
        if self.way.problem.perturbed:
            return median
        return float(np.sqrt(median * np.sqrt(self.way.problem.prior.follow(self.compute, self.fit).squares[0])))

    def plan(self) -> Plan:
        """The plan, on the problem's own sigmas."""
        problem, fit = self.way.problem, self.fit
        predicted_error, limits = self._expected()
        return Plan(
            settings=self.way.settings,
            sigmas=rounded(problem.response.sigmas),
            compute=self.compute,
            coefficients=tuple(rounded(c) for c in fit.coefficients),
            offsets=rounded(fit.offsets),
            corrections=rounded(fit.corrections),
            resets=tuple(sorted(problem.resets)),
            residual_limits=limits,
            predicted_error=predicted_error,
        )

    def _expected(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """A Plan's ``predicted_error`` and ``residual_limits``."""
        problem = self.way.problem
        unchecked = np.zeros(problem.calls)
        if problem.profile is None:
            return (), rounded(unchecked)
        # The worst of few runs says less about the next one.
        wider = 1.0 + 1.0 / len(problem.profile.tables)
        checks = self.way.settings.checks and not problem.sparse
        limits = np.minimum(wider * np.array(self.predicted.residuals), MAX_RESIDUAL) if checks else unchecked
        return rounded([np.median(self.errors), self.errors.max()]), rounded(limits)


def _best(way: _Way, compute: Schedule, *others: Schedule) -> _Filled:
    """The first schedule, or the candidate of least `rank` where that is far ahead of it.

    No more candidates than these: a free search on the predicted error finds what it is wrong about.
    """
    first, held = _Filled(way, compute), way.held()
    candidates = [_Filled(way, other) for other in dict.fromkeys(others) if other != compute]
    candidates += [_Filled(held, compute)] if held else []
    best = min(candidates, key=lambda candidate: candidate.rank, default=None)
    margin = ACCURACY if way.problem.perturbed else UNMEASURED_ACCURACY
    return best if best and margin * best.rank < first.rank else first


def _choose(way: _Way, notes: list[Note]) -> list[Schedule]:
    """The calls to compute, and other choices of them that cost little to find."""
    settings, count, profile = way.settings, way.problem.calls, way.problem.profile
    required = way.required()
    computed = _budget(count, settings, required, notes)
    if settings.preset:
        if settings.preset_steps != count:
            notes.append(note("preset_stretched", steps=settings.preset_steps, calls=count))
        return [schedules.preset(settings.preset, settings.preset_steps, count, required)]
    if settings.planned:
        return _search(way, computed, required, notes)
    if profile is None:
        notes.append(note("paper_without_profile"))
        return [schedules.even(count, computed, required)]
    relative = distances(profile)
    if settings.threshold:
        return [schedules.greedy(relative, settings.threshold, required)]
    greedily, threshold = schedules.greedy_for_budget(relative, computed, required)
    notes.append(note("threshold_found", threshold=f"{threshold:.3g}"))
    return [greedily]


def distances(profile: Profile) -> np.ndarray:
    """(M, M) relative L1 distance of each pair of calls, the mean over recorded runs (docs/method.md, The paper)."""
    return schedules.relative_l1(
        *(np.stack([getattr(table, name) for table in profile.tables]) for name in ("l1", "norm1"))
    )


def _budget(count: int, settings: Settings, required: frozenset[int], notes: list[Note]) -> int:
    """How many calls to compute: the nearest to the speed that the required calls allow."""
    wanted = round(count / settings.speed)
    least = max(2, len(required))
    if wanted < least:
        limit = f"{count / least:.2f}"
        notes.append(note("speed_limited", speed=f"{settings.speed:g}", calls=count, computed=least, limit=limit))
    return min(max(wanted, least), count)


def _search(way: _Way, computed: int, required: frozenset[int], notes: list[Note]) -> list[Schedule]:
    """The schedules with the least sum of interval costs, by the prior's share in them, and simple ones."""
    count, resets, wanted = way.problem.calls, way.problem.resets, way.settings.longest_gap
    limit = min(wanted or schedules.longest_interval(count, computed), count)
    while True:
        if count * limit**2 > MAX_INTERVALS:
            notes.append(note("search_too_long", calls=count))
            return [schedules.even(count, computed, required)]
        intervals = schedules.possible_intervals(count, limit, required, resets)
        costs = way.problem.interval_costs(intervals, way.predictor.slope, way.corrector)
        try:
            found = [
                schedules.budget(count, computed, mixed(intervals, *costs, share), limit, required, resets)
                for share in (SHARES if way.problem.profile is not None else SHARES[:1])
            ]
            break
        except ValueError:
            if limit >= count:
                raise
            limit = min(2 * limit, count)
    longest = int(np.diff([*np.flatnonzero(found[0]), count]).max())
    if 0 < wanted < longest:
        notes.append(note("longest_gap_exceeded", computed=computed, wanted=wanted, longest=longest))
    spread = [] if wanted else [schedules.spread(count, computed, power, required) for power in POWERS]
    return [*found, *(one for one in spread if sum(one) == computed)] if len(found) > 1 else found


def mixed(keys: list[Key], recorded: np.ndarray, generic: np.ndarray, share: float) -> dict[Key, float]:
    """What a search adds up: recorded ** (1 - share) * generic ** share."""
    return dict(zip(keys, (recorded ** (1.0 - share) * generic**share).tolist(), strict=True))


def _adjust(way: _Way, compute: Schedule, notes: list[Note]) -> np.ndarray:
    """Adjusted sigmas (N + 1,), or an empty array where they are off or cannot be known."""
    schedule, profile = way.problem.schedule, way.problem.profile
    if not way.settings.timesteps:
        return np.empty(0)
    if profile is None:
        notes.append(note("timesteps_need_profile"))
        return np.empty(0)
    falling = np.all(np.diff(schedule) < 0.0)
    if not falling or not way.problem.response.calls_once_per_step(schedule):
        notes.append(note("timesteps_sampler"))
        return np.empty(0)
    return adjusted(schedule, phi(np.stack([table.l1 for table in profile.tables]), compute))


def adjusted_schedule(schedule: np.ndarray, profile: Profile, settings: Settings) -> np.ndarray:
    """(N + 1,) sigmas for the Timestep Adjuster node: the plan's own, for a sampler that steps like Euler's method."""
    plan = solve(Problem(schedule, euler_response, profile), replace(settings, timesteps=True))
    return np.array(plan.schedule) if plan.schedule else np.asarray(schedule, dtype=np.float64)


def euler_response(schedule: np.ndarray) -> ImpulseResponse:
    """Euler's impulse response in closed form: output i moves every later latent by sigma[i + 1] - sigma[i]."""
    sigmas = np.asarray(schedule, dtype=np.float64)
    steps = np.diff(sigmas)
    count = len(steps)
    return ImpulseResponse(sigmas[:-1], np.triu(np.repeat(steps[:, None], count + 1, axis=1), 1))
