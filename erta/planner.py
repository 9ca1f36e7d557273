"""From a problem and settings to a plan. All of it is arithmetic on small tables: deterministic, no model.

1. `_budget`: how many calls to compute. 2. `_search`, or a list or the paper's rule: which ones. 3. The simulation fits
slopes and corrections. 4. `_best`: another candidate takes the plan's place where it is predicted to be far better.
5. The paper's timestep adjustment moves the sigmas, if asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from . import schedules
from .candidate import Filled, Point, Way, unmeasured_limits
from .interval_costs import Key
from .notes import Note, note
from .plan import Plan, drawn, full_plan, rounded
from .predictors import Affine, Hold, Predictor
from .problem import MAX_WORK, Problem
from .profile import Profile
from .response import ImpulseResponse
from .schedules import Schedule
from .settings import Settings
from .timesteps import adjusted, phi

# To plan a run of more calls, or to search more intervals, as at high speeds, would take seconds.
MOST_PLANNED, MAX_INTERVALS = 200, 200_000

# Predictions rank plans to about these factors, with and without a measured error response; smaller differences are
# ignored.
ACCURACY, UNMEASURED_ACCURACY = 2.0, 1.5

# The prior's share in the costs of the search, in logarithms. Both costs are off by unknown factors, and neither is
# known to be nearer, so the plan has half of each. Candidates beside it: recorded runs alone, and the prior alone.
SHARES = (0.5, 0.0, 1.0)

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
    if problem.calls > MOST_PLANNED:
        return _long_plan(replace(problem, source=None), settings)
    filled, factors, notes = _planned(problem, settings)
    if filled.loss >= LOST:
        errors = ", ".join(f"{part.loss:.0%}" for part in filled.parts)
        lost = note("lost_part", speed=f"{settings.speed:g}", errors=errors)
        notes.append(lost if errors else note("lost", speed=f"{settings.speed:g}", error=f"{filled.loss:.0%}"))
        return _made_for(problem, full_plan(problem.response.sigmas, settings, *notes))
    moved = rounded(filled.way.problem.schedule) if factors else ()
    return _made_for(problem, replace(filled.plan(), schedule=moved, factors=factors, notes=tuple(notes)))


def _planned(problem: Problem, settings: Settings) -> tuple[Filled, tuple[float, ...], list[Note]]:
    """The best plan for the settings, whatever error is predicted of it, and the step factors of its sigmas."""
    notes = list(problem.notes())
    way = Way(problem, settings, *_method(problem, settings))
    filled = _best(way, *_choose(way, notes))
    if filled.way.by_prior:
        notes.append(note("built_in_ahead"))
    elif filled.way.predictor is not way.predictor:
        notes.append(note("held"))
    return *_moved(filled, notes), notes


def _method(problem: Problem, settings: Settings) -> tuple[type[Predictor], bool]:
    """Predictor and whether errors are corrected. Only a profile knows how much of a line fresh noise leaves; in
    multistep methods it leaves too little: holding was worth 2 dB in the median and 5 in the worst case there."""
    measured, response = problem.profile is not None, problem.response
    return settings.method(measured, response.stochastic and (response.multistep or not measured))


def _moved(filled: Filled, notes: list[Note]) -> tuple[Filled, tuple[float, ...]]:
    """The same on the adjusted sigmas, and the step factors that lead to them; () where they stay as they are."""
    problem, factors = filled.way.problem, _factors(filled.way, filled.compute, notes)
    if not factors:
        return filled, ()
    elsewhere = problem.on(np.array(rounded(adjusted(rounded(problem.schedule), factors))))
    if elsewhere.resets != problem.resets:
        notes.append(note("timesteps_cross_edge"))
        return filled, ()
    notes.append(note("timesteps_not_predicted"))
    return Filled(replace(filled.way, problem=elsewhere), filled.compute), factors


def _long_plan(problem: Problem, settings: Settings) -> Plan:
    """Of a run too long to plan: a preset, or evenly spread, held and not corrected, without a look at any profile."""
    notes, way = [note("search_too_long", calls=problem.calls)], Way(problem, settings, Hold, False)
    required, resets = way.required(), tuple(sorted(problem.resets))
    computed = _budget(problem.calls, settings, required, notes)
    stretched = (
        schedules.preset(settings.preset, settings.preset_steps, problem.calls, required) if settings.preset else ()
    )
    compute = stretched or schedules.even(problem.calls, computed, required)
    plan = full_plan(problem.response.sigmas, settings, *notes)
    held = drawn(plan.sigmas, compute, resets, (0.0,) * problem.calls)
    limits = unmeasured_limits(settings, compute, resets)
    plan = replace(plan, compute=compute, coefficients=held, residual_limits=rounded(limits), resets=resets)
    return _made_for(problem, plan)


def _made_for(problem: Problem, plan: Plan) -> Plan:
    """The plan with what it belongs to."""
    return replace(
        plan,
        nominal=rounded(problem.schedule),
        edges=rounded(problem.edges),
        impulse=rounded(problem.response.signature),
        profile="" if problem.profile is None else problem.digest,
    )


def error_curve(problem: Problem, settings: Settings) -> tuple[Point, ...]:
    """The same settings at the speeds of CURVE, on one problem; nothing for runs so long that it takes seconds."""
    if problem.calls**3 > MAX_WORK:
        return ()
    if problem.calls < MIN_CALLS:
        return tuple(Point(speed, problem.calls, problem.calls, 0.0, 0.0, "1" * problem.calls) for speed in CURVE)
    found = ((speed, _planned(problem, replace(settings, speed=speed))[0]) for speed in CURVE)
    return tuple(filled.point(speed) for speed, filled in found)


def _best(way: Way, compute: Schedule, *others: Schedule) -> Filled:
    """The first schedule, or the candidate of least `rank` where that is far ahead of it; none in which errors grow.

    No more candidates than these: a free search on the predicted error finds what it is wrong about.
    """
    first = Filled(way, compute)
    if way.problem.profile is None:
        return first if first.safe else Filled(replace(way, predictor=Hold, corrector=False), compute)
    candidates = sorted(_candidates(way, compute, *others), key=lambda candidate: candidate.rank)
    margin = ACCURACY if way.problem.perturbed else UNMEASURED_ACCURACY
    ahead = [candidate for candidate in candidates if margin * candidate.rank < first.rank]
    return next((one for one in [*ahead, first, *candidates] if one.safe), first)


def _candidates(way: Way, compute: Schedule, *others: Schedule) -> Iterator[Filled]:
    """Other schedules, the same held, and the built-in plan, whose schedule is the second after a search."""
    yield from (Filled(way, other) for other in dict.fromkeys(others) if other != compute)
    held = way.held()
    if held:
        yield Filled(held, compute)
    built_in = replace(way, predictor=Hold if way.predictor is Affine else way.predictor, by_prior=True)
    yield Filled(built_in, others[1] if len(others) > 1 else compute)


def _choose(way: Way, notes: list[Note]) -> list[Schedule]:
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


def _search(way: Way, computed: int, required: frozenset[int], notes: list[Note]) -> list[Schedule]:
    """The schedules with the least sum of interval costs, by the prior's share in them, and simple ones."""
    count, resets = way.problem.calls, way.problem.resets
    limit = min(schedules.longest_interval(count, computed), count)
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
    spread = [schedules.spread(count, computed, power, required) for power in POWERS]
    return [*found, *(one for one in spread if sum(one) == computed)] if len(found) > 1 else found


def mixed(keys: list[Key], recorded: np.ndarray, generic: np.ndarray, share: float) -> dict[Key, float]:
    """What a search adds up: recorded ** (1 - share) * generic ** share."""
    return dict(zip(keys, (recorded ** (1.0 - share) * generic**share).tolist(), strict=True))


def _factors(way: Way, compute: Schedule, notes: list[Note]) -> tuple[float, ...]:
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
