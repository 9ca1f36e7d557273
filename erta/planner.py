"""From a profile, a sampler's response and a wish to a Plan.

Everything here is arithmetic on small tables: a tenth of a second, deterministic, no model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .plan import Plan, Wish, full_plan, rounded
from .predictors import Gap, GapModel, make_predictor, mean_squares, profile_grams
from .profile import SIGMA_TOLERANCE, Profile
from .response import Response
from .schedules import (
    Schedule,
    budget,
    even,
    greedy,
    greedy_for_budget,
    growth,
    histories,
    longest_gap,
    preset,
    relative_l1,
)
from .timesteps import adjusted, phi

# A relative error that says no more than "lost"; a run whose latent is all zero would have an infinite one.
MAX_ERROR = 1e6

# How strongly a computed evaluation answers to the position error it is reached with, in units of 1 / sigma: brings the
# predicted error nearer to what was measured on a small trained video model. The search does not use it: there it
# gained 3 dB in the median on one checkpoint and lost 19 dB in the worst case on another, by sparing early steps.
FEEDBACK = 3.0

# Below this there is nothing between the ends that could be predicted from anything.
MIN_EVALUATIONS = 6

# The aggregate over recorded runs is a power mean of this order of their errors: between the mean square, which a
# rare prompt does not move, and the largest one.
POWER = 8.0


def make_plan(
    schedule: np.ndarray,
    respond: Callable[[np.ndarray], Response],
    profile: Profile | None,
    wish: Wish,
    edges: Sequence[float] = (),
) -> Plan:
    """Plan one run. No randomness.

    schedule: (N + 1,) the run's nominal sigmas. respond: the sampler's response on given sigmas; its UnknownResponse
    passes through. profile: of the same model; resampled over sigma where its evaluations lie elsewhere. edges: sigmas
    at which conditioning starts or ends; the first evaluation behind each is computed and forgets what came before.
    """
    response = respond(schedule)
    nominal = response.sigmas
    restarts = restarts_at(nominal, edges)
    if wish.computes_all:
        return full_plan(nominal, wish)
    if response.evaluations < MIN_EVALUATIONS:
        few = f"{response.evaluations} evaluations are too few to reuse any (at least {MIN_EVALUATIONS}): all computed"
        return full_plan(nominal, wish, few)
    notes: list[str] = []
    predictor, compute = _choose(response, profile, wish, restarts, notes)
    moved = _adjust(schedule, response, profile, wish, compute, notes)
    if len(moved):
        elsewhere = respond(moved)
        if restarts_at(elsewhere.sigmas, edges) == restarts:
            response = elsewhere
        else:
            moved = np.empty(0)
            notes.append("adjusted sigmas would cross the edge of a conditioning elsewhere: nominal sigmas kept")
    gaps = _gap_model(response, profile, wish, restarts, predictor)
    return _assemble(gaps, profile, wish, compute, moved, notes)


def restarts_at(sigmas: np.ndarray, edges: Sequence[float]) -> frozenset[int]:
    """Evaluation 0 and the first one behind each edge, whichever side an evaluation exactly on the edge belongs to."""
    found = {0}
    for edge in edges:
        # Edges come in float64, sigmas and ComfyUI's comparison in float32.
        sides = np.where(np.isclose(sigmas, edge, rtol=SIGMA_TOLERANCE, atol=0.0), 0.0, np.sign(sigmas - edge))
        found.update(int(i) for i in np.flatnonzero(np.diff(sides)) + 1)
    return frozenset(found)


def _choose(
    response: Response, profile: Profile | None, wish: Wish, restarts: frozenset[int], notes: list[str]
) -> tuple[str, Schedule]:
    """The predictor's name and the evaluations to compute."""
    count = response.evaluations
    names = wish.candidates(profile is not None, response.stochastic)
    required = _required(response.sigmas, profile, wish, restarts)
    computed = _budget(count, wish, required, notes)
    if wish.preset:
        if wish.preset_steps != count:
            notes.append(f"preset published for {wish.preset_steps} steps, stretched to {count} evaluations")
        return names[0], preset(wish.preset, wish.preset_steps, count, required)
    if profile is None:
        if not wish.planned:
            notes.append("paper mode without a profile: evenly spread, held")
        return names[0], even(count, computed, required)
    fitting = profile.resampled(response.sigmas)
    if fitting is not profile:
        notes.append(f"the profile's {profile.evaluations} evaluations are resampled over sigma to this run's {count}")
    if not wish.planned:
        relative = relative_l1(*(np.stack([getattr(t, name) for t in fitting.tables]) for name in ("l1", "norm1")))
        if wish.threshold:
            return names[0], greedy(relative, wish.threshold, required)
        found, threshold = greedy_for_budget(relative, computed, required)
        notes.append(f"threshold {threshold:.3g} found from the speed")
        return names[0], found
    found_by_name = []
    for name in names:
        gaps = _gap_model(response, fitting, wish, restarts, name)
        found_by_name.append((*_search(gaps, computed, wish, required), name))
    _, compute, name = min(found_by_name, key=lambda found: found[0])
    longest = int(np.diff([*np.flatnonzero(compute), count]).max())
    if 0 < wish.max_gap < longest:
        notes.append(f"with {computed} computed the longest gap cannot be {wish.max_gap}: it is {longest}")
    return name, compute


