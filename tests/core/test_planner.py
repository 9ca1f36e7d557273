"""From a profile, a response and settings to a plan."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ertacache.erta import joining as joining_module
from ertacache.erta import planner as planner_module
from ertacache.erta import problem as problem_module
from ertacache.erta.candidate import Filled, Way
from ertacache.erta.notes import note
from ertacache.erta.plan import MOST_RESIDUAL, Plan
from ertacache.erta.plan_file import plan_from_json, plan_to_json
from ertacache.erta.planner import (
    CURVE,
    MAX_INTERVALS,
    MIN_CALLS,
    MOST_PLANNED,
    adjusted_schedule,
    error_curve,
    euler_response,
    mixed,
    solve,
)
from ertacache.erta.predictors import PREDICTORS, FittedLine
from ertacache.erta.prior import KINKS, assumed_error_response, generic_gram
from ertacache.erta.problem import Problem, profile_grams, resets_at
from ertacache.erta.profile import Measured, Profile
from ertacache.erta.profile_file import digest, from_bytes, to_bytes
from ertacache.erta.recorder import Recorder
from ertacache.erta.replay import Replay
from ertacache.erta.resampling import resampled
from ertacache.erta.response import ImpulseResponse, UnknownResponse, probe
from ertacache.erta.schedules import Schedule, budget, even, histories, longest_interval, possible_intervals
from ertacache.erta.settings import DECLARED, Settings
from ertacache.erta.simulation import ErrorResponse, Fit, Simulation
from ertacache.tests.core.made import flow, recorded

MEASURED = Measured("WAN21", 1, "0" * 64, "", "flow", 8.0, "euler", "simple", 8, 6.0, (1, 4), "output", "1", "1")
RMS = 2.0
PRESETS = Path(__file__).parents[2] / "profiles" / "presets.json"
WAN = (1, 16, 21, 60, 104)  # the latent of 81 frames at 832x480


def trajectory(run: int) -> Callable[[np.ndarray], np.ndarray]:
    """An analytic run: features (M, n) at any sigmas (M,)."""
    a, b, c, d = np.random.default_rng(run).normal(size=(4, 200))

    def features(sigmas: np.ndarray) -> np.ndarray:
        bent = np.outer(np.sin(4 * sigmas + run), c) + np.outer(np.exp(-6 * sigmas), d)
        return (a + np.outer(sigmas, b) + bent).astype(np.float32).astype(np.float64)

    return features


def profile_at(sigmas: np.ndarray, runs: int = 3) -> Profile:
    tables = []
    for run in range(runs):
        recorder = Recorder(sigmas)
        for i, feature in enumerate(trajectory(run)(sigmas)):
            recorder.observe(i, "guided", torch.from_numpy(feature))
        tables += recorder.tables(run, RMS)
    return Profile(MEASURED, tuple(tables))


def with_error_response(profile: Profile, gain: np.ndarray, deviation: np.ndarray | float) -> Profile:
    deviations = np.broadcast_to(deviation, gain.shape)
    return replace(profile, tables=tuple(replace(t, gain=gain, deviation=deviations) for t in profile.tables))


SCHEDULE = flow(24)
UNPERTURBED = profile_at(SCHEDULE[:-1])
# Of a model that gives what was recorded, wherever it is asked. (0 to either side would say: not measured.)
PROFILE = with_error_response(UNPERTURBED, np.zeros(24), 1e-9)


def plan_for(settings: Settings, profile: Profile | None = PROFILE, schedule: np.ndarray = SCHEDULE, edges=()) -> Plan:
    return solve(Problem(schedule, euler_response, profile, edges), settings)


def codes(plan: Plan) -> list[str]:
    return [found.code for found in plan.notes]


def computed_at(plan: Plan) -> list[int]:
    return [i for i, computed in enumerate(plan.compute) if computed]


def terms(plan: Plan) -> set[int]:
    """How many features the reused model calls are made of."""
    return {len(c) for c, computed in zip(plan.coefficients, plan.compute, strict=True) if not computed}


# How many are computed


def test_plan_with_every_call_protected_computes_them_all() -> None:
    assert all(plan_for(Settings(2.0, protect_start=1000)).compute)


@pytest.mark.parametrize("speed", [1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0])
def test_speed_becomes_the_number_of_computed_calls(speed: float) -> None:
    wanted = round(24 / speed)
    assert plan_for(Settings(speed)).computed == wanted
    assert plan_for(Settings(speed), profile=None).computed == wanted
    assert plan_for(Settings(speed), profile=None).predicted_error == ()
    assert 1 <= plan_for(Settings(speed, mode="paper")).computed <= wanted


@pytest.mark.parametrize("mode", ["planned", "paper"])
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["built in", "measured"])
def test_speed_1_computes_everything_and_says_nothing(mode: str, profile: Profile | None) -> None:
    plan = plan_for(Settings(1.0, mode=mode, timesteps=True), profile)
    assert all(plan.compute)
    assert set(plan.coefficients) == {()}
    assert set(plan.corrections) == {0.0}
    assert (plan.schedule, plan.notes) == ((), ())


@pytest.mark.parametrize("steps", range(1, MIN_CALLS))
def test_too_few_calls_are_all_computed_with_a_note(steps: int) -> None:
    schedule = flow(steps)
    plan = plan_for(Settings(2.0), None, schedule)
    assert all(plan.compute)
    assert plan.sigmas == pytest.approx(schedule[:-1])
    assert plan.notes == (note("too_few_calls", calls=steps, least=MIN_CALLS),)


def test_the_first_count_that_is_enough_is_planned() -> None:
    assert plan_for(Settings(2.0), None, flow(MIN_CALLS)).computed == MIN_CALLS // 2


def test_speed_beyond_reach_gives_the_nearest_with_a_note() -> None:
    plan = plan_for(Settings(100.0))
    assert plan.computed == 2
    assert note("speed_limited", speed=100, calls=24, computed=2, limit="12.00") in plan.notes
    ends = plan_for(Settings(4.0, protect_start=5, protect_end=4))
    assert {0, 1, 2, 3, 4, 20, 21, 22, 23} <= set(computed_at(ends))
    assert ends.computed == 9
    assert note("speed_limited", speed=4, calls=24, computed=9, limit="2.67") in ends.notes
    assert not plan_for(Settings(2.0, protect_start=5, protect_end=4)).notes


def test_calls_beyond_the_profiles_reach_are_planned_at_the_same_budget() -> None:
    """A profile of img2img knows nothing of the noise before: neither is all of it computed, nor is it all reused."""
    late = PROFILE.sigmas[PROFILE.sigmas < 0.7]
    plan = plan_for(Settings(2.0), profile_at(late))
    beyond = [i for i, sigma in enumerate(plan.sigmas) if sigma > 0.85]
    assert plan.computed == 12
    assert 0.3 * len(beyond) < len(set(beyond) & set(computed_at(plan))) < 0.8 * len(beyond)
    assert "profile_reach" in codes(plan)
    assert {plan.residual_limits[i] for i in beyond} <= {0.0, MOST_RESIDUAL}, "nothing was recorded to compare with"


def test_a_profile_that_reaches_nothing_of_a_run_is_not_used_and_that_is_said() -> None:
    plan = plan_for(Settings(2.0), profile_at(np.linspace(0.2, 0.1, 8)), np.linspace(1.0, 0.6, 20))
    assert codes(plan) == ["profile_beyond"]
    assert replace(plan, notes=()) == plan_for(Settings(2.0), None, np.linspace(1.0, 0.6, 20))


def test_unknown_response_passes_through() -> None:
    def respond(schedule: np.ndarray) -> ImpulseResponse:
        raise UnknownResponse("reason")

    with pytest.raises(UnknownResponse, match="reason"):
        solve(Problem(SCHEDULE, respond, PROFILE), Settings())


# Which are computed


def all_schedules(count: int, computed: int, limit: int, required: frozenset[int]) -> list[Schedule]:
    found = []
    for others in itertools.combinations(range(1, count), computed - 1):
        if required <= {0, *others} and all(b - a <= limit for a, b in itertools.pairwise((0, *others, count))):
            found.append(tuple(i == 0 or i in others for i in range(count)))
    return found


@pytest.mark.parametrize("measured", [True, False], ids=["measured", "built in"])
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize(
    ("predictor", "slope"), [("auto", None), ("linear", 1.0), ("hold", 0.0), ("affine", 0.0)], ids=lambda v: str(v)
)
@pytest.mark.parametrize(("edges", "protect_end"), [((), 0), ((0.9,), 2)], ids=["free", "required"])
def test_plan_is_the_best_of_all_schedules_by_the_costs_of_its_intervals(
    measured: bool, corrector: bool, predictor: str, slope: float | None, edges: tuple[float, ...], protect_end: int
) -> None:
    count, computed = 13, 7
    schedule = flow(count)
    profile = profile_at(schedule[:-1]) if measured else None
    settings = Settings(count / computed, predictor=predictor, corrector=corrector, protect_end=protect_end)
    problem = Problem(schedule, euler_response, profile, edges)
    required = {*range(count - protect_end, count), *problem.resets}
    limit = longest_interval(count, computed)
    keys = possible_intervals(count, limit, required, problem.resets)
    costs = mixed(keys, *problem.interval_costs(keys, slope, corrector), 0.5)

    def score(compute: Schedule) -> float:
        places = [*np.flatnonzero(compute), count]
        known = histories((*compute, True), problem.resets)
        # An interval's history ends with the call it begins at, also where that is a history reset.
        intervals = [((s,) if s in problem.resets else (s, *known[s][:1]), t) for s, t in itertools.pairwise(places)]
        return sum(costs[history, t] for history, t in intervals if t > history[0] + 1)

    candidates = all_schedules(count, computed, limit, required)
    assert len({round(score(c), 12) for c in candidates}) > 5, "otherwise any would do"
    assert plan_for(settings, profile, schedule, edges).compute == min(candidates, key=score)


def stochastic_euler(schedule: np.ndarray) -> ImpulseResponse:
    return replace(euler_response(schedule), stochastic=True)


def noise_around_a_mean() -> Profile:
    rng = np.random.default_rng(1)
    tables = []
    for run in range(2):
        recorder = Recorder(SCHEDULE[:-1])
        for i, feature in enumerate(rng.normal(size=(24, 200)) * 0.1 + rng.normal(size=200)):
            recorder.observe(i, "guided", torch.from_numpy(feature))
        tables += recorder.tables(run, RMS)
    return Profile(MEASURED, tuple(tables))


def test_fitted_slope_is_the_line_on_smooth_features_and_holds_on_noise() -> None:
    """A line only amplifies noise. With a stochastic sampler as well, once a profile shows it."""

    def errors(profile: Profile) -> list[float]:
        choices = [Settings(2.0, corrector=False, predictor=name) for name in ("auto", "linear", "hold")]
        return [
            solve(Problem(SCHEDULE, stochastic_euler, profile), settings).predicted_error[0] for settings in choices
        ]

    fitted, drawn, held = errors(PROFILE)
    assert max(fitted, drawn) < 0.5 * held
    fitted, drawn, held = errors(noise_around_a_mean())
    assert fitted < 1.1 * held < 0.9 * drawn


# Nothing measured


def test_a_stochastic_multistep_method_is_held_with_a_profile_too() -> None:
    def noisy(schedule: np.ndarray) -> ImpulseResponse:
        return replace(multistep(schedule), stochastic=True)

    for respond, held in ((noisy, True), (multistep, False), (stochastic_euler, False)):
        assert (terms(solve(Problem(SCHEDULE, respond, PROFILE), Settings(2.0))) == {1}) == held


def test_without_a_profile_a_stochastic_sampler_is_held_and_any_other_gets_the_line() -> None:
    for respond, expected in [
        (stochastic_euler, {1}),
        (euler_response, {1, 2}),
    ]:  # the first skipped interval has one node only
        assert terms(solve(Problem(SCHEDULE, respond, None), Settings(2.0))) == expected


def karras(steps: int) -> np.ndarray:
    """Sigmas as Stable Diffusion's."""
    low, high = 0.0292 ** (1 / 7), 14.6146 ** (1 / 7)
    return np.append((high + np.linspace(0, 1, steps) * (low - high)) ** 7, 0.0)


