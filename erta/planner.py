"""From a problem and settings to a plan. All of it is arithmetic on small tables: deterministic, no model.

1. `_budget`: how many calls to compute. 2. `_search`, or a list or the paper's rule: which ones. 3. The simulation fits
slopes and corrections. 4. `_best`: another candidate takes the plan's place where it is predicted to be far better.
5. The paper's timestep adjustment moves the sigmas, if asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from . import schedules
from .interval_costs import Key
from .notes import Note, note
from .plan import MOST_RESIDUAL, Plan, drawn, full_plan, predicted_calls, rounded, slopes_of
from .predictors import Affine, FittedLine, Hold, Predictor
from .problem import MAX_WORK, Problem, saturated
from .profile import Profile
from .response import ImpulseResponse
from .schedules import Schedule
from .settings import Settings
from .simulation import Fit
from .timesteps import adjusted, phi

# Rounding alone makes residuals of so much.
LEAST_RESIDUAL = 1e-6

# A search over more than so many intervals would take seconds: runs of hundreds of calls at high speeds.
MAX_INTERVALS = 200_000

# Predictions rank plans to about these factors, with and without a measured error response; smaller differences are
# ignored.
ACCURACY, UNMEASURED_ACCURACY = 2.0, 1.5

# The prior's share in the costs of the search, in logarithms. Both costs are off by unknown factors, and neither is
# known to be nearer, so the plan has half of each. Candidates beside it: recorded runs alone, and the prior alone.
SHARES = (0.5, 0.0, 1.0)

# A predicted error is no less than this share of the prior's: below lie tables that no model gives. The least of two
# trained models at nine settings was 0.05.
LEAST_SHARE = 0.001

# A median predicted error from here on is another picture: then everything is computed, and the report says why.
LOST = 0.9

# Other candidates: computed calls spread by these powers of their rank. Lists published for Wan2.1 lie near 1.6.
POWERS = (1.0, 1.6)

# Speeds of the error curve.
CURVE = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)

# With fewer calls there is nothing between the ends that could be predicted.
MIN_CALLS = 6


def solve(problem: Problem, settings: Settings) -> Plan:
    """The plan of one run. No randomness. Raises UnknownResponse where the sampler cannot be planned for."""
    if settings.computes_all or problem.calls < MIN_CALLS:
        few = () if settings.computes_all else (note("too_few_calls", calls=problem.calls, least=MIN_CALLS),)
        return _made_for(replace(problem, source=None), full_plan(problem.response.sigmas, settings, *few))
    filled, factors, notes = _planned(problem, settings)
    if filled.loss >= LOST:
        notes.append(note("lost", speed=f"{settings.speed:g}", error=f"{filled.loss:.0%}"))
        return _made_for(problem, full_plan(problem.response.sigmas, settings, *notes))
    moved = rounded(filled.way.problem.schedule) if factors else ()
    return _made_for(problem, replace(filled.plan(), schedule=moved, factors=factors, notes=tuple(notes)))


def _planned(problem: Problem, settings: Settings) -> tuple[_Filled, tuple[float, ...], list[Note]]:
    """The best plan for the settings, whatever error is predicted of it, and the step factors of its sigmas."""
    notes = list(problem.notes())
    way = _Way(problem, settings, *settings.method(problem.profile is not None, problem.response.stochastic))
    filled = _best(way, *_choose(way, notes))
    if filled.way.by_prior:
        notes.append(note("built_in_ahead"))
    elif filled.way.predictor is not way.predictor:
        notes.append(note("held"))
    return *_moved(filled, notes), notes


def _moved(filled: _Filled, notes: list[Note]) -> tuple[_Filled, tuple[float, ...]]:
    """The same on the adjusted sigmas, and the step factors that lead to them; () where they stay as they are."""
    problem, factors = filled.way.problem, _factors(filled.way, filled.compute, notes)
    if not factors:
        return filled, ()
    elsewhere = problem.on(np.array(rounded(adjusted(rounded(problem.schedule), factors))))
    if elsewhere.resets != problem.resets:
        notes.append(note("timesteps_cross_edge"))
        return filled, ()
    notes.append(note("timesteps_not_predicted"))
    return _Filled(replace(filled.way, problem=elsewhere), filled.compute), factors


def _made_for(problem: Problem, plan: Plan) -> Plan:
    """The plan with what it belongs to."""
    return replace(
        plan,
        nominal=rounded(problem.schedule),
        edges=rounded(problem.edges),
        impulse=rounded(problem.response.signature),
        profile="" if problem.profile is None else problem.digest,
    )


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
    if problem.calls < MIN_CALLS:
        return tuple(Point(speed, problem.calls, problem.calls, 0.0, 0.0, "1" * problem.calls) for speed in CURVE)
    found = ((speed, _planned(problem, replace(settings, speed=speed))[0]) for speed in CURVE)
    return tuple(filled.point(speed) for speed, filled in found)


@dataclass(frozen=True)
class _Way:
    """One way to fill the skipped intervals of a run: a predictor, with or without corrections."""

    problem: Problem
    settings: Settings
    predictor: type[Predictor]
    corrector: bool
    by_prior: bool = False  # fitted to the prior alone, as the built-in plan is

    def held(self) -> _Way | None:
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
class _Filled:
    """A schedule filled in one way: fitted and predicted once, whatever is asked of it."""

    way: _Way
    compute: Schedule

    @cached_property
    def fit(self) -> Fit:
        """Slopes and corrections."""
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
        """The median predicted error; by the prior where nothing was measured."""
        problem = self.way.problem
        errors = saturated(self.fit.squares) if problem.profile is None else self.errors
        return float(np.median(errors))

    @property
    def safe(self) -> bool:
        """Whether errors do not grow in it by the prior, whatever the profile says."""
        return not self.way.problem.amplifies(self.prior_error, self.compute, self.way.predictor)

    def point(self, speed: float) -> Point:
        """Of an error curve."""
        measured = self.way.problem.profile is not None
        median, worst = (float(np.median(self.errors)), float(self.errors.max())) if measured else (0.0, 0.0)
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
            predicted_error=rounded([np.median(self.errors), self.errors.max()]) if problem.profile else (),
        )

    def _offsets(self) -> tuple[float, ...]:
        """In root mean squares of the newest computed feature, over the recorded runs."""
        grams, found = self.way.problem.fitting.grams.sum(axis=0), np.array(self.fit.offsets)
        for i, history in enumerate(schedules.histories(self.compute, self.way.problem.resets)):
            if found[i]:
                found[i] /= np.sqrt(grams[history[0], history[0]] / grams[-1, -1])
        return rounded(found)

    def _limits(self, resets: tuple[int, ...]) -> tuple[float, ...]:
        """A Plan's ``residual_limits``: what was recorded, where it was, and MOST_RESIDUAL elsewhere."""
        problem, limits = self.way.problem, np.zeros(self.way.problem.calls)
        if not self.way.settings.checks:
            return rounded(limits)
        compared = np.array([i for i, _ in predicted_calls(self.compute, resets) if self.compute[i]], dtype=int)
        limits[compared] = MOST_RESIDUAL
        if problem.profile is not None and not problem.sparse:
            # The worst of few runs says less about the next one.
            wider = (1.0 + 1.0 / len(problem.profile.tables)) * np.array(self.predicted.residuals)
            known = np.setdiff1d(compared, problem.unreached)
            limits[known] = np.clip(wider[known], LEAST_RESIDUAL, MOST_RESIDUAL)
        return rounded(limits)