def _required(sigmas: np.ndarray, profile: Profile | None, wish: Wish, restarts: frozenset[int]) -> frozenset[int]:
    """Evaluations that are computed whatever the search would like."""
    count = len(sigmas)
    ends = {*range(min(wish.protect_start, count)), *range(max(count - wish.protect_end, 0), count)}
    unmeasured: set[int] = set()
    if profile is not None:
        low, high = profile.sigmas.min(), profile.sigmas.max()
        margin = 0.02 * (high - low)
        unmeasured = {int(i) for i in np.flatnonzero((sigmas > high + margin) | (sigmas < low - margin))}
    return frozenset({0} | ends | unmeasured) | restarts


def _budget(count: int, wish: Wish, required: frozenset[int], notes: list[str]) -> int:
    """Number of evaluations to compute: the nearest that the wish and the evaluations that must be computed allow."""
    wanted = round(count / wish.speed)
    least = max(2, len(required))
    if wanted < least:
        nearest = f"{least} computed, {count / least:.2f}x"
        notes.append(f"speed {wish.speed:g} is more than {count} evaluations allow: {nearest}")
    return min(max(wanted, least), count)


def _gap_model(
    response: Response, profile: Profile | None, wish: Wish, restarts: frozenset[int], name: str
) -> GapModel:
    fitting = None if profile is None else profile.resampled(response.sigmas)
    grams = None if fitting is None else profile_grams(fitting)
    predictor = make_predictor(name, response.sigmas, fitting)
    # At blocks level what would have been predicted at a computed evaluation is not known to the sampler.
    corrector = wish.corrector and wish.planned and wish.level == "output"
    return GapModel(response, predictor, corrector, grams, restarts)


def _search(gaps: GapModel, computed: int, wish: Wish, required: frozenset[int]) -> tuple[float, Schedule]:
    """The least summed cost of all gaps, and the schedule that has it."""
    count = gaps.response.evaluations
    weight = growth(gaps.response.sigmas)
    grams = gaps.grams
    assert grams is not None

    @functools.cache  # the search asks for each gap once per number of computed evaluations before it
    def cost(history: tuple[int, ...], t: int) -> float:
        squares = mean_squares(gaps.work_out(history, t).weights, grams)
        # Growth counts twice: early errors also bend what later steps answer (measured: better worst case).
        return float(np.mean(squares ** (POWER / 2)) ** (2 / POWER) * weight[t] ** 4)

    limit = wish.max_gap or longest_gap(count, computed)
    while True:
        try:
            found = budget(count, computed, cost, limit, required, gaps.restarts)
            return sum(cost(history[:2], t) for history, t, _ in worked_gaps(gaps, found)), found
        except ValueError:
            if limit >= count:
                raise
            limit = min(2 * limit, count)


def _feedback_squares(gaps: GapModel, gap: Gap, t: int) -> np.ndarray:
    """(T,) mean squared error of the final latent by feedback, which recorded runs cannot show, not yet grown.

    The model is evaluated at t from a latent that is off by ``arriving``, so its output, and the correction made from
    it, are off too.
    """
    assert gaps.grams is not None
    squares = mean_squares(gap.arriving, gaps.grams)
    if t >= gaps.response.evaluations:
        return 0.0 * squares
    answer = FEEDBACK * abs(gaps.response.end[t]) * (1.0 + abs(gap.correction)) / gaps.response.sigmas[t]
    feedback: np.ndarray = answer**2 * squares
    return feedback


def _adjust(
    schedule: np.ndarray,
    response: Response,
    profile: Profile | None,
    wish: Wish,
    compute: Schedule,
    notes: list[str],
) -> np.ndarray:
    """Adjusted sigmas (N + 1,), or an empty array where they are off or cannot be known."""
    if not wish.timesteps:
        return np.empty(0)
    if profile is None:
        notes.append("timestep adjustment needs a profile: nominal sigmas kept")
        return np.empty(0)
    falling = np.all(np.diff(schedule) < 0.0)
    if not falling or not response.evaluates_once_per_step(schedule):
        notes.append("this sampler does not evaluate once per step: nominal sigmas kept")
        return np.empty(0)
    fitting = profile.resampled(response.sigmas)
    return adjusted(schedule, phi(np.stack([table.l1 for table in fitting.tables]), compute))