SIGMAS = {"flow from exactly 1": flow(24), "flow below 1": flow(30)[6:], "Stable Diffusion": karras(24)}


@pytest.mark.parametrize("speed", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("schedule", SIGMAS.values(), ids=SIGMAS.keys())
def test_built_in_plan_is_corrected_and_promises_nothing(schedule: np.ndarray, speed: float) -> None:
    assert (schedule[0] == 1.0) == (schedule is SIGMAS["flow from exactly 1"])
    plan = plan_for(Settings(speed), None, schedule)
    assert plan.computed == round(24 / speed)
    assert (plan.predicted_error, plan.profile, plan.notes) == ((), "", ())
    assert terms(plan) <= {1, 2}, "the line where it helps over so long a skipped interval, else held"
    assert 2 in terms(plan_for(Settings(1.5), None, schedule))
    assert sum(u != 0.0 for u in plan.corrections) >= 2
    assert set(plan.offsets) == {0.0}
    assert plan_from_json(plan_to_json(plan)) == plan, "also: every number is finite and in its range"
    assert plan == plan_for(Settings(speed), None, schedule.copy())


@pytest.mark.parametrize("schedule", SIGMAS.values(), ids=SIGMAS.keys())
def test_built_in_plan_beats_holding_evenly_on_features_it_has_not_seen(schedule: np.ndarray) -> None:
    """Smooth in the log signal-to-noise ratio, each in a frequency and phase of its own."""
    rng = np.random.default_rng(3)
    sigmas = schedule[:-1]
    share = sigmas / (1 + sigmas) if sigmas.max() > 1 else np.minimum(sigmas, 0.999)
    features = np.sin(np.outer(np.log(share / (1 - share)), rng.uniform(0.2, 0.8, 300)) + rng.uniform(0, 6.3, 300))
    plan = plan_for(Settings(2.0), None, schedule)
    held = plan_for(Settings(2.0, mode="paper"), None, schedule)
    errors = [np.linalg.norm(simulated(euler(schedule), p, features)) for p in (plan, held)]
    assert errors[0] < 0.2 * errors[1]


# Many model calls


@pytest.mark.parametrize("count", [MOST_PLANNED, MOST_PLANNED + 1, 1000])
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["built in", "measured"])
@pytest.mark.parametrize("speed", [1.5, 2.0, 5.0, 20.0])
def test_hundreds_of_calls_are_planned_or_evenly_spread_with_a_note(
    count: int, profile: Profile | None, speed: float
) -> None:
    plan = plan_for(Settings(speed, protect_start=2), profile, flow(count))
    wanted = round(count / speed)
    searched = count <= MOST_PLANNED and count * longest_interval(count, wanted) ** 2 <= MAX_INTERVALS
    assert (note("search_too_long", calls=count) in plan.notes) != searched
    assert wanted <= plan.computed <= wanted + 1
    assert plan.compute[:2] == (True, True)
    assert any(plan.corrections) == (count <= MOST_PLANNED)
    if not searched:
        assert plan.compute == even(count, wanted, {1})
    assert plan_from_json(plan_to_json(plan)) == plan


