"""From a profile, a sampler's response and settings to a Plan.

Everything here is arithmetic on small tables: a tenth of a second, deterministic, no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from .interpolation import SIGMA_TOLERANCE
from .interval_costs import interval_costs
from .plan import Plan, Settings, full_plan, rounded
from .predictors import Affine, Prediction, Predictor, hold, line, profile_grams
from .prior import ERROR_LENGTH, conservative_error_response, correlation, generic_gram
from .profile import MIN_SIGMA, Profile
from .response import ImpulseResponse
from .schedules import (
    Schedule,
    budget,
    even,
    greedy,
    greedy_for_budget,
    longest_interval,
    possible_intervals,
    preset,
    relative_l1,
)
from .simulation import ErrorResponse, Fit, Simulation
from .timesteps import adjusted, phi

# A relative error that says no more than "lost"; a run whose latent is all zero would have an infinite one.
MAX_ERROR = 1e6

# A search over more than so many skipped intervals would take seconds: runs of hundreds of model calls at high speeds.
MAX_INTERVALS = 200_000

# Expected errors are right to about this factor: what is not told to be better by more is not known to be better.
TELLING = 1.5

# Tables times model calls cubed, which takes a fifth of a second: of more recorded runs the first are planned by.
MAX_WORK = 1.5e7

# A run of more than so many times a profile's model calls is not told well: measured at 2x on a tiny model, the error
# was 3 times the predicted one at twice the model calls, and a check by it has most of a run of 4 times computed.
SPARSE = 2

# Speeds at which one looks at a profile.
CURVE = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)

# Below this there is nothing between the ends that could be predicted from anything.
MIN_CALLS = 6


def make_plan(
    schedule: np.ndarray,
    respond: Callable[[np.ndarray], ImpulseResponse],
    profile: Profile | None,
    settings: Settings,
    edges: Sequence[float] = (),
) -> Plan:
    """Plan one run. No randomness.

    schedule: (N + 1,) the run's nominal sigmas. respond: the sampler's response on given sigmas; its UnknownResponse
    passes through. profile: of the same model; resampled over sigma where its model calls lie elsewhere. edges: sigmas
    at which conditioning starts or ends; the first model call behind each is computed and forgets what came before.
    """
    response = respond(schedule)
    nominal = response.sigmas
    resets = resets_at(nominal, edges)
    if settings.computes_all:
        return full_plan(nominal, settings)
    if response.calls < MIN_CALLS:
        few = f"{response.calls} model calls are too few to reuse any (at least {MIN_CALLS}): all computed"
        return full_plan(nominal, settings, few)
    notes: list[str] = []
    digest = "" if profile is None else profile.digest()
    profile = _usable(profile, nominal, notes)
    run = Run(response, settings, resets, profile)
    if run.profile is not profile:
        count = "" if profile is None else profile.calls
        lie = "has other sigmas" if count == run.count else f"has {count} model calls, this run {run.count}"
        notes.append(f"the profile {lie}: resampled over sigma")
    if run.sparse:
        notes.append("of so few too small an error is predicted, and nothing is checked: record one with these steps")
    compute = _choose(run, notes)
    held = run.held()
    # A schedule searched for held features is hardly any better for them: 0 to 2 % less error.
    if held and _worst(held, compute) < TELLING**2 * _worst(run, compute):
        run = held
        notes.append("held and not corrected: of so few model calls less error is to be expected that way")
    moved = _adjust(schedule, run, compute, notes)
    if len(moved):
        elsewhere = respond(moved)
        if resets_at(elsewhere.sigmas, edges) == resets:
            run = Run(elsewhere, settings, resets, profile).choosing(run.predictor, run.corrector)
            notes.append("adjusted sigmas lead elsewhere by themselves, which the predicted error leaves out")
        else:
            moved = np.empty(0)
            notes.append("adjusted sigmas would cross the edge of a conditioning elsewhere: nominal sigmas kept")
    return replace(_assemble(run, compute, moved, notes), profile=digest if profile is not None else "")


@dataclass(frozen=True)
class Point:
    """What one turn of the knob comes to. computed, of: model calls. median, worst: relative error to expect of the
    final latent, over the recorded runs; 0 where none is. compute: "1" computed, "0" reused."""

    speed: float
    computed: int
    of: int
    median: float
    worst: float
    compute: str


def error_curve(
    schedule: np.ndarray,
    respond: Callable[[np.ndarray], ImpulseResponse],
    profile: Profile,
    settings: Settings,
    edges: Sequence[float] = (),
) -> tuple[Point, ...]:
    """The same settings at other speeds; nothing for runs so long that telling takes seconds."""
    known = respond(schedule)
    if known.calls**3 > MAX_WORK:
        return ()
    points = []
    for speed in CURVE:
        # Adjusted timesteps are another schedule, whose response is not known yet.
        plan = make_plan(
            schedule, lambda s: known if s is schedule else respond(s), profile, replace(settings, speed=speed), edges
        )
        median, worst = plan.predicted_error or (0.0, 0.0)
        compute = "".join("1" if computed else "0" for computed in plan.compute)
        points.append(Point(speed, plan.computed, plan.calls, median, worst, compute))
    return tuple(points)


class Run:
    """What is known of the run to plan: the sampler's response, the settings, and the profile on the run's own sigmas."""

    def __init__(
        self, response: ImpulseResponse, settings: Settings, resets: frozenset[int], profile: Profile | None
    ) -> None:
        self.response, self.settings, self.resets = response, settings, resets
        self.count = response.calls
        self.profile = None if profile is None else profile.resampled(response.sigmas)
        # Between recorded model calls that lie far apart resampled features are smoother than real ones are.
        self.sparse = profile is not None and SPARSE * profile.calls < self.count
        self.measured_range = () if profile is None else (float(profile.sigmas.min()), float(profile.sigmas.max()))
        # Plans are made for a cautious answer to errors: they do as well as those made for the measured one, and do
        # not rest on what was measured in one run. What to expect of them is told by the measured one.
        self.simulation = Simulation(response, self._grams(), _conservative(response), resets)
        self.measured = replace(self.simulation, error_response=self._error_response())
        self.predictor, self.corrector = settings.choice(profile is not None, response.stochastic)

    def _grams(self) -> np.ndarray:
        """(T, M + 1, M + 1) in units of the final latent's mean square."""
        if self.profile is None:
            return generic_gram(self.response.sigmas)
        squares = np.array([max(table.latent_rms, 1e-12) ** 2 for table in self.profile.tables])
        grams: np.ndarray = profile_grams(self.profile) / squares[:, None, None]
        return grams

    def held(self) -> Run | None:
        """The same with features held and nothing else, which amplifies no error; None where that is not left open.

        Nor where fresh noise covers what is amplified: holding lost 5 dB in the median there, for 1 dB in the worst.
        """
        if self.profile is None or self.predictor != "fitted" or not self.corrector or self.response.stochastic:
            return None
        return self.choosing("hold", False)

    def choosing(self, predictor: str, corrector: bool) -> Run:
        """The same with another predictor and corrector than the settings's own."""
        other = copy(self)
        other.predictor, other.corrector = predictor, corrector
        return other

    def expect(self, compute: Schedule, shape: Fit) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What recorded runs let expect of a plan: a Plan's ``predicted_error`` and ``residual_limits``."""
        if self.profile is None:
            return (), (0.0,) * self.count
        found = self.measured.follow(compute, shape)
        relative = np.minimum(np.sqrt(found.squares), MAX_ERROR)
        # The worst of few runs says less about the next one.
        wider = 1.0 + 1.0 / len(self.simulation.grams)
        checked = self.settings.checks and not self.sparse
        residual_limits = (
            np.minimum(wider * np.array(found.residual_limits), MAX_ERROR) if checked else np.zeros(self.count)
        )
        return rounded([np.median(relative), relative.max()]), rounded(residual_limits)

    def _error_response(self) -> ErrorResponse:
        """Pooled over the runs in which it was measured, squares by squares as errors add up."""
        has_error_response = (
            [table for table in self.profile.tables if table.has_error_response] if self.profile else []
        )
        if not has_error_response:
            return self.simulation.error_response
        gains = np.stack([table.gain for table in has_error_response])
        squares = np.stack([table.deviation**2 + table.gain**2 for table in has_error_response]).mean(axis=0)
        gain = gains.mean(axis=0)
        alike = np.eye(self.count) if self.response.stochastic else correlation(self.response.sigmas, ERROR_LENGTH)
        return ErrorResponse(gain, np.sqrt(np.maximum(squares - gain**2, 0.0)), alike)

    def shape(self, compute: Schedule) -> Fit:
        return self.simulation.shape(compute, self._predict(), self.corrector)

    def _predict(self) -> Predictor | None:
        """None for the line with a slope fitted to each skipped interval."""
        if self.predictor == "fitted":
            return None
        if self.predictor == "linear":
            return self._line
        return Affine(self.simulation.grams) if self.predictor == "affine" and self.profile else hold

    def _line(self, history: tuple[int, ...], i: int) -> Prediction:
        return line(self.response.sigmas, history, i, 1.0)

    def required(self) -> frozenset[int]:
        """Model calls that are computed whatever the search would like: ends, history resets, and what was not
        measured.
        """
        start, end = min(self.settings.protect_start, self.count), max(self.count - self.settings.protect_end, 0)
        unmeasured: set[int] = set()
        if self.measured_range:
            low, high = self.measured_range
            margin = 0.02 * (high - low)
            sigmas = self.response.sigmas
            unmeasured = {int(i) for i in np.flatnonzero((sigmas > high + margin) | (sigmas < low - margin))}
        return frozenset({0, *range(start), *range(end, self.count)} | unmeasured) | self.resets


