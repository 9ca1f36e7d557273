"""Plan and Settings: what they accept, and the JSON that travels in workflows from strangers."""

from __future__ import annotations

import copy
import itertools
import json
import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ertacache.erta.notes import note
from ertacache.erta.plan import Plan, drawn, full_plan, rounded, slopes_of
from ertacache.erta.plan_file import MAX_CHARACTERS, PlanError, plan_from_json, plan_to_json
from ertacache.erta.planner import euler_response, solve
from ertacache.erta.predictors import PREDICTORS
from ertacache.erta.problem import Problem
from ertacache.erta.profile import Measured, Profile
from ertacache.erta.replay import Replay
from ertacache.erta.settings import Settings
from ertacache.tests.core.made import flow, recorded

MEASURED = Measured("WAN21", 1, "0" * 64, "", "flow", 8.0, "euler", "simple", 8, 6.0, (1, 4), "output", "1", "1")


SCHEDULE = flow(14)


PROFILE = recorded(MEASURED, SCHEDULE[:-1], runs=3)


def plan_for(settings: Settings, edges: tuple[float, ...] = (), profile: Profile | None = PROFILE) -> Plan:
    return solve(Problem(SCHEDULE, euler_response, profile, edges), settings)


# Equivalences


@pytest.mark.parametrize("mode", ["planned", "paper"])
@pytest.mark.parametrize("predictor", ["auto", "hold", "affine", "linear"])
@pytest.mark.parametrize("level", ["output", "blocks"])
@pytest.mark.parametrize("timesteps", [False, True], ids=["nominal", "adjusted"])
def test_json_gives_exactly_the_same_plan_back(mode: str, predictor: str, level: str, timesteps: bool) -> None:
    settings = Settings(2.3, mode=mode, predictor=predictor, level=level, timesteps=timesteps)
    for profile, edges in itertools.product((PROFILE, None), ((), (0.83,))):
        plan = replace(plan_for(settings, edges, profile), model="ab" * 32)
        text = plan_to_json(plan)
        assert plan_from_json(text) == plan
        assert plan_to_json(plan_from_json(text)) == text


@pytest.mark.parametrize(
    "settings",
    [
        Settings(1.0),
        Settings(2),
        Settings(1.0, mode="paper", threshold=0.123456789012345),
        Settings(1.0, preset=(0, 3, 7), preset_steps=8),
        Settings(3.0, protect_start=3, protect_end=2, corrector=False),
    ],
)
def test_json_keeps_every_setting(settings: Settings) -> None:
    plan = plan_for(settings)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_from_json(plan_to_json(plan)).settings == settings


def test_json_of_50_calls_is_compact() -> None:
    plan = solve(Problem(flow(50), euler_response, None), Settings(2.0))
    assert len(plan_to_json(plan)) < 4096


def test_plan_of_the_most_calls_fits_into_the_limit() -> None:
    sigmas = np.linspace(1, 0.001, 1000)
    plan = solve(Problem(np.append(sigmas, 0.0), euler_response, None), Settings(2.0))
    text = plan_to_json(plan)
    assert len(text) < MAX_CHARACTERS
    assert plan_from_json(text) == plan


def test_notes_do_not_travel_and_do_not_distinguish_plans() -> None:
    plan = full_plan(SCHEDULE[:-1], Settings(), note("held"))
    assert plan.notes == (note("held"),)
    assert plan_from_json(plan_to_json(plan)).notes == ()
    assert plan_from_json(plan_to_json(plan)) == plan == replace(plan, notes=())
    assert plan != replace(plan, compute=(True,) * 13 + (False,))


def test_rounded_keeps_more_than_float32_and_survives_json() -> None:
    values = np.random.default_rng(1).normal(size=1000) * 10.0 ** np.arange(-20, 20).repeat(25)
    kept = np.array(rounded(values))
    np.testing.assert_allclose(kept, values, rtol=5e-9)
    assert json.loads(json.dumps(kept.tolist())) == kept.tolist()
    assert rounded(kept) == tuple(kept)


# Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("speed", 0.9),
        ("speed", 101.0),
        ("speed", float("nan")),
        ("mode", "fast"),
        ("level", "attention"),
        ("predictor", "cubic"),
        ("predictor", "fitted"),  # what auto becomes, not a choice
        ("threshold", -0.1),
        ("threshold", float("inf")),
        ("protect_start", -1),
        ("protect_end", 1001),
        ("protect_end", -1),
        ("preset_steps", 1001),
        ("preset", (0, 3)),
    ],
)
def test_settings_refuse_a_value_and_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} is .*it must be"):
        Settings(**{field: value})


CHOICES = [
    # settings, measured, noisy, (predictor, whether skipped intervals are corrected)
    (Settings(), True, False, ("fitted", True)),
    (Settings(), False, False, ("fitted", True)),
    (Settings(), True, True, ("hold", True)),
    (Settings(), False, True, ("hold", True)),
    (Settings(corrector=False), True, False, ("fitted", False)),
    (Settings(level="blocks"), True, False, ("fitted", False)),
    (Settings(level="blocks"), False, True, ("hold", False)),
    (Settings(predictor="linear"), False, True, ("linear", True)),
    (Settings(predictor="hold"), True, False, ("hold", True)),
    (Settings(predictor="hold", level="blocks"), True, False, ("hold", False)),
    (Settings(mode="paper"), True, False, ("affine", False)),
    (Settings(mode="paper"), False, False, ("hold", False)),
    (Settings(mode="paper"), True, True, ("affine", False)),
    (Settings(mode="paper", predictor="linear"), False, True, ("linear", False)),
]


@pytest.mark.parametrize(("settings", "measured", "noisy", "expected"), CHOICES)
def test_settings_choose_predictor_and_corrector_by_mode_level_profile_and_sampler(
    settings: Settings, measured: bool, noisy: bool, expected: tuple[str, bool]
) -> None:
    predictor, corrector = settings.method(measured, noisy)
    assert (predictor, corrector) == (PREDICTORS[expected[0]], expected[1])


# Refusals, one by one

PLAN = replace(plan_for(Settings(2.5, timesteps=True)), model="ab" * 32)
CONTENT: dict[str, Any] = json.loads(plan_to_json(PLAN))
REUSED = PLAN.compute.index(False)
CORRECTED = next(i for i, u in enumerate(PLAN.corrections) if u)
CHECKED = next(i for i, limit in enumerate(PLAN.residual_limits) if limit)


def changed(**fields: Any) -> str:
    return json.dumps({**copy.deepcopy(CONTENT), **fields})


def with_item(name: str, index: int, value: Any) -> str:
    items = copy.deepcopy(CONTENT[name])
    items[index] = value
    return changed(**{name: items})


def part_of(**fields: Any) -> dict[str, Any]:
    return {"predicted_error": [0.1, 0.1], "residual_limits": CONTENT["residual_limits"], **fields}


