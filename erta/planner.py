"""From a profile, a sampler's response and a wish to a Plan.

Everything here is arithmetic on small tables: a tenth of a second, deterministic, no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .plan import Plan, Wish, full_plan, rounded
from .predictors import Gap, GapModel, History, make_predictor, mean_squares, profile_grams
from .profile import SIGMA_TOLERANCE, Profile
from .response import Response
from .schedules import (
    GapCost,
    Schedule,
    budget,
    even,
    greedy,
    greedy_for_budget,
    growth,
    histories,
    longest_gap,
    possible_gaps,
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

# A search over more than so many gaps would take seconds: runs of hundreds of evaluations at high speeds.
MAX_GAPS = 2_000_000

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
    run = Run(response, wish, restarts, profile)
    if run.profile is not profile:
        count = "" if profile is None else profile.evaluations
        notes.append(f"the profile's {count} evaluations are resampled over sigma to this run's {run.count}")
    choice, compute = _choose(run, notes)
    moved = _adjust(schedule, run, compute, notes)
    if len(moved):
        elsewhere = respond(moved)
        if restarts_at(elsewhere.sigmas, edges) == restarts:
            run = Run(elsewhere, wish, restarts, profile)
        else:
            moved = np.empty(0)
            notes.append("adjusted sigmas would cross the edge of a conditioning elsewhere: nominal sigmas kept")
    return _assemble(run, choice, compute, moved, notes)


Choice = tuple[str, bool]
"""(predictor, whether gaps are corrected)."""


class Run:
    """What is known of the run to plan: the sampler's response, the wish, and the profile on the run's own sigmas."""

    def __init__(self, response: Response, wish: Wish, restarts: frozenset[int], profile: Profile | None) -> None:
        self.response, self.wish, self.restarts = response, wish, restarts
        self.count = response.evaluations
        self.profile = None if profile is None else profile.resampled(response.sigmas)
        self.grams = None if self.profile is None else profile_grams(self.profile)
        self.measured_range = () if profile is None else (float(profile.sigmas.min()), float(profile.sigmas.max()))
        self.digest = "" if profile is None else profile.digest()

    def gaps(self, predictor: str, corrector: bool) -> GapModel:
        make = make_predictor(predictor, self.response.sigmas, self.grams)
        return GapModel(self.response, make, corrector, self.grams, self.restarts)

    def required(self) -> frozenset[int]:
        """Evaluations that are computed whatever the search would like: ends, restarts, and what was not measured."""
        start, end = min(self.wish.protect_start, self.count), max(self.count - self.wish.protect_end, 0)
        unmeasured: set[int] = set()
        if self.measured_range:
            low, high = self.measured_range
            margin = 0.02 * (high - low)
            sigmas = self.response.sigmas
            unmeasured = {int(i) for i in np.flatnonzero((sigmas > high + margin) | (sigmas < low - margin))}
        return frozenset({0, *range(start), *range(end, self.count)} | unmeasured) | self.restarts


def restarts_at(sigmas: np.ndarray, edges: Sequence[float]) -> frozenset[int]:
    """Evaluation 0 and the first one behind each edge, whichever side an evaluation exactly on the edge belongs to."""
    found = {0}
    for edge in edges:
        # Edges come in float64, sigmas and ComfyUI's comparison in float32.
        sides = np.where(np.isclose(sigmas, edge, rtol=SIGMA_TOLERANCE, atol=0.0), 0.0, np.sign(sigmas - edge))
        found.update(int(i) for i in np.flatnonzero(np.diff(sides)) + 1)
    return frozenset(found)


def _choose(run: Run, notes: list[str]) -> tuple[Choice, Schedule]:
    """Predictor, whether gaps are corrected, and the evaluations to compute."""
    wish, count = run.wish, run.count
    choices = wish.candidates(run.profile is not None, run.response.stochastic, run.response.memoryless)
    required = run.required()
    computed = _budget(count, wish, required, notes)
    if wish.preset:
        if wish.preset_steps != count:
            notes.append(f"preset published for {wish.preset_steps} steps, stretched to {count} evaluations")
        return choices[0], preset(wish.preset, wish.preset_steps, count, required)
    if run.profile is None:
        if not wish.planned:
            notes.append("paper mode without a profile: evenly spread, held")
        return choices[0], even(count, computed, required)
    if not wish.planned:
        relative = relative_l1(*(np.stack([getattr(t, name) for t in run.profile.tables]) for name in ("l1", "norm1")))
        if wish.threshold:
            return choices[0], greedy(relative, wish.threshold, required)
        greedily, threshold = greedy_for_budget(relative, computed, required)
        notes.append(f"threshold {threshold:.3g} found from the speed")
        return choices[0], greedily
    found = [(choice, *_search(run, choice, computed, required)) for choice in choices]
    if len(found) > 1:
        found.sort(key=lambda one: _expected_error(run, one[0], one[2])[1])
        predictor, corrector = found[0][0]
        notes.append(f"least predicted error: {predictor}, {'with' if corrector else 'without'} correction")
    choice, cost, compute = found[0]
    if cost == math.inf:
        notes.append(f"{count} evaluations at this speed are too many to search: evenly spread")
    longest = int(np.diff([*np.flatnonzero(compute), count]).max())
    if 0 < wish.max_gap < longest:
        notes.append(f"with {computed} computed the longest gap cannot be {wish.max_gap}: it is {longest}")
    return choice, compute


def _budget(count: int, wish: Wish, required: frozenset[int], notes: list[str]) -> int:
    """Number of evaluations to compute: the nearest that the wish and the evaluations that must be computed allow."""
    wanted = round(count / wish.speed)
    least = max(2, len(required))
    if wanted < least:
        nearest = f"{least} computed, {count / least:.2f}x"
        notes.append(f"speed {wish.speed:g} is more than {count} evaluations allow: {nearest}")
    return min(max(wanted, least), count)


def _search(run: Run, choice: Choice, computed: int, required: frozenset[int]) -> tuple[float, Schedule]:
    """The least summed cost of all gaps, and the schedule that has it."""
    gaps = run.gaps(*choice)
    limit = run.wish.max_gap or longest_gap(run.count, computed)
    while True:
        if run.count * limit**2 > MAX_GAPS:
            return math.inf, even(run.count, computed, required)
        cost = _gap_costs(gaps, possible_gaps(run.count, limit, required, run.restarts))
        try:
            found = budget(run.count, computed, cost, limit, required, run.restarts)
            return sum(cost(history[:2], t) for history, t, _ in worked_gaps(gaps, found)), found
        except ValueError:
            if limit >= run.count:
                raise
            limit = min(2 * limit, run.count)


def _gap_costs(gaps: GapModel, keys: list[tuple[History, int]]) -> GapCost:
    """What leaving out the evaluations of each of these gaps costs."""
    if not keys:
        return lambda history, t: 0.0  # everything is required, nothing can be left out
    squares = np.stack([gap.squares for gap in gaps.work_out_all(keys)])
    weight = growth(gaps.response.sigmas)[[t for _, t in keys]]
    # Growth counts twice: early errors also bend what later steps answer (measured: better worst case).
    costs = np.mean(squares ** (POWER / 2), axis=1) ** (2 / POWER) * weight**4
    known = dict(zip(keys, costs.tolist(), strict=True))
    return lambda history, t: known[history, t]


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


def _adjust(schedule: np.ndarray, run: Run, compute: Schedule, notes: list[str]) -> np.ndarray:
    """Adjusted sigmas (N + 1,), or an empty array where they are off or cannot be known."""
    if not run.wish.timesteps:
        return np.empty(0)
    if run.profile is None:
        notes.append("timestep adjustment needs a profile: nominal sigmas kept")
        return np.empty(0)
    falling = np.all(np.diff(schedule) < 0.0)
    if not falling or not run.response.evaluates_once_per_step(schedule):
        notes.append("this sampler does not evaluate once per step: nominal sigmas kept")
        return np.empty(0)
    return adjusted(schedule, phi(np.stack([table.l1 for table in run.profile.tables]), compute))


def _assemble(run: Run, choice: Choice, compute: Schedule, moved: np.ndarray, notes: list[str]) -> Plan:
    gaps, count = run.gaps(*choice), run.count
    coefficients: list[tuple[float, ...]] = [()] * count
    offsets, corrections = [0.0] * count, [0.0] * count
    for history, t, gap in worked_gaps(gaps, compute):
        for i, prediction in enumerate(gap.predictions, start=history[0] + 1):
            coefficients[i], offsets[i] = prediction
        if gap.closing is not None:
            coefficients[t], offsets[t] = gap.closing
            corrections[t] = gap.correction
    return Plan(
        wish=run.wish,
        sigmas=rounded(run.response.sigmas),
        compute=compute,
        coefficients=tuple(rounded(c) for c in coefficients),
        offsets=rounded(offsets),
        corrections=rounded(corrections),
        restarts=tuple(sorted(run.restarts)),
        schedule=rounded(moved),
        predicted_error=() if run.profile is None else _expected_error(run, choice, compute),
        profile=run.digest,
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


def _expected_error(run: Run, choice: Choice, compute: Schedule) -> tuple[float, float]:
    """(median, worst) over recorded runs: all gaps' errors, each grown until the end, over the latent's RMS.

    What the gaps leave adds up with its correlation, their feedback as if it had none.
    """
    gaps = run.gaps(*choice)
    worked = worked_gaps(gaps, compute)
    if not worked:
        return (0.0, 0.0)
    weight = growth(gaps.response.sigmas)
    total = np.sum([gap.weights * weight[t] for _, t, gap in worked], axis=0)
    assert gaps.grams is not None and run.profile is not None
    squares = mean_squares(total, gaps.grams)
    for _, t, gap in worked:
        squares += weight[t] ** 2 * _feedback_squares(gaps, gap, t)
    scale = np.array([max(table.latent_rms, 1e-12) for table in run.profile.tables])
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
