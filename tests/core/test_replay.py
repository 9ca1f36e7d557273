"""Replay on features so simple that the arithmetic is in a comment, and what it shares with the Recorder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ertacache.erta.notes import note
from ertacache.erta.offload import put_aside
from ertacache.erta.plan import Part, Plan, full_plan
from ertacache.erta.planner import euler_response, solve
from ertacache.erta.problem import Problem
from ertacache.erta.recorder import Recorder
from ertacache.erta.replay import TOLERANCE, Replay
from ertacache.erta.settings import Settings

KEY = "guided"


def plan_of(
    compute: str,
    coefficients: dict[int, tuple[float, ...]],
    corrections: dict[int, float] | None = None,
    offsets: dict[int, float] | None = None,
    resets: tuple[int, ...] = (0,),
    residual_limits: dict[int, float] | None = None,
) -> Plan:
    """compute: "1" for each computed model call, "0" for each reused one; the rest by model call."""
    count = len(compute)
    return Plan(
        settings=Settings(),
        sigmas=tuple(float(s) for s in np.linspace(1, 0.1, count)),
        compute=tuple(c == "1" for c in compute),
        coefficients=tuple(coefficients.get(i, ()) for i in range(count)),
        offsets=tuple((offsets or {}).get(i, 0.0) for i in range(count)),
        corrections=tuple((corrections or {}).get(i, 0.0) for i in range(count)),
        residual_limits=tuple((residual_limits or {}).get(i, 0.0) for i in range(count)),
        resets=resets,
    )


def feature(value: float, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, value, dtype=dtype)


def run(replay: Replay, values: list[float], key: str = KEY) -> list[tuple[str, float]]:
    """Each model call's truth is ``values[i]``; what the sampler is handed, and whether that was computed."""
    handed = []
    for i, value in enumerate(values):
        predicted = replay.predict(i, key)
        kind = "computed" if predicted is None else "reused"
        handed.append((kind, float((replay.observe(i, key, feature(value)) if predicted is None else predicted)[0])))
    return handed


# The arithmetic


def test_reused_call_gets_the_line_through_the_two_newest_computed_ones() -> None:
    # Truth 10, 12, 15, 19. Coefficients 2 and -1 draw the line on by one step: 2 * 12 - 10 = 14, not 15;
    # held it would be 12.
    plan = plan_of("1101", {2: (2.0, -1.0)})
    found = run(Replay(plan), [10, 12, 15, 19])
    assert found == [("computed", 10), ("computed", 12), ("reused", 14), ("computed", 19)]


def test_offset_is_added_and_one_coefficient_scales_the_newest() -> None:
    # Truth 10 20 30: model call 2 is 0.5 * 20 + 0.15 * 20 = 13, offsets being in units of the newest; call 1 is 10 + 0.
    plan = plan_of("101", {1: (1.0,)})
    assert run(Replay(plan), [10, 20, 30])[1] == ("reused", 10)
    plan = plan_of("110", {2: (0.5,)}, offsets={2: 0.15})
    assert run(Replay(plan), [10, 20, 30])[2] == ("reused", 13)


def test_three_terms_use_the_three_newest_in_their_order() -> None:
    # 100 * 3 + 10 * 2 + 1 * 1 = 321
    plan = plan_of("1110", {3: (100.0, 10.0, 1.0)})
    assert run(Replay(plan), [1, 2, 3, 4])[3] == ("reused", 321)


def test_correction_hands_on_a_share_of_the_residual_on_top() -> None:
    # Truth 10, 12, -, 19. At 3 the line from 0 and 1 says 3 * 12 - 2 * 10 = 16, a residual of 3; half of it more
    # is handed on: 19 + 0.5 * 3 = 20.5. What is kept for later is the truth: 4 is held at 19, not at 20.5.
    plan = plan_of("11010", {2: (2.0, -1.0), 3: (3.0, -2.0), 4: (1.0,)}, corrections={3: 0.5})
    found = run(Replay(plan), [10, 12, 15, 19, 24])
    assert found[3] == ("computed", 20.5)
    assert found[4] == ("reused", 19)


