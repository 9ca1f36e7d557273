"""From a profile, a response and a wish to a plan."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from ertacache.erta.plan import Plan, Wish
from ertacache.erta.planner import (
    FEEDBACK,
    MIN_EVALUATIONS,
    POWER,
    adjusted_schedule,
    euler_response,
    make_plan,
    position_error,
    restarts_at,
    worked_gaps,
)
from ertacache.erta.predictors import Gap, GapModel, make_predictor, mean_squares, profile_grams
from ertacache.erta.profile import Measured, Profile
from ertacache.erta.recorder import Recorder
from ertacache.erta.replay import Replay
from ertacache.erta.response import Response, UnknownResponse, probe
from ertacache.erta.schedules import growth, histories

MEASURED = Measured("WAN21", 1, "0" * 64, "", "flow", 8.0, "euler", "simple", 8, 6.0, (1, 4), "output", "1", "1")
RMS = 2.0


def flow(steps: int, shift: float = 8.0) -> np.ndarray:
    t = 1 - np.arange(steps + 1) / steps
    return shift * t / (1 + (shift - 1) * t)


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


SCHEDULE = flow(24)
PROFILE = profile_at(SCHEDULE[:-1])


def plan_for(wish: Wish, profile: Profile | None = PROFILE, schedule: np.ndarray = SCHEDULE, edges=()) -> Plan:
    return make_plan(schedule, euler_response, profile, wish, edges)


def computed_at(plan: Plan) -> list[int]:
    return [i for i, computed in enumerate(plan.compute) if computed]


# How many are computed


def test_plan_with_every_evaluation_protected_computes_them_all() -> None:
    assert all(plan_for(Wish(2.0, protect_start=1000)).compute)


# Choosing among predictors


def test_sampler_with_memory_gets_what_is_predicted_to_do_best() -> None:
    """Adams-Bashforth of order 2: an output comes back with -1/2 in the next step."""

    def respond(schedule: np.ndarray) -> Response:
        steps = np.diff(schedule)
        count = len(steps)
        influence = np.zeros((count, count + 1))
        for i in range(count):
            influence[i, i + 1 :] += steps[i] * (1.5 if i else 1.0)
            influence[i, i + 2 :] -= 0.5 * steps[i + 1] if i + 1 < count else 0.0
        return Response(schedule[:-1], influence)

    assert euler_response(SCHEDULE).memoryless
    assert not respond(SCHEDULE).memoryless
    chosen = make_plan(SCHEDULE, respond, PROFILE, Wish(2.0))
    plans = [make_plan(SCHEDULE, respond, PROFILE, Wish(2.0, predictor=name)) for name in ("linear", "hold")]
    best = min(plans, key=lambda plan: plan.predicted_error[1])
    assert len({plan.predicted_error for plan in plans}) == 2
    assert (chosen.compute, chosen.coefficients) == (best.compute, best.coefficients)
    assert "least predicted error" in " ".join(chosen.notes)
    assert "least predicted error" not in " ".join(plan_for(Wish(2.0)).notes), "Euler: nothing to choose"


@pytest.mark.parametrize("speed", [1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0])
def test_speed_becomes_the_number_of_computed_evaluations(speed: float) -> None:
    wanted = round(24 / speed)
    assert plan_for(Wish(speed)).computed == wanted
    assert plan_for(Wish(speed), profile=None).computed == wanted
    assert plan_for(Wish(speed), profile=None).predicted_error == ()
    assert 1 <= plan_for(Wish(speed, mode="paper")).computed <= wanted


@pytest.mark.parametrize("mode", ["planned", "paper"])
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["built in", "measured"])
def test_speed_1_computes_everything_and_says_nothing(mode: str, profile: Profile | None) -> None:
    plan = plan_for(Wish(1.0, mode=mode, timesteps=True), profile)
    assert all(plan.compute)
    assert set(plan.coefficients) == {()}
    assert set(plan.corrections) == {0.0}
    assert (plan.schedule, plan.notes) == ((), ())
    assert not position_error(plan, euler_response(SCHEDULE)).any()


@pytest.mark.parametrize("steps", range(1, MIN_EVALUATIONS))
def test_too_few_evaluations_are_all_computed_with_a_note(steps: int) -> None:
    schedule = flow(steps)
    plan = plan_for(Wish(2.0), None, schedule)
    assert all(plan.compute)
    assert plan.sigmas == pytest.approx(schedule[:-1])
    assert "too few" in plan.notes[0]
    assert str(steps) in plan.notes[0]


def test_the_first_count_that_is_enough_is_planned() -> None:
    assert plan_for(Wish(2.0), None, flow(MIN_EVALUATIONS)).computed == MIN_EVALUATIONS // 2


def test_speed_beyond_reach_gives_the_nearest_with_a_note() -> None:
    plan = plan_for(Wish(100.0))
    assert plan.computed == 2
    assert any("more than 24 evaluations allow: 2 computed, 12.00x" in note for note in plan.notes)
    ends = plan_for(Wish(4.0, protect_start=5, protect_end=4))
    assert {0, 1, 2, 3, 4, 20, 21, 22, 23} <= set(computed_at(ends))
    assert ends.computed == 9
    assert any("9 computed, 2.67x" in note for note in ends.notes)
    assert not plan_for(Wish(2.0, protect_start=5, protect_end=4)).notes


def test_longest_gap_is_kept_and_where_it_cannot_be_that_is_noted() -> None:
    plan = plan_for(Wish(2.4, max_gap=3))
    assert plan.computed == 10
    assert max(np.diff([*computed_at(plan), 24])) <= 3
    assert not plan.notes
    # 6 computed of 24 with gaps of at most 2 reach no further than evaluation 12.
    beyond = plan_for(Wish(4.0, max_gap=2))
    assert beyond.computed == 6
    assert any("cannot be 2: it is 4" in note for note in beyond.notes)


def test_evaluations_outside_the_measured_range_are_computed() -> None:
    """A profile from a run that began at sigma .97 knows nothing about the pure noise before, nor below .5."""
    middle = PROFILE.sigmas[(PROFILE.sigmas < 0.97) & (PROFILE.sigmas > 0.5)]
    plan = plan_for(Wish(2.0), profile_at(middle))
    margin = 0.02 * (middle.max() - middle.min())
    outside = [i for i, s in enumerate(plan.sigmas) if s > middle.max() + margin or s < middle.min() - margin]
    assert len(outside) >= 6
    assert set(outside) <= set(computed_at(plan))
    assert not set(outside) <= set(computed_at(plan_for(Wish(2.0))))


def test_unknown_response_passes_through() -> None:
    def respond(schedule: np.ndarray) -> Response:
        raise UnknownResponse("reason")

    with pytest.raises(UnknownResponse, match="reason"):
        make_plan(SCHEDULE, respond, PROFILE, Wish())


# Which are computed


def squares_on(gap: Gap, t: int, run: np.ndarray, response: Response) -> tuple[float, float]:
    """Mean squares on a run's tensors (M + 1, n): what the gap leaves, and what the model answers to arriving off."""
    left = float(np.mean((gap.weights @ run) ** 2))
    if t == response.evaluations:
        return left, 0.0
    answer = FEEDBACK * abs(response.end[t]) * (1.0 + abs(gap.correction)) / response.sigmas[t]
    return left, float(answer**2 * np.mean((gap.arriving @ run) ** 2))