def resets_at(sigmas: np.ndarray, edges: Sequence[float]) -> frozenset[int]:
    """Model call 0 and the first one behind each edge, whichever side a model call exactly on the edge belongs to."""
    found = {0}
    for edge in edges:
        # Edges come in float64, sigmas and ComfyUI's comparison in float32.
        sides = np.where(np.isclose(sigmas, edge, rtol=SIGMA_TOLERANCE, atol=0.0), 0.0, np.sign(sigmas - edge))
        found.update(int(i) for i in np.flatnonzero(np.diff(sides)) + 1)
    return frozenset(found)


def _usable(profile: Profile | None, sigmas: np.ndarray, notes: list[str]) -> Profile | None:
    """The profile where it can tell the run's model calls apart, of no more runs than can be planned by."""
    if profile is None:
        return None
    most = max(1, int(MAX_WORK / len(sigmas) ** 3))
    if len(profile.tables) > most:
        notes.append(f"of the profile's {len(profile.tables)} recorded tables {most} are planned by: more take long")
        profile = Profile(profile.measured, profile.tables[:most])
    twice = np.isclose(sigmas[1:], sigmas[:-1], rtol=SIGMA_TOLERANCE, atol=0.0).any()  # as heun does
    if twice and profile.resampled(sigmas) is not profile:
        notes.append("the profile is not used: the sampler evaluates twice at one sigma, record one with these steps")
        return None
    if not any(table.has_error_response for table in profile.tables):
        remedy = " (ERTA Profile does)" if profile.measured.level == "output" else ""
        notes.append(f"how errors grow was not measured{remedy}: the predicted error is on the high side")
    return profile