def test_a_preset_of_a_run_too_long_to_plan_is_stretched_and_held() -> None:
    plan = plan_for(Settings(1.0, preset=(0, 3, 7), preset_steps=8), None, flow(400))
    assert computed_at(plan) == [0, 171, 399]
    assert terms(plan) == {1}


# The paper's choice, presets


def test_threshold_is_the_papers_walk() -> None:
    plan = plan_for(Settings(1.0, mode="paper", threshold=0.3, predictor="hold"))
    l1 = np.mean([t.l1 / t.norm1[None] for t in PROFILE.tables], axis=0)
    newest, expected = 0, []
    for i in range(24):
        if i == 0 or l1[newest, i] >= 0.3:
            newest = i
        expected.append(newest == i)
    assert list(plan.compute) == expected
    assert 1 < plan.computed < 24


def test_raising_the_threshold_never_makes_the_first_interval_shorter() -> None:
    intervals = []
    for threshold in (0.01, 0.05, 0.1, 0.3, 1.0):
        plan = plan_for(Settings(1.0, mode="paper", threshold=threshold))
        intervals.append([*computed_at(plan), 24][1])
    assert intervals == sorted(intervals)
    assert intervals[0] < intervals[-1]


def test_preset_is_stretched_with_a_note_and_needs_no_profile() -> None:
    settings = Settings(1.0, preset=(0, 1, 2, 5, 11), preset_steps=12)
    plan = plan_for(settings, None)
    assert computed_at(plan) == [0, 2, 4, 10, 23]
    assert plan.notes[0] == note("preset_stretched", steps=12, calls=24)
    assert computed_at(plan_for(settings, None, flow(12))) == [0, 1, 2, 5, 11]
    assert plan_for(settings, None, flow(12)).notes == ()


def test_paper_mode_without_a_profile_is_even_and_held() -> None:
    plan = plan_for(Settings(3.0, mode="paper"), None)
    assert set(plan.coefficients) == {(), (1.0,)}
    assert set(plan.corrections) == {0.0}
    assert plan.notes[0] == note("paper_without_profile")


# Edges


def test_resets_are_the_first_calls_behind_each_edge() -> None:
    sigmas = np.array([1.0, 0.8, 0.6, 0.4])
    assert resets_at(sigmas, ()) == {0}
    assert resets_at(sigmas, (0.7, 0.41)) == {0, 2, 3}
    assert resets_at(sigmas, (2.0, 0.1)) == {0}
    # Exactly on a model call: it may belong to either side, so it and the one behind it begin anew.
    assert resets_at(sigmas, (0.6,)) == {0, 2, 3}
    # Heun crosses the edge on its trial model call, goes back never, but a sampler may: each crossing counts.
    assert resets_at(np.array([1.0, 0.5, 0.9, 0.4]), (0.7,)) == {0, 1, 2, 3}


def test_edge_that_equals_a_sigma_in_float32_lies_on_it() -> None:
    """ComfyUI compares in float32: at shift 8 half of the run is sigma 8/9, where 20 steps have a model call."""
    sigmas = flow(20)[:-1].astype(np.float32).astype(np.float64)
    edge = 8 / 9
    assert sigmas[10] != edge
    assert resets_at(sigmas, (edge,)) == {0, 10, 11}


def test_plan_starts_anew_behind_an_edge() -> None:
    edge = (SCHEDULE[9] + SCHEDULE[10]) / 2
    for settings in (Settings(3.0), Settings(3.0, mode="paper"), Settings(3.0, predictor="linear")):
        for profile in (PROFILE, None):
            plan = plan_for(settings, profile, edges=(edge,))
            assert plan.resets == (0, 10)
            assert plan.compute[10]
            assert plan.corrections[10] == 0.0
            known = histories(plan.compute, plan.resets)
            for i in range(10, 24):
                assert all(node >= 10 for node in known[i][: len(plan.coefficients[i])])
                assert len(plan.coefficients[i]) <= len(known[i])


# Timesteps


def test_timesteps_move_the_schedule_and_the_plan_is_for_the_moved_one() -> None:
    plan = plan_for(Settings(2.0, mode="paper", timesteps=True))
    assert len(plan.schedule) == 25
    assert (plan.schedule[0], plan.schedule[-1]) == (SCHEDULE[0], SCHEDULE[-1])
    assert plan.schedule[:-1] == plan.sigmas
    assert np.any(np.array(plan.sigmas) > SCHEDULE[:-1] + 1e-3)
    assert plan.compute == plan_for(Settings(2.0, mode="paper")).compute
    assert adjusted_schedule(SCHEDULE, PROFILE, Settings(2.0, mode="paper")) == pytest.approx(plan.schedule)
    np.testing.assert_array_equal(adjusted_schedule(SCHEDULE, PROFILE, Settings(1.0)), SCHEDULE)