def test_plan_is_the_best_of_all_schedules_by_its_own_criterion() -> None:
    """Every schedule of 4 of 9, gaps up to 4, scored on the tensors: grown errors, power mean over runs, summed."""
    schedule = flow(9)
    profile = profile_at(schedule[:-1])
    response = euler_response(schedule)
    grams = profile_grams(profile)
    gaps = GapModel(response, make_predictor("linear", response.sigmas, grams), True, grams)
    runs = [np.vstack([trajectory(r)(schedule[:-1]), np.ones(200)]) for r in range(3)]
    grown = growth(response.sigmas)

    def score(compute: tuple[bool, ...]) -> float:
        total = 0.0
        for _, t, gap in worked_gaps(gaps, compute):
            errors = np.array([np.sqrt(squares_on(gap, t, run, response)[0]) for run in runs]) * grown[t] ** 2
            total += float(np.mean(errors**POWER) ** (2 / POWER))
        return total

    candidates = []
    for chosen in itertools.combinations(range(1, 9), 3):
        if all(b - a <= 4 for a, b in itertools.pairwise((0, *chosen, 9))):
            candidates.append(tuple(i == 0 or i in chosen for i in range(9)))
    best = min(candidates, key=score)
    found = plan_for(Wish(9 / 4, predictor="linear"), profile, schedule)
    assert found.compute == best
    assert len({round(score(c), 15) for c in candidates}) > 10, "otherwise any would do"


def stochastic_euler(schedule: np.ndarray) -> Response:
    return replace(euler_response(schedule), stochastic=True)