def _conservative(response: ImpulseResponse) -> ErrorResponse:
    # Below that an answer, which goes by 1 / sigma, is out of all proportion.
    return conservative_error_response(np.maximum(response.sigmas, MIN_SIGMA))


def _choose(run: Run, notes: list[str]) -> Schedule:
    """The model calls to compute."""
    settings, count = run.settings, run.count
    required = run.required()
    computed = _budget(count, settings, required, notes)
    if settings.preset:
        if settings.preset_steps != count:
            notes.append(f"preset published for {settings.preset_steps} steps, stretched to {count} model calls")
        return preset(settings.preset, settings.preset_steps, count, required)
    if settings.planned:
        return _search(run, computed, required, notes)
    if run.profile is None:
        notes.append("paper mode without a profile: evenly spread, held")
        return even(count, computed, required)
    relative = distances(run.profile)
    if settings.threshold:
        return greedy(relative, settings.threshold, required)
    greedily, threshold = greedy_for_budget(relative, computed, required)
    notes.append(f"threshold {threshold:.3g} found from the speed")
    return greedily


def distances(profile: Profile) -> np.ndarray:
    """(M, M) relative L1 distance of each pair of model calls, the mean over the recorded runs."""
    return relative_l1(*(np.stack([getattr(table, name) for table in profile.tables]) for name in ("l1", "norm1")))