def _best(way: _Way, compute: Schedule, *others: Schedule) -> _Filled:
    """The first schedule, or the candidate of least `rank` where that is far ahead of it; none in which errors grow.

    No more candidates than these: a free search on the predicted error finds what it is wrong about.
    """
    first = _Filled(way, compute)
    if way.problem.profile is None:
        return first
    candidates = sorted(_candidates(way, compute, *others), key=lambda candidate: candidate.rank)
    margin = ACCURACY if way.problem.perturbed else UNMEASURED_ACCURACY
    ahead = [candidate for candidate in candidates if margin * candidate.rank < first.rank]
    return next((one for one in [*ahead, first, *candidates] if one.safe), first)


def _candidates(way: _Way, compute: Schedule, *others: Schedule) -> Iterator[_Filled]:
    """Other schedules, the same held, and the built-in plan, whose schedule is the second after a search."""
    yield from (_Filled(way, other) for other in dict.fromkeys(others) if other != compute)
    held = way.held()
    if held:
        yield _Filled(held, compute)
    built_in = replace(way, predictor=Hold if way.predictor is Affine else way.predictor, by_prior=True)
    yield _Filled(built_in, others[1] if len(others) > 1 else compute)


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


def _factors(way: _Way, compute: Schedule, notes: list[Note]) -> tuple[float, ...]:
    """(N,) step factors of the timestep adjustment, () where it is off or cannot be known."""
    schedule, profile = way.problem.schedule, way.problem.profile
    if not way.settings.timesteps:
        return ()
    if profile is None:
        notes.append(note("timesteps_need_profile"))
        return ()
    falling = np.all(np.diff(schedule) < 0.0)
    if not falling or not way.problem.response.calls_once_per_step(schedule):
        notes.append(note("timesteps_sampler"))
        return ()
    return rounded(phi(np.stack([table.l1 for table in profile.tables]), compute))


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