def test_with_a_stochastic_sampler_the_predictor_that_errs_less_is_taken() -> None:
    """On smooth features the line; where every feature is noise around one mean, a line only amplifies it."""
    rng = np.random.default_rng(1)
    tables = []
    for run in range(2):
        recorder = Recorder(SCHEDULE[:-1])
        for i, feature in enumerate(rng.normal(size=(24, 200)) * 0.1 + rng.normal(size=200)):
            recorder.observe(i, "guided", torch.from_numpy(feature))
        tables += recorder.tables(run, RMS)
    wish = Wish(2.0, corrector=False)
    for profile, better in [(Profile(MEASURED, tuple(tables)), "hold"), (PROFILE, "linear")]:
        found = make_plan(SCHEDULE, stochastic_euler, profile, wish)
        expected = make_plan(SCHEDULE, stochastic_euler, profile, replace(wish, predictor=better))
        assert found == replace(expected, wish=wish), better


def test_without_a_profile_a_stochastic_sampler_is_held_and_any_other_gets_the_line() -> None:
    for respond, terms in [(stochastic_euler, {1}), (euler_response, {1, 2})]:  # the first gap has one node only
        plan = make_plan(SCHEDULE, respond, None, Wish(2.0))
        assert {len(c) for c, computed in zip(plan.coefficients, plan.compute, strict=True) if not computed} == terms


def test_threshold_is_the_papers_walk() -> None:
    plan = plan_for(Wish(1.0, mode="paper", threshold=0.3, predictor="hold"))
    l1 = np.mean([t.l1 / t.norm1[None] for t in PROFILE.tables], axis=0)
    newest, expected = 0, []
    for i in range(24):
        if i == 0 or l1[newest, i] >= 0.3:
            newest = i
        expected.append(newest == i)
    assert list(plan.compute) == expected
    assert 1 < plan.computed < 24


def test_raising_the_threshold_never_makes_the_first_gap_shorter() -> None:
    gaps = []
    for threshold in (0.01, 0.05, 0.1, 0.3, 1.0):
        plan = plan_for(Wish(1.0, mode="paper", threshold=threshold))
        gaps.append([*computed_at(plan), 24][1])
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]


def test_preset_is_stretched_with_a_note_and_needs_no_profile() -> None:
    wish = Wish(1.0, preset=(0, 1, 2, 5, 11), preset_steps=12)
    plan = plan_for(wish, None)
    assert computed_at(plan) == [0, 2, 4, 10, 23]
    assert "stretched to 24" in plan.notes[0]
    assert computed_at(plan_for(wish, None, flow(12))) == [0, 1, 2, 5, 11]
    assert plan_for(wish, None, flow(12)).notes == ()


def test_paper_mode_without_a_profile_is_even_and_held() -> None:
    plan = plan_for(Wish(3.0, mode="paper"), None)
    assert set(plan.coefficients) == {(), (1.0,)}
    assert set(plan.corrections) == {0.0}
    assert "without a profile" in plan.notes[0]


# Edges


def test_restarts_are_the_first_evaluations_behind_each_edge() -> None:
    sigmas = np.array([1.0, 0.8, 0.6, 0.4])
    assert restarts_at(sigmas, ()) == {0}
    assert restarts_at(sigmas, (0.7, 0.41)) == {0, 2, 3}
    assert restarts_at(sigmas, (2.0, 0.1)) == {0}
    # Exactly on an evaluation: it may belong to either side, so it and the one behind it begin anew.
    assert restarts_at(sigmas, (0.6,)) == {0, 2, 3}
    # Heun crosses the edge on its trial evaluation, goes back never, but a sampler may: each crossing counts.
    assert restarts_at(np.array([1.0, 0.5, 0.9, 0.4]), (0.7,)) == {0, 1, 2, 3}


def test_edge_that_float32_cannot_tell_from_a_sigma_lies_on_it() -> None:
    """ComfyUI compares in float32: at shift 8 half of the run is sigma 8/9, where 20 steps have an evaluation."""
    sigmas = flow(20)[:-1].astype(np.float32).astype(np.float64)
    edge = 8 / 9
    assert sigmas[10] != edge
    assert restarts_at(sigmas, (edge,)) == {0, 10, 11}


def test_plan_starts_anew_behind_an_edge() -> None:
    edge = (SCHEDULE[9] + SCHEDULE[10]) / 2
    for wish in (Wish(3.0), Wish(3.0, mode="paper"), Wish(3.0, predictor="fitted")):
        for profile in (PROFILE, None):
            plan = plan_for(wish, profile, edges=(edge,))
            assert plan.restarts == (0, 10)
            assert plan.compute[10]
            assert plan.corrections[10] == 0.0
            known = histories(plan.compute, plan.restarts)
            for i in range(10, 24):
                assert all(node >= 10 for node in known[i][: len(plan.coefficients[i])])
                assert len(plan.coefficients[i]) <= len(known[i])