def test_reset_makes_the_next_reuse_start_from_there() -> None:
    # After the reset at 3 only its own feature is known: held at 40, though 10, 20 and 30 were computed before.
    plan = plan_of("11110", {4: (1.0,)}, resets=(0, 3))
    assert run(Replay(plan), [10, 20, 30, 40, 50])[4] == ("reused", 40)


# What does not fit is computed (docs/compatibility/traps.md, T3 and T4)


def test_plan_that_begins_with_reuse_computes_instead() -> None:
    replay = Replay(plan_of("0010", {0: (1.0,), 1: (1.0,), 3: (1.0,)}))
    found = run(replay, [10, 20, 30, 40])
    assert [kind for kind, _ in found] == ["computed", "computed", "computed", "reused"]
    assert found[3] == ("reused", 30)


def test_missing_entry_makes_the_call_computed_never_zero() -> None:
    """A run that starts late: model calls 0 and 1 never came, so 2 cannot be predicted from them."""
    replay = Replay(plan_of("11011010", {2: (2.0, -1.0), 5: (2.0, -1.0), 7: (2.0, -1.0)}))
    assert replay.predict(2, KEY) is None
    replay.observe(2, KEY, feature(15))
    # The plan's own history for 5 is (4, 3): there again.
    replay.observe(3, KEY, feature(19))
    replay.observe(4, KEY, feature(24))
    predicted = replay.predict(5, KEY)
    assert predicted is not None
    assert float(predicted[0]) == 2 * 24 - 19


def test_one_missing_term_of_two_is_missing() -> None:
    replay = Replay(plan_of("110", {2: (2.0, -1.0)}))
    replay.observe(1, KEY, feature(12))
    assert replay.predict(2, KEY) is None


def test_step_computed_against_the_plan_is_not_mistaken_for_a_planned_one() -> None:
    """Model call 2 was to be reused but was computed (the adapter may refuse a prediction): 3's history is (1, 0)."""
    replay = Replay(plan_of("110011", {2: (2.0, -1.0), 3: (3.0, -2.0)}))
    for i, value in enumerate([10, 12, 15]):
        replay.observe(i, KEY, feature(value))
    assert replay.predict(3, KEY) is None


def test_changed_shape_is_computed_until_the_history_is_back() -> None:
    plan = plan_of("11011010", {2: (2.0, -1.0), 5: (2.0, -1.0), 7: (1.0,)}, corrections={3: 0.5})
    plan = replace(plan, coefficients=(*plan.coefficients[:3], (3.0, -2.0), *plan.coefficients[4:]))
    replay = Replay(plan)
    replay.observe(0, KEY, feature(10))
    replay.observe(1, KEY, feature(12))
    larger = feature(20, (3,))
    assert replay.observe(3, KEY, larger) is larger, "a prediction of another shape corrects nothing"
    replay.observe(4, KEY, feature(25, (3,)))
    predicted = replay.predict(5, KEY)
    assert predicted is not None
    assert predicted.shape == (3,)
    assert float(predicted[0]) == 2 * 25 - 20
    # Back to the first shape at 6: 7 is held from 6, of that shape.
    replay.observe(6, KEY, feature(30))
    held = replay.predict(7, KEY)
    assert held is not None
    assert held.shape == (2,)


def test_history_of_two_shapes_is_no_history() -> None:
    """The one-element feature would even broadcast; 3 was computed at another shape than 1, so 4 is computed too."""
    replay = Replay(plan_of("110100", {2: (2.0, -1.0), 4: (2.0, -1.0), 5: (2.0, -1.0)}))
    replay.observe(0, KEY, feature(10))
    replay.observe(1, KEY, feature(12))
    replay.observe(3, KEY, feature(20, (1,)))
    assert replay.predict(4, KEY) is None