def twice_per_step(schedule: np.ndarray) -> ImpulseResponse:
    """Heun's response."""

    def run(model, x):
        for sigma, following in itertools.pairwise(schedule):
            d = (x - model(x, x.new_full((x.shape[0],), sigma))) / sigma
            if following > 0:
                trial = x + (following - sigma) * d
                d = (d + (trial - model(trial, x.new_full((x.shape[0],), following))) / following) / 2
            x = x + (following - sigma) * d
        return x

    return probe(run)


def test_what_adjusted_timesteps_do_by_themselves_is_said_to_be_left_out() -> None:
    moved = plan_for(Settings(2.0, mode="paper", timesteps=True))
    assert moved.schedule and "timesteps_not_predicted" in codes(moved)
    assert "timesteps_not_predicted" not in codes(plan_for(Settings(2.0, mode="paper")))


def test_timesteps_that_cannot_be_known_stay_nominal_with_a_note() -> None:
    settings = Settings(2.0, timesteps=True)
    heun = solve(Problem(SCHEDULE, twice_per_step, profile_at(twice_per_step(SCHEDULE).sigmas)), settings)
    assert heun.schedule == ()
    assert "timesteps_sampler" in codes(heun)
    unmeasured = plan_for(settings, None)
    assert unmeasured.schedule == ()
    assert "timesteps_need_profile" in codes(unmeasured)


def test_a_profile_of_far_fewer_calls_checks_nothing_and_says_so() -> None:
    """24 recorded, the run's number beside it: more than twice is too many."""
    for steps, sparse in ((44, False), (56, True), (100, True)):
        plan = plan_for(Settings(2.0), PROFILE, flow(steps))
        assert ("profile_sparse" in codes(plan)) == sparse
        assert (set(plan.residual_limits) == {0.0, MOST_RESIDUAL}) == sparse
        assert plan.predicted_error


def test_a_profile_that_cannot_separate_two_calls_at_one_sigma_promises_nothing() -> None:
    """Resampled, both are the same: a plan would reuse every other one and expect no error at all."""
    own = profile_at(twice_per_step(SCHEDULE).sigmas)
    for profile, schedule in ((PROFILE, SCHEDULE), (own, flow(20))):
        plan = solve(Problem(schedule, twice_per_step, profile), Settings(2.0))
        assert plan.predicted_error == () and set(plan.residual_limits) == {0.0, MOST_RESIDUAL}
        assert codes(plan) == ["profile_equal_sigmas"]
        without = solve(Problem(schedule, twice_per_step, None), Settings(2.0))
        assert (plan.compute, plan.corrections) == (without.compute, without.corrections)
    assert solve(Problem(SCHEDULE, twice_per_step, own), Settings(2.0)).predicted_error


def test_timesteps_never_move_another_call_behind_an_edge() -> None:
    """Adjusted sigmas are higher, so an edge may be crossed later than on the nominal ones, by a reused model call."""
    settings = Settings(3.0, mode="paper", timesteps=True)
    for i in range(2, 24):
        edge = SCHEDULE[i] + 1e-3
        plan = plan_for(settings, edges=(edge,))
        crossed = resets_at(np.array(plan.sigmas), (edge,))
        assert crossed == set(plan.resets)
        assert all(plan.compute[r] for r in crossed)


# Step counts (docs/compatibility/traps.md, T5)


def test_profile_at_its_own_steps_is_taken_as_it_is() -> None:
    assert resampled(PROFILE, SCHEDULE[:-1]) is PROFILE


@pytest.mark.parametrize("steps", [10, 15, 20, 30, 40, 60, 80])
def test_predicted_error_at_other_step_counts_is_the_measured_one(steps: int) -> None:
    """A 50-step profile of an analytic trajectory, planned with at other counts, against runs of that many steps."""
    schedule, recorded = flow(steps), profile_at(flow(50)[:-1])
    for settings, within in [(Settings(2.0), 0.05), (Settings(2.0, predictor="hold", corrector=False), 0.01)]:
        plan = plan_for(settings, recorded, schedule)
        fitting = resampled(recorded, schedule[:-1])
        plan, predicted = reshaped(plan, euler_response(schedule), fitting, silent(steps))
        np.testing.assert_allclose(predicted, measured_errors(euler, schedule, plan), rtol=within)


def test_fewer_steps_do_not_make_an_interval_look_harmless() -> None:
    """What is held over the same stretch of sigma errs the same, however many steps lie in it."""
    recorded = profile_at(flow(50)[:-1])
    ends = []
    for steps in (10, 20, 50, 100):
        fitting = resampled(recorded, flow(steps)[:-1])
        gram = profile_grams(fitting)[0]
        first, last = steps // 5, 4 * steps // 5  # the same two sigmas at every count
        ends.append(gram[first, first] + gram[last, last] - 2 * gram[first, last])
    np.testing.assert_allclose(ends, ends[2], rtol=0.02)


# The predicted error