# Timesteps


def test_timesteps_move_the_schedule_and_the_plan_is_for_the_moved_one() -> None:
    plan = plan_for(Wish(2.0, mode="paper", timesteps=True))
    assert len(plan.schedule) == 25
    assert (plan.schedule[0], plan.schedule[-1]) == (SCHEDULE[0], SCHEDULE[-1])
    assert plan.schedule[:-1] == plan.sigmas
    assert np.any(np.array(plan.sigmas) > SCHEDULE[:-1] + 1e-3)
    assert plan.compute == plan_for(Wish(2.0, mode="paper")).compute
    assert adjusted_schedule(SCHEDULE, PROFILE, Wish(2.0, mode="paper")) == pytest.approx(plan.schedule)
    np.testing.assert_array_equal(adjusted_schedule(SCHEDULE, PROFILE, Wish(1.0)), SCHEDULE)


def twice_per_step(schedule: np.ndarray) -> Response:
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


def test_timesteps_that_cannot_be_known_stay_nominal_with_a_note() -> None:
    wish = Wish(2.0, timesteps=True)
    heun = make_plan(SCHEDULE, twice_per_step, PROFILE, wish)
    assert heun.schedule == ()
    assert any("once per step" in note for note in heun.notes)
    unmeasured = plan_for(wish, None)
    assert unmeasured.schedule == ()
    assert any("needs a profile" in note for note in unmeasured.notes)


def test_timesteps_never_move_another_evaluation_behind_an_edge() -> None:
    """Adjusted sigmas are higher, so an edge may be crossed later than on the nominal ones, by a reused evaluation."""
    wish = Wish(3.0, mode="paper", timesteps=True)
    for i in range(2, 24):
        edge = SCHEDULE[i] + 1e-3
        plan = plan_for(wish, edges=(edge,))
        crossed = restarts_at(np.array(plan.sigmas), (edge,))
        assert crossed == set(plan.restarts)
        assert all(plan.compute[r] for r in crossed)


# Step counts (PEERS.md, T5)


def test_profile_at_its_own_steps_is_taken_as_it_is() -> None:
    assert PROFILE.resampled(SCHEDULE[:-1]) is PROFILE


@pytest.mark.parametrize("steps", [10, 15, 20, 30, 40, 60, 80])
def test_predicted_error_at_other_step_counts_is_the_measured_one(steps: int) -> None:
    """A 50-step profile of an analytic trajectory, planned with at other counts, against profiles measured there."""
    schedule, recorded = flow(steps), profile_at(flow(50)[:-1])
    plan = plan_for(Wish(2.0), recorded, schedule)
    direct = profile_at(schedule[:-1])
    weights = position_error(plan, euler_response(schedule))
    carried, measured = (
        np.sqrt(mean_squares(weights, profile_grams(p))) for p in (recorded.resampled(schedule[:-1]), direct)
    )
    np.testing.assert_allclose(carried, measured, rtol=0.05)
    hold = plan_for(Wish(2.0, predictor="hold", corrector=False), recorded, schedule)
    weights = position_error(hold, euler_response(schedule))
    carried, measured = (
        np.sqrt(mean_squares(weights, profile_grams(p))) for p in (recorded.resampled(schedule[:-1]), direct)
    )
    np.testing.assert_allclose(carried, measured, rtol=0.01)


def test_fewer_steps_do_not_make_a_gap_look_harmless() -> None:
    """What is held over the same stretch of sigma errs the same, however many steps lie in it."""
    recorded = profile_at(flow(50)[:-1])
    ends = []
    for steps in (10, 20, 50, 100):
        fitting = recorded.resampled(flow(steps)[:-1])
        gram = profile_grams(fitting)[0]
        first, last = steps // 5, 4 * steps // 5  # the same two sigmas at every count
        ends.append(gram[first, first] + gram[last, last] - 2 * gram[first, last])
    np.testing.assert_allclose(ends, ends[2], rtol=0.02)


# The predicted error