def test_calls_beyond_the_plan_are_computed() -> None:
    replay = Replay(plan_of("10", {1: (1.0,)}))
    replay.observe(0, KEY, feature(10))
    assert replay.predict(2, KEY) is None
    last = feature(5)
    assert replay.observe(2, KEY, last) is last


def test_streams_do_not_see_each_other() -> None:
    replay = Replay(plan_of("110", {2: (2.0, -1.0)}))
    for i, (cond, uncond) in enumerate([(10, 1), (12, 3)]):
        replay.observe(i, "cond", feature(cond))
        replay.observe(i, "uncond", feature(uncond))
    assert [float(replay.predict(2, key)[0]) for key in ("cond", "uncond")] == [14, 5]  # type: ignore[index]
    assert replay.predict(2, "a stream that appears late") is None


# A run unlike the recorded ones is computed more


# Every other model call is held; each computed one shows how far that was off.
HELD = plan_of("1010101010", dict.fromkeys(range(1, 10), (1.0,)), residual_limits=dict.fromkeys(range(2, 10, 2), 0.1))


def kinds(replay: Replay, values: list[float]) -> str:
    """ "1" for each model call that was computed."""
    return "".join("1" if kind == "computed" else "0" for kind, _ in run(replay, values))


def jumping(at: int, by: float) -> list[float]:
    """10 throughout, but from model call ``at`` on so much more that the residual there is ``by`` of the feature."""
    return [10.0] * at + [10.0 / (1.0 - by)] * (10 - at)


@pytest.mark.parametrize("times", [0.5, 0.99, 1.01, 3.0])
def test_interval_after_the_next_is_computed_where_a_residual_was_above_its_limit(times: float) -> None:
    """The residual at 4 is read when 6 has its own, so 7 is the first model call that can be computed for it; at 6
    all is well again, so 9 is reused."""
    replay = Replay(HELD)
    found = kinds(replay, jumping(4, 0.1 * TOLERANCE * times))
    if times < 1.0:
        assert found == "1010101010"
        assert replay.notes == ()
    else:
        assert found == "1010101110"
        assert replay.notes == (note("unlike_profile", call=7, count=1),)


def test_run_that_stays_unlike_is_computed_from_then_on_and_the_first_is_named() -> None:
    replay = Replay(HELD)
    assert kinds(replay, [10.0 * 2**i for i in range(10)]) == "1010111111"
    assert replay.notes == (note("unlike_profile", call=5, count=3),)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_run_that_is_no_number_is_unlike(bad: float) -> None:
    assert kinds(Replay(HELD), [10, 10, bad, 10, 10, 10, 10, 10, 10, 10])[5] == "1"


@pytest.mark.parametrize("unlike", ["picture", "sound", ""])
def test_a_part_of_the_latent_is_checked_by_limits_of_its_own(unlike: str) -> None:
    """Limit 0.1, of the sound a tenth: a jump of 5 % from 10 on is much for the sound, nothing for the picture."""
    limits = HELD.residual_limits
    plan = replace(HELD, parts=tuple(Part((0.1, 0.1), tuple(k * limit for limit in limits)) for k in (1.0, 0.1)))
    jumps = {"picture": 1.5 if unlike == "picture" else 1.05, "sound": 1.05 if unlike == "sound" else 1.0}
    replay, kinds = Replay(plan), ""
    for i in range(10):
        predicted = {key: replay.predict(i, key) for key in jumps}
        kinds += "".join("1" if found is None else "0" for found in predicted.values())
        for key, found in predicted.items():
            if found is None:
                replay.observe(i, key, feature(10.0 * jumps[key] ** (i >= 2)))
    # Seen at call 2, read at call 4: call 5 is computed, of both parts.
    on_top = [note("unlike_profile", call=5, count=1)] if unlike else []
    assert kinds == ("1100110011" + ("11" if unlike else "00") + "11001100")
    assert list(replay.notes) == on_top


def test_plan_without_residual_limits_checks_nothing() -> None:
    plan = replace(HELD, residual_limits=(0.0,) * 10)
    assert kinds(Replay(plan), [10.0 * 2**i for i in range(10)]) == "1010101010"