def simulated(sampler: Callable, plan: Plan, features: np.ndarray, gain: np.ndarray | None = None) -> np.ndarray:
    """How far a run that follows the plan ends from the recorded one. features: (M, n) what that one's model gave.

    gain: (M,) how the model's output changes with its latent: F_e(x) = F_e + gain_e (x - X_e).
    """
    recorded = torch.from_numpy(features)[:, None]
    gains = np.zeros(len(features)) if gain is None else gain
    places: list[torch.Tensor] = []

    def sample(derivative: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        calls = itertools.count()

        def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x - sigma.reshape(-1, 1) * derivative(next(calls), x)

        return sampler(model, torch.zeros(1, features.shape[1], dtype=torch.float64))

    def record(i: int, x: torch.Tensor) -> torch.Tensor:
        places.append(x)
        return recorded[i]

    replay = Replay(plan)

    def follow(i: int, x: torch.Tensor) -> torch.Tensor:
        predicted = replay.predict(i, "guided")
        if predicted is not None:
            return predicted
        return replay.observe(i, "guided", recorded[i] + float(gains[i]) * (x - places[i]))

    return (sample(record) - sample(follow)).numpy()[0]


def euler(schedule: np.ndarray) -> Callable:
    def run(model, x):
        for sigma, following in itertools.pairwise(schedule):
            x = x + (following - sigma) * (x - model(x, x.new_full((x.shape[0],), sigma))) / sigma
        return x

    return run


def two_step(schedule: np.ndarray) -> Callable:
    def run(model, x):
        before = None
        for sigma, following in itertools.pairwise(schedule):
            d = (x - model(x, x.new_full((x.shape[0],), sigma))) / sigma
            x = x + (following - sigma) * (d if before is None else 1.5 * d - 0.5 * before)
            before = d
        return x

    return run


def measured_errors(sampler: Callable, schedule: np.ndarray, plan: Plan, gain: np.ndarray | None = None) -> np.ndarray:
    """(3,) RMS over elements at the end of each recorded run."""
    runs = [simulated(sampler(schedule), plan, trajectory(r)(np.array(plan.sigmas)), gain) for r in range(3)]
    return np.sqrt(np.mean(np.square(runs), axis=1))


def silent(count: int) -> ErrorResponse:
    """Of a model that gives what was recorded, wherever it is asked."""
    return ErrorResponse(np.zeros(count), np.zeros(count), np.eye(count))


def reshaped(
    plan: Plan, response: ImpulseResponse, profile: Profile, error_response: ErrorResponse
) -> tuple[Plan, np.ndarray]:
    """The plan's schedule fitted to a model of this error response, and (T,) RMS of the end's predicted errors."""
    grams = profile_grams(profile)
    simulation = Simulation(response, grams, error_response, frozenset(plan.resets))
    shape = simulation.fit(plan.compute, plan.settings.method(True, False)[0], plan.settings.corrector)
    fitted = {name: tuple(getattr(shape, name)) for name in ("coefficients", "offsets", "corrections")}
    return replace(plan, **fitted), np.sqrt(shape.squares)


@pytest.mark.parametrize("predictor", ["auto", "hold", "linear", "affine"])
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("sampler", [euler, two_step])
@pytest.mark.parametrize("perturbed", [False, True], ids=["open loop", "closed loop"])
def test_predicted_error_is_that_of_a_simulated_run(sampler, predictor: str, corrector: bool, perturbed: bool) -> None:
    """To 1e-6, for each recorded run, edges included. (tests/comfy has it with ComfyUI's own samplers.)"""
    schedule = flow(16)
    sigmas = schedule[:-1]
    profile = profile_at(sigmas)

    def respond(sigmas: np.ndarray) -> ImpulseResponse:
        return probe(sampler(sigmas))

    settings = Settings(2.5, predictor=predictor, corrector=corrector)
    plan = solve(Problem(schedule, respond, profile, edges=(0.9,)), settings)
    gain = np.cos(1.0 + 2.0 * np.arange(16)) / sigmas if perturbed else np.zeros(16)
    plan, predicted = reshaped(plan, respond(schedule), profile, replace(silent(16), gain=gain))
    assert any(plan.corrections) == corrector
    # Offsets of an affine prediction are in units of the feature at hand, which differs a little from run to run.
    within = 1e-2 if predictor == "affine" else 1e-6
    np.testing.assert_allclose(measured_errors(sampler, schedule, plan, gain), predicted, rtol=within)
    without = measured_errors(sampler, schedule, plan)
    assert (np.abs(without / predicted - 1.0).max() > 0.05) == perturbed, "the error response matters"


@pytest.mark.parametrize("predictor", ["auto", "hold", "linear", "affine"])
def test_plan_promises_the_median_and_worst_of_what_its_runs_really_leave(
    predictor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the final latent's size. The deviation is next to nothing, but it marks the gains as measured."""
    monkeypatch.setattr(planner_module, "ACCURACY", 1e6)  # no other candidate
    gain = np.cos(1.0 + 2.0 * np.arange(24)) / SCHEDULE[:-1]
    profile = with_error_response(PROFILE, gain, 1e-9)
    plan = plan_for(Settings(2.5, predictor=predictor), profile)
    found = measured_errors(euler, SCHEDULE, plan, gain) / RMS
    assert plan.predicted_error == pytest.approx((np.median(found), max(found)), rel=1e-3)
    without = plan_for(Settings(2.5, predictor=predictor))
    assert (plan.compute, plan.corrections) == (without.compute, without.corrections), (
        "the search assumes an error response"
    )
    assert plan.predicted_error != without.predicted_error


def test_error_responses_are_pooled_over_the_runs_in_which_they_were_measured() -> None:
    """By their squares: gains of 3 and 1 are one of 2, with 1 to either side on top of the deviations."""
    one = np.ones(24)
    first, second, unmeasured = UNPERTURBED.tables
    tables = (
        replace(first, gain=3 * one, deviation=0.5 * one),
        replace(second, gain=one, deviation=1.5 * one),
        unmeasured,
    )
    apart = plan_for(Settings(2.0), replace(UNPERTURBED, tables=tables))
    pooled = plan_for(Settings(2.0), with_error_response(UNPERTURBED, 2 * one, np.sqrt(1.0 + (0.5**2 + 1.5**2) / 2)))
    assert apart.predicted_error == pytest.approx(pooled.predicted_error, rel=1e-9)
    assert apart.residual_limits == pytest.approx(pooled.residual_limits, rel=1e-9)


def test_where_no_error_response_was_measured_one_is_assumed_with_a_note() -> None:
    unmeasured = plan_for(Settings(2.0), UNPERTURBED)
    assert "no_error_response_remedy" in codes(unmeasured)
    blocks = plan_for(Settings(2.0, level="blocks"), replace(UNPERTURBED, measured=replace(MEASURED, level="blocks")))
    assert "no_error_response" in codes(blocks), "nor can it be"
    assumed = assumed_error_response(SCHEDULE[:-1])
    simulation = Problem(SCHEDULE, euler_response, UNPERTURBED).prediction
    assert (
        np.array_equal(simulation.error_response.deviation, assumed.deviation)
        and not simulation.error_response.gain.any()
    )
    assert unmeasured.predicted_error[0] > plan_for(Settings(2.0)).predicted_error[0]
    assert plan_for(Settings(2.0)).notes == ()


def test_a_model_that_responds_more_is_predicted_to_err_more() -> None:
    calm, lively = (
        plan_for(Settings(2.0), with_error_response(PROFILE, np.zeros(24), c / SCHEDULE[:-1])) for c in (0.1, 5.0)
    )
    assert lively.predicted_error[0] > 1.5 * calm.predicted_error[0]
    assert max(lively.residual_limits) > max(calm.residual_limits)


def test_what_an_error_response_drowns_is_taken_back() -> None:
    """Then the output that ends a skipped interval shows nothing new: a correction of -1 leaves the prediction in its
    place.
    """
    simulation = Problem(SCHEDULE, euler_response, PROFILE).fitting
    compute = even(24, 12, frozenset())
    first = next(i for i in range(2, 24) if compute[i] and not compute[i - 1])

    def correction(size: float) -> float:
        responding = replace(simulation, error_response=replace(silent(24), deviation=np.full(24, size)))
        return responding.fit(compute, FittedLine, True).corrections[first]

    assert correction(1e4) == pytest.approx(-1.0, abs=0.01)
    assert correction(0.0) > 0.0


@pytest.mark.parametrize("margin", [1.0, 2.0])
def test_features_are_held_with_a_note_where_that_is_predicted_to_be_far_better(
    margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner_module, "ACCURACY", margin)
    schedule = flow(10)
    lively = with_error_response(profile_at(schedule[:-1]), np.zeros(10), 8.0 / schedule[:-1])
    plan = plan_for(Settings(3.0), lively, schedule)
    chosen = terms(plan) == {1} and not any(plan.corrections)
    assert chosen == (margin == 1.0), "it is 1.3 times better"
    assert codes(plan) == ["held"] * chosen
    assert plan.settings == Settings(3.0), "which is what is asked again when a workflow brings the plan along"


def predicted(problem: Problem, settings: Settings, compute: Schedule) -> float:
    """What the planner predicts for a schedule, in the median over the recorded runs."""
    fit = problem.fitting.fit(compute, *settings.method(True, False))
    return float(np.median(problem.calibrated(problem.prediction.follow(compute, fit).squares)))


def test_a_plan_is_never_predicted_to_be_far_behind_another_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that only move late, which the prior does not know: the search with it computes too much early."""
    schedule, rng = flow(24, 1.0), np.random.default_rng(5)
    recorder = Recorder(schedule[:-1])
    late = np.maximum(0.0, np.arange(24) - 15.0)
    moves = rng.normal(size=(3, 400))
    for i in range(24):
        feature = sum(np.sin(late[i] * (k + 1) / 2) * move for k, move in enumerate(moves)) + 1.0
        recorder.observe(i, "guided", torch.from_numpy(feature))
    profile = with_error_response(Profile(MEASURED, recorder.tables(0, RMS)), np.zeros(24), 0.1)
    problem, settings = Problem(schedule, euler_response, profile, (), WAN), Settings(2.0)
    keys = possible_intervals(24, longest_interval(24, 12), problem.resets, problem.resets)
    costs = problem.interval_costs(keys, None, True)
    searched, recorded = (budget(24, 12, mixed(keys, *costs, share), longest_interval(24, 12)) for share in (0.5, 0.0))
    errors = [predicted(problem, settings, compute) for compute in (searched, recorded, even(24, 12))]
    plan = solve(problem, settings)
    assert plan.predicted_error[0] <= min(errors)
    assert errors[0] > 1.2 * plan.predicted_error[0], "otherwise this shows nothing"
    monkeypatch.setattr(planner_module, "ACCURACY", 1000.0)
    assert solve(problem, settings).compute == searched, "within the margin the search is right"


@pytest.mark.parametrize("measured", [True, False])
def test_candidates_without_a_measured_error_response_are_judged_by_the_prior_as_well(measured: bool) -> None:
    problem = Problem(SCHEDULE, euler_response, PROFILE if measured else UNPERTURBED)
    compute = even(24, 12)
    filled = Filled(Way(problem, Settings(2.0), FittedLine, True), compute)
    squares = problem.prediction.follow(compute, filled.fit).squares
    (recorded,) = problem.calibrated(squares.mean(keepdims=True))
    (by_prior,) = np.sqrt(problem.prior.follow(compute, filled.fit).squares)
    assert filled.rank == pytest.approx(recorded if measured else np.sqrt(recorded * by_prior))


def multistep(schedule: np.ndarray) -> ImpulseResponse:
    """Half of what an output does to the next latent is taken back by the step after."""
    response = euler_response(schedule)
    matrix = response.matrix.copy()
    for i in range(response.calls - 1):
        matrix[i, i + 1] *= 1.5
    return replace(response, matrix=matrix)


@pytest.mark.parametrize(("respond", "kinks"), [(euler_response, 0.0), (multistep, KINKS)])
def test_the_built_in_plan_expects_kinks_of_multistep_methods(respond: Callable[..., Any], kinks: float) -> None:
    schedule = flow(20, 1.0)
    problem = Problem(schedule, respond, None)
    smooth = generic_gram(schedule[:-1])
    np.testing.assert_allclose(problem.fitting.grams - np.eye(21), (1 - kinks) * (smooth - np.eye(21)), atol=1e-12)
    np.testing.assert_array_equal(problem.prior.grams, smooth)
    settings = Settings(2.0)
    plan = solve(problem, settings)
    fitted = problem.fitting.fit(plan.compute, *settings.method(False, False)).coefficients
    assert [c[0] for c in plan.coefficients if c] == pytest.approx([c[0] for c in fitted if c], rel=1e-5)


@given(st.floats(0.0, 1e30), st.floats(1e-3, 1e3))
def test_predicted_errors_never_exceed_the_latent_itself(square: float, calibration: float) -> None:
    (table, *_) = with_error_response(PROFILE, np.zeros(24), 1.0).tables
    for tables in ((replace(table, calibration=calibration),), UNPERTURBED.tables):
        problem = Problem(SCHEDULE, euler_response, Profile(MEASURED, tables))
        (error,) = problem.calibrated(np.array([square]))
        assert 0.0 <= error <= 1.0
        assert error <= max(calibration, 1.0) * np.sqrt(square) + 1e-12


def test_small_errors_are_predicted_as_the_perturbed_run_had_them() -> None:
    (table, *_) = with_error_response(PROFILE, np.zeros(24), 1.0).tables
    calibrated = Problem(SCHEDULE, euler_response, Profile(MEASURED, (replace(table, calibration=0.4),)))
    assert calibrated.calibrated(np.array([1e-6])) == pytest.approx([0.4e-3], rel=1e-5)


@pytest.mark.parametrize("shift", [5.0, 8.0])
@pytest.mark.parametrize("size", ["1.3b", "14b"])
def test_on_a_latent_of_wan_the_built_in_plan_computes_where_published_lists_do(shift: float, size: str) -> None:
    """LeMiCa's, which were searched on the real models. None of them is known to the planner."""
    known = {entry["name"]: entry for entry in json.loads(PRESETS.read_text())["presets"]}
    apart, small = [], []
    for computed in (25, 20):
        listed = known[f"lemica_wan2.1_t2v_{size}_{computed}of50"]["compute"]
        settings = Settings(50 / computed)
        for shape, found in ((WAN, apart), ((1, 16, 5, 8, 8), small)):
            plan = solve(Problem(flow(50, shift), euler_response, None, (), shape), settings)
            found.append(np.abs(np.array(computed_at(plan)) - listed).mean())
    assert np.mean(apart) < 3.5
    assert np.mean(small) > 6.0, "a small latent decides later"


# The curve


@pytest.mark.parametrize("timesteps", [False, True])
def test_the_curve_is_what_the_same_settings_come_to_at_other_speeds(timesteps: bool) -> None:
    settings = Settings(1.7, mode="paper", timesteps=timesteps)
    curve = error_curve(Problem(SCHEDULE, euler_response, PROFILE), settings)
    assert [point.speed for point in curve] == list(CURVE)
    for point in curve:
        plan = plan_for(replace(settings, speed=point.speed))
        assert (point.computed, point.of) == (plan.computed, 24)
        assert (point.median, point.worst) == pytest.approx(plan.predicted_error)
        assert [letter == "1" for letter in point.compute] == list(plan.compute)


# What the check compares with


def test_residual_limits_are_the_residuals_of_recorded_runs_and_a_little_more_for_there_are_few() -> None:
    """The largest over the runs, of what was computed at the end of each skipped interval, widened by 1 + 1 / T."""
    plan = plan_for(Settings(2.0, corrector=False))
    expected = np.zeros(24)
    for run in range(3):
        features = trajectory(run)(SCHEDULE[:-1])
        replay = Replay(plan)
        for i, feature in enumerate(features):
            if not plan.compute[i]:
                replay.predict(i, "guided")
                continue
            if i and not plan.compute[i - 1]:
                line_there = predicted_at(plan, features, i)
                expected[i] = max(expected[i], np.linalg.norm(feature - line_there) / np.linalg.norm(feature))
            replay.observe(i, "guided", torch.from_numpy(feature))
    ends = expected > 0
    assert ends.sum() >= 6
    np.testing.assert_allclose(np.array(plan.residual_limits)[ends], expected[ends] * (1 + 1 / 3), rtol=1e-5)
    assert not np.array(plan.residual_limits)[~ends].any()


def predicted_at(plan: Plan, features: np.ndarray, i: int) -> np.ndarray:
    known = histories(plan.compute, plan.resets)[i]
    coefficients = plan.coefficients[i]
    return np.sum([c * features[k] for c, k in zip(coefficients, known, strict=False)], axis=0) + plan.offsets[i]


@pytest.mark.parametrize(
    "settings", [Settings(2.0, check=False), Settings(2.0, mode="paper")], ids=["switched off", "paper"]
)
def test_without_the_check_nothing_is_compared(settings: Settings) -> None:
    assert not any(plan_for(settings).residual_limits)
    assert any(plan_for(Settings(2.0)).residual_limits)
    assert set(plan_for(Settings(2.0), profile=None).residual_limits) == {0.0, MOST_RESIDUAL}


@pytest.mark.parametrize("predictor", ["auto", "hold", "linear"])
def test_no_other_correction_leaves_less_of_all_errors_so_far(predictor: str) -> None:
    """Summed over runs, with all that comes after the correction computed and left as it is."""
    plan = plan_for(Settings(2.5, predictor=predictor))
    plan, _ = reshaped(plan, euler_response(SCHEDULE), PROFILE, silent(24))
    corrected = [i for i, u in enumerate(plan.corrections) if u]
    assert len(corrected) >= 3
    for t in corrected:

        def left(factor: float, t: int = t) -> float:
            corrections = (*plan.corrections[:t], factor * plan.corrections[t], *[0.0] * (23 - t))
            rest = replace(plan, compute=(*plan.compute[: t + 1], *[True] * (23 - t)), corrections=corrections)
            return float(np.sum(measured_errors(euler, SCHEDULE, rest) ** 2))

        assert left(1.0) < min(left(0.99), left(1.01), left(0.0))


def test_what_is_predicted_to_be_lost_is_computed_in_full_and_that_is_said() -> None:
    """As where the recorded final latent is all zero; the curve tells the error all the same."""
    profile = replace(PROFILE, tables=tuple(replace(table, latent_rms=0.0) for table in PROFILE.tables))
    plan = plan_for(Settings(2.0), profile)
    assert all(plan.compute) and plan.predicted_error == ()
    assert note("lost", speed=2, error="100%") in plan.notes
    assert plan_from_json(plan_to_json(plan)) == plan
    curve = error_curve(Problem(SCHEDULE, euler_response, profile), Settings())
    assert min(point.median for point in curve) == pytest.approx(1.0)


def test_features_that_never_change_promise_no_perfect_run() -> None:
    still = trajectory(0)(SCHEDULE[:-1])[:1].repeat(24, axis=0)
    recorder = Recorder(SCHEDULE[:-1])
    for i, feature in enumerate(still):
        recorder.observe(i, "guided", torch.from_numpy(feature))
    plan = plan_for(Settings(2.0), Profile(MEASURED, recorder.tables(0, RMS)))
    problem = Problem(SCHEDULE, euler_response, None)
    fit = Fit(list(plan.coefficients), list(plan.offsets), list(plan.corrections), [])
    assert plan.predicted_error[0] == pytest.approx(0.001 * problem.prior_error(plan.compute, fit), rel=1e-3)


def test_a_latent_larger_than_its_run_can_make_it_lowers_no_error() -> None:
    """A profile from a stranger: the error is relative to the final latent, which features and noise add up to."""
    boasting = replace(PROFILE, tables=tuple(replace(table, latent_rms=1e30) for table in PROFILE.tables))
    told, honest = (plan_for(Settings(2.0), profile).predicted_error[0] for profile in (boasting, PROFILE))
    assert told > 0.1 * honest


def test_less_speed_and_the_corrector_lower_the_predicted_error() -> None:
    errors = [plan_for(Settings(speed)).predicted_error[0] for speed in (1.5, 2.0, 3.0, 4.0)]
    assert errors == sorted(errors)
    assert plan_for(Settings(2.0)).predicted_error[0] < plan_for(Settings(2.0, corrector=False)).predicted_error[0]
    assert plan_for(Settings(2.0)).predicted_error[0] < plan_for(Settings(2.0, mode="paper")).predicted_error[0]


# Levels, modes, determinism


@pytest.mark.parametrize(
    "settings", [Settings(2.0, level="blocks"), Settings(2.0, mode="paper"), Settings(2.0, corrector=False)]
)
def test_no_correction_at_blocks_level_in_paper_mode_or_where_switched_off(settings: Settings) -> None:
    assert set(plan_for(settings).corrections) == {0.0}
    assert set(plan_for(replace(settings, level="output", mode="planned", corrector=True)).corrections) != {0.0}


def all_choices() -> Sequence[Settings]:
    predictors = ("auto", "hold", "affine", "linear")
    return [Settings(2.0, mode=mode, predictor=p) for mode in ("planned", "paper") for p in predictors]


@pytest.mark.parametrize("settings", all_choices(), ids=lambda s: f"{s.mode}-{s.predictor}")
def test_same_inputs_give_the_same_plan_and_touch_no_random_state(settings: Settings) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    schedule = SCHEDULE.copy()
    assert plan_for(settings, schedule=schedule) == plan_for(settings, from_bytes(to_bytes(PROFILE)))
    assert np.array_equal(schedule, SCHEDULE)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_euler_response_is_what_the_probe_finds() -> None:
    found, known = probe(euler(SCHEDULE)), euler_response(SCHEDULE)
    np.testing.assert_allclose(found.matrix, known.matrix, atol=1e-14)
    np.testing.assert_array_equal(found.sigmas, known.sigmas)


def test_a_curve_resamples_and_hashes_the_profile_once_and_probes_the_sampler_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: Counter[str] = Counter()

    def counting(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def call(*values: Any) -> Any:
            counted[name] += 1
            return whole(*values)

        monkeypatch.setattr(owner, name, call)

    counting(joining_module, "resampled")
    counting(problem_module.profile_file, "digest")

    def respond(schedule: np.ndarray) -> ImpulseResponse:
        counted["respond"] += 1
        return euler_response(schedule)

    problem = Problem(flow(30), respond, PROFILE)
    assert solve(problem, Settings(2.0)).profile
    assert len(error_curve(problem, Settings(2.0))) == len(CURVE) == 7
    assert counted == {"resampled": 1, "digest": 1, "respond": 1}


def test_predictors_that_settings_offer_are_those_of_the_table() -> None:
    offered = {name for name, predictor in PREDICTORS.items() if predictor.selectable}
    assert set(DECLARED["predictor"].metadata["options"]) == {"auto", *offered}


@pytest.mark.parametrize("steps", [1, 2, MIN_CALLS - 1])
def test_a_run_too_short_for_any_profile_asks_nothing_of_the_one_at_hand(steps: int) -> None:
    """A carried plan is compared by the profile's digest, whatever the run: no table has only one model call."""
    problem = Problem(flow(steps), euler_response, PROFILE)
    assert problem.digest == digest(PROFILE)
    assert all(solve(problem, Settings(2.0)).compute)
    assert {all(c == "1" for c in point.compute) for point in error_curve(problem, Settings(2.0))} == {True}


# Parts of a nested latent


def with_sound(waves: float, runs: int = 2) -> Profile:
    return recorded(MEASURED, SCHEDULE[:-1], runs, waves)


def of_stream(profile: Profile, stream: int) -> Profile:
    return Profile(profile.measured, tuple(table for table in profile.tables if table.stream == stream))


def test_the_predicted_error_is_that_of_the_worst_part_whatever_its_size() -> None:
    profile = with_sound(20.0)
    plan = plan_for(Settings(3.0), profile)
    for stream, part in enumerate(plan.parts):
        alone = Problem(SCHEDULE, euler_response, of_stream(profile, stream))
        fit = Fit(list(plan.coefficients), list(plan.offsets), list(plan.corrections), [])
        errors = alone.calibrated(alone.prediction.follow(plan.compute, fit).squares)
        assert part.predicted_error == pytest.approx((np.median(errors), errors.max()), rel=1e-6)
    picture, sound = plan.parts
    assert sound.predicted_error[0] > 1.2 * picture.predicted_error[0], "otherwise this shows nothing"
    assert plan.predicted_error == sound.predicted_error
    assert plan_from_json(plan_to_json(plan)) == plan
    (point,) = [p for p in error_curve(Problem(SCHEDULE, euler_response, profile), Settings()) if p.speed == 3.0]
    assert (point.median, point.worst) == plan.predicted_error


def test_the_plan_heeds_a_part_that_is_small() -> None:
    """Planned by the picture alone, the sound comes out worse."""
    profile = with_sound(20.0)
    both, picture = plan_for(Settings(2.0), profile), plan_for(Settings(2.0), of_stream(profile, 0))
    sound = Problem(SCHEDULE, euler_response, of_stream(profile, 1)).prediction

    def error(plan: Plan) -> float:
        fit = Fit(list(plan.coefficients), list(plan.offsets), list(plan.corrections), [])
        return float(np.median(sound.follow(plan.compute, fit).squares) ** 0.5)

    assert error(both) < 0.8 * error(picture)


def test_each_part_has_residual_limits_of_its_own() -> None:
    plan = plan_for(Settings(2.0), with_sound(20.0))
    picture, sound = (np.array(part.residual_limits) for part in plan.parts)
    checked = np.array(plan.residual_limits) > 0.0
    assert np.array_equal(picture > 0.0, checked) and np.array_equal(sound > 0.0, checked) and checked.any()
    assert (2.0 * picture < sound).any()
    np.testing.assert_array_equal(np.maximum(picture, sound), plan.residual_limits)


def test_a_part_that_is_predicted_to_be_lost_is_computed_in_full() -> None:
    profile = with_sound(4.0)
    silent = tuple(replace(table, latent_rms=0.0) if table.stream else table for table in profile.tables)
    plan = plan_for(Settings(2.0), replace(profile, tables=silent))
    assert all(plan.compute) and plan.parts == ()
    (lost,) = [found for found in plan.notes if found.code == "lost_part"]
    picture, sound = (int(error.rstrip("%")) for error in lost.values["errors"].split(", "))
    assert picture < 20 and sound == 100


def test_of_more_runs_than_can_be_planned_by_all_parts_of_the_first_ones_are_used() -> None:
    schedule = flow(120)
    profile = recorded(replace(MEASURED, steps=120), schedule[:-1], 3, 20.0)
    problem = Problem(schedule, euler_response, profile)
    assert problem.profile is not None and len(profile.tables) == 6
    assert [(table.run, table.stream) for table in problem.profile.tables] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("mode", ["planned", "paper"])
def test_profiles_of_parts_serve_other_steps_and_modes(mode: str) -> None:
    plan = plan_for(Settings(2.0, mode=mode, timesteps=mode == "paper"), with_sound(8.0), schedule=flow(16))
    assert len(plan.parts) == 2 and 0.0 < plan.predicted_error[0] < 1.0