def simulated(run: Callable, plan: Plan, features: np.ndarray) -> np.ndarray:
    """How far a run that follows the plan, and gets the recorded features where it computes, ends from the record."""

    def sample(answer: Callable[[int], torch.Tensor]) -> torch.Tensor:
        calls = itertools.count()

        def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x - sigma.reshape(-1, 1) * answer(next(calls)).to(x)

        return run(model, torch.zeros(1, features.shape[1], dtype=torch.float64))

    recorded = torch.from_numpy(features)[:, None]
    replay = Replay(plan)

    def follow(i: int) -> torch.Tensor:
        predicted = replay.predict(i, "guided")
        return replay.observe(i, "guided", recorded[i]) if predicted is None else predicted

    return (sample(lambda i: recorded[i]) - sample(follow)).numpy()[0]


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


@pytest.mark.parametrize("predictor", ["hold", "linear", "affine", "fitted"])
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("sampler", [euler, two_step])
def test_predicted_position_error_is_that_of_a_simulated_run(sampler, predictor: str, corrector: bool) -> None:
    """To 1e-6, for each recorded run, edges included. (tests/comfy has it with ComfyUI's own samplers.)"""
    schedule = flow(16)
    profile = profile_at(schedule[:-1])
    wish = Wish(2.5, predictor=predictor, corrector=corrector)

    def respond(sigmas: np.ndarray) -> Response:
        return probe(sampler(sigmas))

    plan = make_plan(schedule, respond, profile, wish, edges=(0.9,))
    assert any(plan.corrections) == corrector
    weights = position_error(plan, respond(schedule))
    predicted = np.sqrt(mean_squares(weights, profile_grams(profile)))
    for run in range(3):
        missed = simulated(sampler(schedule), plan, trajectory(run)(schedule[:-1]))
        assert np.sqrt(np.mean(missed**2)) == pytest.approx(predicted[run], rel=1e-6)


def test_predicted_error_is_the_grown_one_over_the_latent() -> None:
    plan = plan_for(Wish(2.5))
    response = euler_response(SCHEDULE)
    grams = profile_grams(PROFILE)
    gaps = GapModel(response, make_predictor("linear", response.sigmas, grams), True, grams)
    grown = growth(response.sigmas)
    worked = worked_gaps(gaps, plan.compute)
    total = sum(gap.weights * grown[t] for _, t, gap in worked)
    relative = []
    for r in range(3):
        run = np.vstack([trajectory(r)(SCHEDULE[:-1]), np.ones(200)])
        feedback = sum(grown[t] ** 2 * squares_on(gap, t, run, response)[1] for _, t, gap in worked)
        relative.append(np.sqrt(np.mean((total @ run) ** 2) + feedback) / RMS)
    assert plan.predicted_error == pytest.approx((np.median(relative), max(relative)), rel=1e-5)


def test_less_speed_and_the_corrector_lower_the_predicted_error() -> None:
    errors = [plan_for(Wish(speed)).predicted_error[0] for speed in (1.5, 2.0, 3.0, 4.0)]
    assert errors == sorted(errors)
    assert plan_for(Wish(2.0)).predicted_error[0] < plan_for(Wish(2.0, corrector=False)).predicted_error[0]
    assert plan_for(Wish(2.0)).predicted_error[0] < plan_for(Wish(2.0, mode="paper")).predicted_error[0]


# Levels, modes, determinism


@pytest.mark.parametrize("wish", [Wish(2.0, level="blocks"), Wish(2.0, mode="paper"), Wish(2.0, corrector=False)])
def test_no_correction_at_blocks_level_in_paper_mode_or_where_switched_off(wish: Wish) -> None:
    assert set(plan_for(wish).corrections) == {0.0}
    assert set(plan_for(replace(wish, level="output", mode="planned", corrector=True)).corrections) != {0.0}


def wishes() -> Sequence[Wish]:
    predictors = ("auto", "hold", "affine", "linear", "fitted")
    return [Wish(2.0, mode=mode, predictor=p) for mode in ("planned", "paper") for p in predictors]


@pytest.mark.parametrize("wish", wishes(), ids=lambda w: f"{w.mode}-{w.predictor}")
def test_same_inputs_give_the_same_plan_and_touch_no_random_state(wish: Wish) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    schedule = SCHEDULE.copy()
    assert plan_for(wish, schedule=schedule) == plan_for(wish, Profile.from_bytes(PROFILE.to_bytes()))
    assert np.array_equal(schedule, SCHEDULE)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_euler_response_is_what_the_probe_finds() -> None:
    found, known = probe(euler(SCHEDULE)), euler_response(SCHEDULE)
    np.testing.assert_allclose(found.influence, known.influence, atol=1e-14)
    np.testing.assert_array_equal(found.sigmas, known.sigmas)