def test_what_is_computed_on_top_enters_no_prediction_and_leaves_nothing_to_correct() -> None:
    """With a correction at every closing model call: behind a skipped interval that was computed there is nothing to
    make up for.
    """
    plan = replace(HELD, corrections=tuple(0.5 if i in (2, 4, 6, 8) else 0.0 for i in range(10)))
    values = [10, 10, 20, 20, 40, 80, 160, 160, 160, 170]
    replay = Replay(plan)
    found = run(replay, [float(v) for v in values])
    # 20 was held at 10, so 4 hands on 40 + 0.5 * (40 - 20).
    assert found[4] == ("computed", 50)
    # The residual at 2 was a half: 5 is computed, and 6 is compared with 4, of the plan, but not corrected.
    assert found[5:7] == [("computed", 80), ("computed", 160)]
    # The residual at 4 was a half as well, that at 6 three quarters; 8 was hit exactly by holding 6.
    assert found[7:] == [("computed", 160), ("computed", 160), ("computed", 170)]
    resumed = Replay(plan)
    handed = run(resumed, [10.0, 10.0, 20.0, 20.0, 20.0, 70.0, 20.0, 70.0, 30.0, 70.0])
    assert handed[5] == ("computed", 70)
    assert handed[6] == ("computed", 20), "5 was computed"
    assert handed[7] == ("reused", 20), "from 6, not from 5"
    assert handed[8] == ("computed", 30 + 0.5 * 10)