REFUSED = {
    "no text": ("", "is not JSON"),
    "half a plan": (plan_to_json(PLAN)[:-20], "is not JSON"),
    "a list": ("[]", "no JSON object"),
    "a number": ("17", "no JSON object"),
    "nested deeply": ("[" * 100_000, "is not JSON"),
    "nested deeply in a field": (plan_to_json(PLAN)[:-1] + ',"x":' + '{"a":' * 30_000, "is not JSON"),
    "too long": (" " * (MAX_CHARACTERS + 1), "longer than"),
    "another format": (changed(format="ertacache.profile"), "format"),
    "an older version": (changed(version=2), "version: must be 3: it is 2, made by another version"),
    "a newer version": (changed(version=4), "version: must be 3: it is 4"),
    "a field twice": (plan_to_json(PLAN)[:-1] + ',"sigmas":[]}', "occurs twice"),
    "a field twice inside": (plan_to_json(PLAN).replace('{"speed":', '{"speed":2.0,"speed":', 1), "occurs twice"),
    "an unknown field": (changed(command="rm"), "fields.*command"),
    "reuse at the start": (changed(compute="0" * 14), "compute"),
    "compute as a list": (changed(compute=[1] * 14), "compute"),
    "compute of other digits": (changed(compute="1" * 13 + "2"), "compute"),
    "nothing": (changed(compute=""), "compute"),
    "more than 1000": (changed(compute="1" * 1001), "compute"),
    "compute shorter than the rest": (changed(compute=CONTENT["compute"][:-1]), "length"),
    "sigmas too few": (changed(sigmas=CONTENT["sigmas"][:-1]), "sigmas"),
    "a negative sigma": (with_item("sigmas", 3, -0.5), "sigmas"),
    "sigma zero": (with_item("sigmas", 3, 0), "sigmas"),
    "NaN": (with_item("sigmas", 3, float("nan")), "NaN is no JSON"),
    "infinity": (with_item("shares", 3, float("inf")), "Infinity is no JSON"),
    "minus infinity": (with_item("corrections", 3, -float("inf")), "-Infinity is no JSON"),
    "a huge whole number": (with_item("sigmas", 3, 10**400), "sigmas"),
    "a text for a number": (with_item("sigmas", 3, "0.5"), "sigmas"),
    "truth for a number": (with_item("shares", 3, True), "shares"),
    "nothing for a number": (with_item("corrections", 3, None), "corrections"),
    "a number for a list": (changed(offsets=0.0), "offsets"),
    "a slope that is too steep": (with_item("shares", REUSED, 1.6), "shares: holds a slope above 1.5"),
    "a slope that is too flat": (with_item("shares", REUSED, -0.1), "shares: holds a value outside 0 to"),
    "an offset on a line": (changed(offsets=[0.1] * 14), "offsets"),
    "coefficients": (changed(coefficients=[[1.0]] * 14), "fields.*coefficients"),
    "a slope that is a list": (with_item("shares", REUSED, [1.0]), "shares"),
    "too few factors": (changed(factors=CONTENT["factors"][:-1]), "factors"),
    "a factor that stalls": (with_item("factors", 3, 0.1), "factors: holds a value outside 0.5 to 1"),
    "one nominal sigma": (changed(nominal=[1.0], factors=[]), "nominal"),
    "edges that are no list": (changed(edges=0.5), "edges"),
    "an impulse of four": (changed(impulse=[1.0] * 4), "impulse"),
    "guidance that is text": (changed(guidance="6"), "guidance"),
    "too few limits": (changed(residual_limits=CONTENT["residual_limits"][:-1]), "field residual_limits: .*length"),
    "too many limits": (changed(residual_limits=[*CONTENT["residual_limits"], 0.0]), "field residual_limits: .*length"),
    "a negative limit": (with_item("residual_limits", CHECKED, -0.1), "field residual_limits: .*outside 0 to"),
    "a limit that is NaN": (with_item("residual_limits", CHECKED, float("nan")), "NaN is no JSON"),
    "an infinite limit": (with_item("residual_limits", CHECKED, float("inf")), "Infinity is no JSON"),
    "a huge limit": (with_item("residual_limits", CHECKED, 1e7), "field residual_limits: .*outside 0 to"),
    "a text for a limit": (with_item("residual_limits", CHECKED, "0.1"), "field residual_limits: .*outside 0 to"),
    "truth for a limit": (with_item("residual_limits", CHECKED, True), "field residual_limits: .*outside 0 to"),
    "nothing for a limit": (with_item("residual_limits", CHECKED, None), "field residual_limits: .*outside 0 to"),
    "a list for a limit": (with_item("residual_limits", CHECKED, [0.1]), "field residual_limits: .*outside 0 to"),
    "a number for the limits": (changed(residual_limits=0.1), "field residual_limits"),
    "an object for the limits": (changed(residual_limits={"0": 0.1}), "field residual_limits"),
    "a limit at the start": (with_item("residual_limits", 0, 0.1), "call 0"),
    "a limit of a reused call": (with_item("residual_limits", REUSED, 0.1), f"call {REUSED}"),
    "the check switched off behind the settings' back": (with_item("residual_limits", CHECKED, 0.0), f"call {CHECKED}"),
    "a number for the parts": (changed(parts=1), "field parts: must be a list of at most 8"),
    "more parts than any model has": (changed(parts=[[0.1, 0.1, 1.0]] * 9), "field parts: must be a list of at most 8"),
    "a part that is a number": (changed(parts=[0.1]), "field parts: must hold parts"),
    "half a part": (changed(parts=[{"predicted_error": [0.1, 0.1]}]), "field parts: must hold parts"),
    "a part of text": (
        changed(parts=[part_of(predicted_error=["0.1", 0.1])]),
        "field predicted_error: .*outside 0 to 1",
    ),
    "an error of a part above 1": (changed(parts=[part_of(predicted_error=[0.1, 1.1])]), "field predicted_error"),
    "too few limits of a part": (changed(parts=[part_of(residual_limits=[0.1])]), "field residual_limits: .*length"),
    "no check of a part": (changed(parts=[part_of(residual_limits=[0.0] * 14)]), f"of call {CHECKED} is"),
    "a limit of many features": (with_item("residual_limits", CHECKED, 4.1), "outside 0 to 4"),
    "a correction of a reused call": (with_item("corrections", REUSED, 0.1), f"call {REUSED}"),
    "nominal sigmas that rise": (with_item("nominal", 3, 0.999), "nominal: must fall"),
    "nominal sigmas that stand": (with_item("nominal", 3, CONTENT["nominal"][2]), "nominal: must fall"),
    "history resets without 0": (changed(resets=[5]), "resets"),
    "history resets unordered": (changed(resets=[0, 9, 5]), "resets"),
    "history resets twice": (changed(resets=[0, 5, 5]), "resets"),
    "a fractional reset": (changed(resets=[0, 5.5]), "resets"),
    "no history resets": (changed(resets=[]), "resets"),
    "a reset beyond the end": (changed(resets=[0, 14]), "resets"),
    "a reset inside a skipped interval": (changed(resets=[0, REUSED]), f"call {REUSED}"),
    "one predicted error": (changed(predicted_error=[0.1]), "predicted_error"),
    "a negative error": (changed(predicted_error=[-0.1, 0.1]), "predicted_error"),
    "a path for a digest": (changed(profile="../../etc/passwd"), "profile"),
    "a digest with a line break": (changed(model="0" * 64 + "\n"), "model"),
    "a digest that is no text": (changed(model=0), "model"),
    "settings is no object": (changed(settings=[2.0]), "settings"),
    "settings with another field": (changed(settings={**CONTENT["settings"], "x": 1}), "settings"),
    "settings speed a text": (changed(settings={**CONTENT["settings"], "speed": "2"}), "settings: speed"),
    "settings speed true": (changed(settings={**CONTENT["settings"], "speed": True}), "settings: speed"),
    "settings speed too high": (changed(settings={**CONTENT["settings"], "speed": 1e9}), "settings: speed"),
    "settings protect_end fractional": (
        changed(settings={**CONTENT["settings"], "protect_end": 1.5}),
        "settings: protect_end",
    ),
    "settings preset of lists": (
        changed(settings={**CONTENT["settings"], "preset": [[0]], "preset_steps": 3}),
        "settings: preset",
    ),
    "settings mode unhashable": (changed(settings={**CONTENT["settings"], "mode": {}}), "settings: mode"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_plan_from_json_refuses(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        plan_from_json(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("missing", sorted(CONTENT))
def test_plan_from_json_refuses_a_missing_field(missing: str) -> None:
    with pytest.raises(PlanError):
        plan_from_json(json.dumps({name: value for name, value in CONTENT.items() if name != missing}))


def test_a_plan_without_the_check_has_no_residual_limits() -> None:
    unchecked = {**CONTENT["settings"], "check": False}
    plan = plan_from_json(changed(residual_limits=[0.0] * 14, settings=unchecked))
    assert replace(plan, residual_limits=PLAN.residual_limits, settings=PLAN.settings) == PLAN
    with pytest.raises(PlanError, match="residual_limits"):
        plan_from_json(changed(settings=unchecked))


@pytest.mark.parametrize(("scale", "offset"), [(2.1, 0.0), (-0.1, 0.0), (1.0, 1.1), (1.0, -1.1)])
def test_an_affine_plan_scales_and_shifts_no_further_than_a_feature_does(scale: float, offset: float) -> None:
    plan = plan_for(Settings(2.5, mode="paper"))
    content = json.loads(plan_to_json(plan))
    at = plan.compute.index(False)
    content["shares"][at] = scale
    content["offsets"] = content["offsets"] or [0.0] * 14
    content["offsets"][at] = offset
    with pytest.raises(PlanError, match=r"shares|offsets"):
        plan_from_json(json.dumps(content))


def test_residual_limits_are_kept_to_the_digit() -> None:
    assert any(0.0 < limit < 1.0 for limit in PLAN.residual_limits)
    assert plan_from_json(plan_to_json(PLAN)).residual_limits == PLAN.residual_limits


def test_refusal_says_what_to_do() -> None:
    with pytest.raises(PlanError, match=r"plan field sigmas: .*\. A new one is made"):
        plan_from_json(with_item("sigmas", 0, -1))


def test_slopes_come_back_from_their_coefficients_to_the_digit() -> None:
    slopes = slopes_of(PLAN.sigmas, PLAN.compute, PLAN.resets, PLAN.coefficients)
    assert 0.0 < max(slopes) <= 1.5
    assert drawn(PLAN.sigmas, PLAN.compute, PLAN.resets, slopes) == PLAN.coefficients


# Refusals, many at a time

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2**63, 10**4000, 1e-320, -0.0, 0.5, 1e308, float("nan"), float("inf"), -float("inf"),
    "", "1", "0", "1" * 14, "\ud800", "x" * 1000, [], [[]], [1.0], [0.5] * 14, [0] * 1000, {}, {"": None}, {"speed": 2},
]  # fmt: skip


def mutated(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One or more changes, anywhere in the tree."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        node: Any = content
        while True:
            keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.75:
                node = node[key]
                continue
            change(node, key, rng)
            break
    return content


def change(node: Any, key: Any, rng: random.Random) -> None:
    kind = rng.randrange(5)
    value = node[key]
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(key, copy.deepcopy(value))
    elif kind == 2 and isinstance(value, (int, float)) and not isinstance(value, bool):
        node[key] = value * rng.choice([-1, 0, 2, 10, 1e6, 1e-12]) if abs(value) < 1e9 else 0
    elif kind == 3 and isinstance(value, list):
        rng.shuffle(value)
    elif kind == 4 and isinstance(value, str) and value:
        node[key] = value[: rng.randrange(len(value))] + rng.choice(["0", "1", "f", "é"])
    else:
        node[key] = copy.deepcopy(rng.choice(STRANGE))


def on_top(plan: Plan) -> int:
    """A plan that was let in must run: every model call has a feature, and nothing is reused from nowhere.

    Returns how many model calls were computed on top of it, all of which the replay has to report.
    """
    replay = Replay(plan)
    found = 0
    for i, computed in enumerate(plan.compute):
        predicted = replay.predict(i, "guided")
        assert predicted is None or not computed
        if predicted is None:
            found += not computed
            assert replay.observe(i, "guided", torch.ones(3)).shape == (3,)
    assert [(n.code, n.values["count"]) for n in replay.notes] == ([("unlike_profile", str(found))] if found else [])
    return found


def drive(plan: Plan) -> None:
    # A check that expects next to nothing finds every run unlike it; only without one the plan is followed to the dot.
    on_top(plan)
    assert on_top(replace(plan, residual_limits=(0.0,) * plan.calls)) == 0


@pytest.mark.parametrize("seed", range(8))
def test_any_change_of_a_plan_is_refused_or_gives_a_plan_that_runs(seed: int) -> None:
    """100 changed plans per seed: PlanError or a valid plan, never anything else, and never slow."""
    rng = random.Random(seed)
    refused = 0
    for _ in range(100):
        text = json.dumps(mutated(CONTENT, rng))
        started = time.perf_counter()
        try:
            plan = plan_from_json(text)
        except PlanError as error:
            assert "A new one is made" in str(error) or str(error).startswith("settings")
            refused += 1
        else:
            assert plan_from_json(plan_to_json(plan)) == plan
            drive(plan)
        assert time.perf_counter() - started < 1.0
    assert 20 < refused < 100


@pytest.mark.parametrize("seed", range(4))
def test_any_change_of_its_text_is_refused_or_gives_a_plan_that_runs(seed: int) -> None:
    rng = random.Random(seed)
    original = plan_to_json(PLAN)
    refused = 0
    for _ in range(100):
        text = original
        for _ in range(rng.randint(1, 4)):
            at, length = rng.randrange(len(text)), rng.choice([0, 1, 1, 5, 200])
            text = (
                text[:at] + rng.choice(["", "0", "9", "-", "e9", ",", "[", "}", '"', "\\u0000"]) + text[at + length :]
            )
        try:
            drive(plan_from_json(text))
        except PlanError:
            refused += 1
    assert 20 < refused <= 100


@pytest.mark.parametrize("text", [None, 17, b"{}", ["{}"]])
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(PlanError):
        plan_from_json(text)