def _budget(count: int, settings: Settings, required: frozenset[int], notes: list[str]) -> int:
    """Number of model calls to compute: the nearest that the settings and the model calls that must be computed allow."""
    wanted = round(count / settings.speed)
    least = max(2, len(required))
    if wanted < least:
        nearest = f"{least} computed, {count / least:.2f}x"
        notes.append(f"speed {settings.speed:g} is more than {count} model calls allow: {nearest}")
    return min(max(wanted, least), count)


def _search(run: Run, computed: int, required: frozenset[int], notes: list[str]) -> Schedule:
    """The schedule with the least sum of skipped interval costs."""
    # What rectifies a held feature is small beside the skipped interval's own cost: affine is searched as if it held.
    slope = {"fitted": None, "linear": 1.0}.get(run.predictor, 0.0)
    limit = min(run.settings.longest_gap or longest_interval(run.count, computed), run.count)
    while True:
        if run.count * limit**2 > MAX_INTERVALS:
            notes.append(f"{run.count} model calls at this speed are too many to search: evenly spread")
            found = even(run.count, computed, required)
            break
        known = interval_costs(
            run.simulation, possible_intervals(run.count, limit, required, run.resets), slope, run.corrector
        )
        try:
            found = budget(run.count, computed, known, limit, required, run.resets)
            break
        except ValueError:
            if limit >= run.count:
                raise
            limit = min(2 * limit, run.count)
    longest = int(np.diff([*np.flatnonzero(found), run.count]).max())
    if 0 < run.settings.longest_gap < longest:
        notes.append(
            f"with {computed} computed the longest skipped interval cannot be {run.settings.longest_gap}: it is {longest}"
        )
    return found


def _worst(run: Run, compute: Schedule) -> float:
    """The largest squared error that is expected of a schedule, over the recorded runs."""
    return float(run.measured.follow(compute, run.shape(compute)).squares.max())


def _adjust(schedule: np.ndarray, run: Run, compute: Schedule, notes: list[str]) -> np.ndarray:
    """Adjusted sigmas (N + 1,), or an empty array where they are off or cannot be known."""
    if not run.settings.timesteps:
        return np.empty(0)
    if run.profile is None:
        notes.append("timestep adjustment needs a profile: nominal sigmas kept")
        return np.empty(0)
    falling = np.all(np.diff(schedule) < 0.0)
    if not falling or not run.response.calls_once_per_step(schedule):
        notes.append("this sampler does not evaluate once per step: nominal sigmas kept")
        return np.empty(0)
    return adjusted(schedule, phi(np.stack([table.l1 for table in run.profile.tables]), compute))


def _assemble(run: Run, compute: Schedule, moved: np.ndarray, notes: list[str]) -> Plan:
    shape = run.shape(compute)
    predicted_error, residual_limits = run.expect(compute, shape)
    return Plan(
        settings=run.settings,
        sigmas=rounded(run.response.sigmas),
        compute=compute,
        coefficients=tuple(rounded(c) for c in shape.coefficients),
        offsets=rounded(shape.offsets),
        corrections=rounded(shape.corrections),
        resets=tuple(sorted(run.resets)),
        schedule=rounded(moved),
        residual_limits=residual_limits,
        predicted_error=predicted_error,
        notes=tuple(notes),
    )


def adjusted_schedule(schedule: np.ndarray, profile: Profile, settings: Settings) -> np.ndarray:
    """(N + 1,) sigmas for the Timestep Adjuster node: the plan's own, for a sampler that steps like Euler."""
    plan = make_plan(schedule, euler_response, profile, replace(settings, timesteps=True))
    return np.array(plan.schedule) if plan.schedule else np.asarray(schedule, dtype=np.float64)


def euler_response(schedule: np.ndarray) -> ImpulseResponse:
    """Euler's response in closed form: output i moves every later latent by sigma[i + 1] - sigma[i]."""
    sigmas = np.asarray(schedule, dtype=np.float64)
    steps = np.diff(sigmas)
    count = len(steps)
    return ImpulseResponse(sigmas[:-1], np.triu(np.repeat(steps[:, None], count + 1, axis=1), 1))