def test_check_reads_no_number_before_the_next_one_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one waits for the device; a whole skipped interval later it has long arrived."""
    from ertacache.erta import replay as module

    read: list[int] = []
    value = module.Scalar.value

    def counted(scalar: Any) -> float:
        read.append(now)
        return value(scalar)

    monkeypatch.setattr(module.Scalar, "value", counted)
    replay = Replay(HELD)
    for now in range(10):
        if replay.predict(now, KEY) is None:
            replay.observe(now, KEY, feature(10.0))
    assert read == [4, 6, 8]


def test_check_that_finds_nothing_changes_no_bit() -> None:
    schedule = np.linspace(1, 0, 13)
    plan = solve(Problem(schedule, euler_response, None), Settings(2.0, check=False))
    checked = replace(
        plan, residual_limits=tuple(1e6 if any(c) and i else 0.0 for i, c in enumerate(plan.coefficients))
    )
    features = torch.randn(12, 50, generator=torch.Generator().manual_seed(4))

    def handed(plan: Plan) -> list[Tensor]:
        replay, out = Replay(plan), []
        for i in range(12):
            predicted = replay.predict(i, KEY)
            out.append(replay.observe(i, KEY, features[i]) if predicted is None else predicted)
        return out

    assert any(checked.residual_limits[i] and plan.compute[i] for i in range(12))
    assert all(torch.equal(a, b) for a, b in zip(handed(plan), handed(checked), strict=True))


# Tensors


def untouched(tensors: list[Tensor], before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_the_caller_are_never_written_into(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(3, 4, generator=generator).to(dtype) for _ in range(6)]
    before = [f.clone() for f in features]
    plan = plan_of("110110", {2: (2.0, -1.0), 3: (3.0, -2.0), 5: (1.0,)}, {3: 0.7}, {2: 0.1, 5: 0.2})
    replay = Replay(plan)
    for i, handed in enumerate(features):
        predicted = replay.predict(i, KEY)
        if predicted is None:
            replay.observe(i, KEY, handed)
        else:
            predicted.fill_(float("nan"))  # what is handed out is the caller's own
    assert untouched(features, before)
    again = replay.predict(5, KEY)
    assert again is not None
    assert not again.isnan().any()


def test_uncorrected_feature_is_handed_back_as_the_same_object() -> None:
    replay = Replay(plan_of("11011", {2: (2.0, -1.0), 3: (3.0, -2.0)}, {3: 0.5}))
    features = [feature(v) for v in (10, 12, 15, 19, 24)]
    assert replay.observe(0, KEY, features[0]) is features[0]
    assert replay.observe(1, KEY, features[1]) is features[1]
    assert replay.predict(2, KEY) is not None
    assert replay.observe(3, KEY, features[3]) is not features[3]
    assert replay.observe(4, KEY, features[4]) is features[4]


def test_reuse_is_accumulated_in_float32_from_bfloat16_features() -> None:
    """2.6 * 1.0078125 - 1.6 * 1 in bfloat16 steps of 1/128 would be 1.015625 or 1.0234375; exactly it is 1.0203125."""
    replay = Replay(plan_of("110", {2: (2.6, -1.6)}))
    replay.observe(0, KEY, feature(1.0, dtype=torch.bfloat16))
    replay.observe(1, KEY, feature(1.0078125, dtype=torch.bfloat16))
    predicted = replay.predict(2, KEY)
    assert predicted is not None
    assert predicted.dtype == torch.float32
    assert float(predicted[0]) == pytest.approx(1.0203125, abs=2e-7)


def test_cache_holds_no_more_features_than_the_plan_needs() -> None:
    shape, size = (1000,), 4000
    depths = {"held": ({3: (1.0,), 4: (1.0,)}, 1), "two terms": ({3: (1.0,), 4: (2.0, -1.0)}, 2)}
    for name, (coefficients, depth) in depths.items():
        replay = Replay(plan_of("111001", coefficients))
        for i in (0, 1, 2, 5):
            replay.observe(i, KEY, feature(i, shape))
        assert replay.cache_bytes == depth * size, name
    replay = Replay(plan_of("111", {}))
    replay.observe(0, KEY, feature(1, shape))
    assert replay.cache_bytes == 0, "nothing is reused, so nothing is kept"


# One battery for both observers


def observers() -> dict[str, Any]:
    sigmas = np.linspace(1, 0.1, 6)
    return {
        "recorder": lambda: Recorder(sigmas),
        "replay of a full plan": lambda: Replay(full_plan(sigmas, Settings(1.0))),
        "replay of settings for speed 1": lambda: Replay(
            solve(Problem(np.append(sigmas, 0), euler_response, None), Settings(1.0))
        ),
    }


@pytest.mark.parametrize("make", observers().values(), ids=observers().keys())
def test_observer_that_reuses_nothing_is_invisible(make: Any) -> None:
    observer, generator = make(), torch.Generator().manual_seed(1)
    state = torch.random.get_rng_state()
    for i in range(7):  # one more than foreseen
        for key in ("cond", "uncond"):
            handed = torch.randn(2, 3, generator=generator)
            before = handed.clone()
            assert observer.predict(i, key) is None
            assert observer.observe(i, key, handed) is handed
            assert torch.equal(handed, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("make", [lambda: Recorder(np.linspace(1, 0.1, 6)), lambda: Replay(plan_of("10", {1: (1.0,)}))])
def test_close_lets_go_of_every_feature(make: Any) -> None:
    import weakref

    observer = make()
    handed = feature(1.0)
    kept = weakref.ref(handed)
    observer.observe(0, KEY, handed)
    assert observer.cache_bytes > 0
    observer.close()
    del handed
    assert kept() is None
    assert observer.predict(1, KEY) is None
    observer.close()  # a second time does no harm


@pytest.mark.parametrize("make", [lambda: Recorder(np.linspace(1, 0.1, 6)), lambda: Replay(plan_of("10", {1: (1.0,)}))])
def test_two_observers_share_nothing(make: Any) -> None:
    one, other = make(), make()
    one.observe(0, KEY, feature(10))
    assert other.cache_bytes == 0
    assert other.predict(1, KEY) is None


def test_same_run_twice_is_bit_identical() -> None:
    schedule = np.linspace(1, 0, 13)
    plan = solve(Problem(schedule, euler_response, None), Settings(2.0))
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(12, 50, generator=generator)

    def handed() -> list[Tensor]:
        replay, out = Replay(plan), []
        for i in range(12):
            predicted = replay.predict(i, KEY)
            out.append(replay.observe(i, KEY, features[i]) if predicted is None else predicted)
        return out

    assert all(torch.equal(a, b) for a, b in zip(handed(), handed(), strict=True))
    assert any(plan.corrections)


def test_plan_of_a_line_in_sigma_reuses_it_without_error() -> None:
    """Features linear in sigma: what is reused is right, and no correction changes anything."""
    schedule = np.linspace(1, 0, 13)
    plan = solve(Problem(schedule, euler_response, None), Settings(2.0, predictor="linear"))
    a, b = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    replay = Replay(plan)
    reused = 0
    for i, sigma in enumerate(schedule[:-1]):
        truth, predicted = a + b * sigma, replay.predict(i, KEY)
        reused += predicted is not None
        used = replay.observe(i, KEY, truth) if predicted is None else predicted
        if i > 2:  # the first skipped interval has one node only and is held
            torch.testing.assert_close(used, truth, rtol=1e-7, atol=1e-7)
    assert reused == 6


# Kept in main memory


PLAN_OF_TWO = plan_of("1101001", {2: (1.5, -0.5), 4: (1.25, -0.25), 5: (1.5, -0.5)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_every_prediction_is_the_same_to_the_bit(dtype: torch.dtype) -> None:
    """Through a change of shape in between, behind which there is another history."""
    generator = torch.Generator().manual_seed(0)
    truth = [torch.randn((2, 5) if i < 4 else (3, 5), generator=generator).to(dtype) for i in range(7)]
    truth[0] = truth[1] + 0.5
    found = []
    for offload in (False, True):
        replay = Replay(PLAN_OF_TWO, offload)
        predictions: list[Tensor | None] = []
        for i, feature_now in enumerate(truth):
            predictions.append(replay.predict(i, KEY))
            if predictions[-1] is None:
                replay.observe(i, KEY, feature_now)
        found.append((predictions, replay.cache_bytes, replay.notes))
    (here, held, notes), (apart, held_apart, notes_apart) = found
    assert [p is None for p in here] == [p is None for p in apart]
    assert any(p is not None for p in here)
    assert all(p is None or torch.equal(p, q) for p, q in zip(here, apart, strict=True))
    assert (held, notes) == (held_apart, notes_apart)


def test_offloaded_features_are_copies_and_take_the_room_of_those_let_go() -> None:
    plan = plan_of("11110", {4: (1.5, -0.5)})
    replay = Replay(plan, offload=True)
    features = [feature(float(i)) for i in range(4)]
    rooms = []
    for i, one in enumerate(features):
        assert replay.observe(i, KEY, one) is one
        rooms.append({kept.data_ptr() for _, kept in replay._past[KEY]})
        one.fill_(1e9)  # what the model's own tensor becomes
    assert rooms[1] == rooms[2] == rooms[3] and len(rooms[3]) == 2
    predicted = replay.predict(4, KEY)
    assert predicted is not None and torch.equal(predicted, feature(1.5 * 3 - 0.5 * 2))


def test_a_room_that_does_not_fit_is_not_used() -> None:
    room = put_aside(torch.ones(3))
    assert put_aside(torch.zeros(3), room) is room and torch.equal(room, torch.zeros(3))
    for other in (torch.zeros(4), torch.zeros(3, dtype=torch.float64)):
        fitting = put_aside(other, room)
        assert fitting is not room and fitting.shape == other.shape and fitting.dtype == other.dtype


def test_without_pinned_memory_it_is_put_into_pageable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems limit how much may be pinned."""
    empty, refused = torch.empty, []

    def limited(*size: Any, pin_memory: bool | None = None, **kwargs: Any) -> Tensor:
        if pin_memory is not None:
            refused.append(pin_memory)
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **kwargs)

    monkeypatch.setattr(torch, "empty", limited)
    assert torch.equal(put_aside(torch.ones(3)), torch.ones(3))
    assert refused