def _assemble(
    gaps: GapModel, profile: Profile | None, wish: Wish, compute: Schedule, moved: np.ndarray, notes: list[str]
) -> Plan:
    response, count = gaps.response, gaps.response.evaluations
    coefficients: list[tuple[float, ...]] = [()] * count
    offsets, corrections = [0.0] * count, [0.0] * count
    worked = list(worked_gaps(gaps, compute))
    for history, t, gap in worked:
        for i, prediction in enumerate(gap.predictions, start=history[0] + 1):
            coefficients[i], offsets[i] = prediction
        if gap.closing is not None:
            coefficients[t], offsets[t] = gap.closing
            corrections[t] = gap.correction
    return Plan(
        wish=wish,
        sigmas=rounded(response.sigmas),
        compute=compute,
        coefficients=tuple(rounded(c) for c in coefficients),
        offsets=rounded(offsets),
        corrections=rounded(corrections),
        restarts=tuple(sorted(gaps.restarts)),
        schedule=rounded(moved),
        predicted_error=() if profile is None else _expected_error(gaps, worked, profile),
        profile="" if profile is None else profile.digest(),
        notes=tuple(notes),
    )


def worked_gaps(gaps: GapModel, compute: Schedule) -> list[tuple[tuple[int, ...], int, Gap]]:
    """(history, t, gap) of every gap of a schedule that reuses something; t = M where the run ends inside one."""
    count = len(compute)
    known = histories(compute, gaps.restarts)
    found = []
    for t in [*(i for i in range(1, count) if compute[i]), count]:
        newest = max(i for i in range(t) if compute[i])
        if t > newest + 1:
            history = (newest, *known[newest])
            found.append((history, t, gaps.work_out(history, t)))
    return found


def position_error(plan: Plan, response: Response) -> np.ndarray:
    """(M + 1,) weights of the final latent's error on the recorded trajectory: true minus used, nothing grown.

    With an extended Gram matrix G of that trajectory, ``w' G w`` is the squared length of what a run that follows the
    plan, and gets the recorded features where it computes, ends away from the recorded run.
    """
    count = plan.evaluations
    known = histories(plan.compute, plan.restarts)
    error = np.zeros(count + 1)
    for i in range(count):
        miss = np.zeros(count + 1)
        miss[i] = 1.0
        for node, coefficient in zip(known[i], plan.coefficients[i], strict=False):
            miss[node] -= coefficient
        miss[-1] -= plan.offsets[i]
        # Reused: the truth is missed. Computed: the truth is handed on, plus the correction's share of what was missed.
        factor = 1.0 if not plan.compute[i] else -plan.corrections[i]
        error += factor * response.end[i] * miss
    return error


def _expected_error(
    gaps: GapModel, worked: Sequence[tuple[tuple[int, ...], int, Gap]], profile: Profile
) -> tuple[float, float]:
    """(median, worst) over recorded runs: all gaps' errors, each grown until the end, over the latent's RMS.

    What the gaps leave adds up with its correlation, their feedback as if it had none.
    """
    if not worked:
        return (0.0, 0.0)
    weight = growth(gaps.response.sigmas)
    total = np.sum([gap.weights * weight[t] for _, t, gap in worked], axis=0)
    assert gaps.grams is not None
    squares = mean_squares(total, gaps.grams)
    for _, t, gap in worked:
        squares += weight[t] ** 2 * _feedback_squares(gaps, gap, t)
    scale = np.array([max(table.latent_rms, 1e-12) for table in profile.tables])
    relative = np.minimum(np.sqrt(squares) / scale, MAX_ERROR)
    median, worst = rounded([np.median(relative), relative.max()])
    return (median, worst)


def adjusted_schedule(schedule: np.ndarray, profile: Profile, wish: Wish) -> np.ndarray:
    """(N + 1,) sigmas for the Timestep Adjuster node: the plan's own, for a sampler that steps like Euler."""
    plan = make_plan(schedule, euler_response, profile, replace(wish, timesteps=True))
    return np.array(plan.schedule) if plan.schedule else np.asarray(schedule, dtype=np.float64)


def euler_response(schedule: np.ndarray) -> Response:
    """Euler's response in closed form: output i moves every later latent by sigma[i + 1] - sigma[i]."""
    sigmas = np.asarray(schedule, dtype=np.float64)
    steps = np.diff(sigmas)
    count = len(steps)
    return Response(sigmas[:-1], np.triu(np.repeat(steps[:, None], count + 1, axis=1), 1))
