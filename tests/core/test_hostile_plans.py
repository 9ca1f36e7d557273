"""Plans in workflows from strangers: ten thousand mutated ones are refused by our own error that names the field, or
give a plan that runs: what is replayed with it is finite, and no larger than what such a plan can make of it."""

from __future__ import annotations

import copy
import json
import random
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ertacache.erta.plan import Plan, predicted_calls
from ertacache.erta.plan_file import MAX_CHARACTERS, PlanError, plan_from_json, plan_to_json
from ertacache.erta.planner import euler_response, solve
from ertacache.erta.problem import Problem
from ertacache.erta.profile import Measured
from ertacache.erta.replay import Replay
from ertacache.erta.settings import Settings
from ertacache.erta.simulation import Fit
from ertacache.tests.core.made import flow, recorded

MUTATED, PARTS = 10_000, 5
LIMIT = 64 * 2**20

MEASURED = Measured("WAN21", 1, "0" * 64, "", "flow", 8.0, "euler", "simple", 14, 6.0, (1, 4), "output", "1", "1")
SCHEDULE = flow(14)
SETTINGS = (
    Settings(2.5),
    Settings(2.0, timesteps=True),
    Settings(2.0, mode="paper"),
    Settings(3.0, predictor="affine"),
    Settings(2.0, predictor="linear", protect_start=2, protect_end=2),
    Settings(1.0, preset=(0, 3, 7), preset_steps=8),
)
PLANS = [
    replace(solve(Problem(SCHEDULE, euler_response, profile, edges), settings), model="ab" * 32)
    for settings in SETTINGS
    for profile, edges in ((recorded(MEASURED, SCHEDULE[:-1], runs=2), (0.83,)), (None, ()))
]
PLANS.append(solve(Problem(SCHEDULE, euler_response, recorded(MEASURED, SCHEDULE[:-1], 2, 20.0)), Settings(2.5)))
TEXTS = [plan_to_json(plan) for plan in PLANS]


# Mutations

STRANGE: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2**63, 10**400, 1e-320, -0.0, 0.5, 1e6, 1e308, float("nan"))
STRANGE += (float("inf"), -float("inf"), "", "1", "\ud800", "\x00", "x" * 5000, "\u202e", "../../x", [], [[]], [1.0])
STRANGE += ([0.5] * 14, [0] * 1000, {}, {"": None}, {"speed": 2}, [[1.0, 1.0, 1.0]] * 14)
FACTORS = (-1, 0, 2, 1.001, 10, 1e6, 1e-12, 1e300)


def places(node: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of everything in a JSON tree."""
    found = []
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        found.append((node, key))
        if isinstance(node[key], (dict, list)):
            found += places(node[key])
    return found


def change_value(content: dict[str, Any], chance: random.Random) -> None:
    holder, key = chance.choice(places(content))
    value, kind = holder[key], chance.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    elif kind == 2 and isinstance(value, list):
        chance.shuffle(value)
    elif kind == 3 and isinstance(value, str) and value:
        holder[key] = value[: chance.randrange(len(value))] + chance.choice(("0", "1", "f", "é", ""))
    elif kind < 5 and isinstance(value, float):
        holder[key] = value * chance.choice(FACTORS)
    else:
        holder[key] = copy.deepcopy(chance.choice(STRANGE))


def nudge(content: dict[str, Any], chance: random.Random) -> None:
    """Numbers that may stand where they stand, and mean something else."""
    name = chance.choice(
        ("shares", "offsets", "corrections", "residual_limits", "sigmas", "nominal", "factors", "predicted_error")
    )
    values = content.get(name)
    if isinstance(values, list) and values and isinstance(values[0], list):
        values = chance.choice(values)
    if isinstance(values, list) and values and all(isinstance(value, float) for value in values):
        at = chance.randrange(len(values))
        values[at] = chance.choice((values[at] * chance.choice(FACTORS), values[at] + 1.0, 0.0, 99.0, -99.0, 1e3, 1e9))


def flip(content: dict[str, Any], chance: random.Random) -> None:
    """Other model calls are computed than the coefficients are made for."""
    if not isinstance(content.get("compute"), str) or not content["compute"]:
        return
    at = chance.randrange(len(content["compute"]))
    content["compute"] = content["compute"][:at] + chance.choice("01") + content["compute"][at + 1 :]
    if chance.random() < 0.3:
        content["resets"] = sorted({0, chance.randrange(len(content["compute"]))})


def change_tree(text: str, chance: random.Random) -> str:
    content = json.loads(text)
    for _ in range(chance.choice((1, 1, 2, 3))):
        chance.choice((change_value, nudge, nudge, flip))(content, chance)
    return json.dumps(content, ensure_ascii=chance.random() < 0.5)


def change_text(text: str, chance: random.Random) -> str:
    pieces = ("", "0", "9", "-", "e9", "e999", ",", "[", "}", '"', "\\u0000", "NaN", "Infinity", "\x00", "\ud800")
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(text)), chance.choice((0, 1, 1, 5, 200))
        text = text[:at] + chance.choice(pieces) + text[at + length :]
    return text


def add_to(text: str, chance: random.Random) -> str:
    """Keys twice, deep nesting, huge texts and numbers, at the end of the object."""
    deep = chance.choice(("[", '{"a":')) * chance.choice((50, 990, 20_000))
    more = (
        '"sigmas":[]',
        '"settings":{}',
        f'"x":{deep}',
        f'"x":{deep}1',
        f'"x":"{"y" * 150_000}"',
        f'"x":{"9" * 5000}',
    )
    added = text[:-1] + "," + chance.choice(more) + "}"
    return added if chance.random() < 0.7 else added.replace('"speed":', '"speed":1.0,"speed":', 1)


FAMILIES: tuple[Callable[[str, random.Random], str], ...] = (change_tree, change_tree, change_tree, change_text, add_to)


# What must hold


def run(plan: Plan) -> None:
    """Followed on features of length 1, in full and where every check fails."""
    for followed in (plan, replace(plan, residual_limits=(0.0,) * plan.calls)):
        replay = Replay(followed)
        for i, computed in enumerate(followed.compute):
            used = replay.predict(i, "guided")
            assert used is None or not computed
            if used is None:
                used = replay.observe(i, "guided", torch.tensor([1.0, -1.0]))
            # Sixteen times a line's slope and a half to either side; corrections add as much per model call.
            most = 64.0
            assert used.abs().max() <= most * (1.0 + 4.0 * followed.calls), f"call {i}"


def outcome(text: str) -> str:
    """What is made of a text: the field that it is refused for, or "runs"."""
    try:
        plan = plan_from_json(text)
    except PlanError as error:
        named = re.match(r"plan field ([\w.]+): |(plan): is not JSON|(settings): (\w+) is ", str(error))
        assert named and len(str(error)) < 500, error
        str(error).encode()  # to go into a log and into JSON
        return next(filter(None, named.groups()))
    assert plan_from_json(plan_to_json(plan)) == plan
    run(plan)
    return "runs"


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(120)
def test_a_mutated_plan_is_refused_by_field_or_runs(part: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(part * MUTATED // PARTS, (part + 1) * MUTATED // PARTS):
        chance = random.Random(seed)
        text = FAMILIES[seed % len(FAMILIES)](chance.choice(TEXTS), chance)
        try:
            outcomes[outcome(text)] += 1
        except Exception as error:
            raise AssertionError(f"mutation {seed} by {FAMILIES[seed % len(FAMILIES)].__name__}") from error
    assert outcomes["runs"] > 100 and len(outcomes) > 12, outcomes


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=16) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(json.loads(TEXTS[0]))), value=json_values)
def test_any_json_in_a_field_is_refused_or_runs(name: str, value: object) -> None:
    outcome(json.dumps({**json.loads(TEXTS[0]), name: value}))


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(json.loads(TEXTS[0])["settings"])), value=json_values)
def test_any_json_in_the_settings_is_refused_or_runs(name: str, value: object) -> None:
    content = json.loads(TEXTS[0])
    content["settings"][name] = value
    outcome(json.dumps(content))


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=300) | json_values.map(json.dumps))
def test_any_text_is_refused(text: str) -> None:
    assert outcome(text) != "runs"


# Plans that this pack would never make


def altered(plan: Plan, name: str, index: int, value: Any) -> str:
    content = json.loads(plan_to_json(plan))
    content[name][index] = value
    return json.dumps(content)


PLANNED = PLANS[0]
REUSED = next(i for i, c in enumerate(PLANNED.coefficients) if len(c) == 2 and not PLANNED.compute[i])
CORRECTED = next(i for i, u in enumerate(PLANNED.corrections) if u)


@pytest.mark.parametrize("share", [25.0, 1.51, -0.01])
def test_a_line_that_amplifies_is_refused(share: float) -> None:
    with pytest.raises(PlanError, match="shares: holds a"):
        plan_from_json(altered(PLANNED, "shares", REUSED, share))


@pytest.mark.parametrize("settings", SETTINGS[:1] + SETTINGS[4:], ids=str)
@pytest.mark.parametrize("size", [1.0, -1.0])
def test_a_plan_in_which_errors_grow_is_told_from_one_that_this_pack_makes(settings: Settings, size: float) -> None:
    """Every correction at its limit: each by itself may stand in a plan."""
    problem = Problem(SCHEDULE, euler_response, None)
    plan = solve(problem, settings)
    called = dict(predicted_calls(plan.compute, plan.resets))
    most = [4.0 * (i - called[i][0] - 1) if i in called and plan.compute[i] else 0.0 for i in range(14)]

    def amplifies(corrections: Sequence[float]) -> bool:
        fit = Fit(list(plan.coefficients), list(plan.offsets), list(corrections), [])
        error = problem.prior_error(plan.compute, fit)
        return problem.amplifies(error, plan.compute, settings.method(False, False)[0])

    assert not amplifies(plan.corrections)
    assert amplifies([size * one for one in most])


@pytest.mark.parametrize("size", [999.0, -999.0])
def test_a_correction_beyond_its_interval_is_refused(size: float) -> None:
    with pytest.raises(PlanError, match=f"corrections: holds {size:g} for call {CORRECTED}"):
        plan_from_json(altered(PLANNED, "corrections", CORRECTED, size))


@pytest.mark.parametrize("plan", PLANS, ids=range(len(PLANS)))
def test_what_this_pack_makes_is_let_in_to_the_digit(plan: Plan) -> None:
    assert plan_from_json(plan_to_json(plan)) == plan


@pytest.mark.timeout(60)
@pytest.mark.parametrize("filling", ["[", '{"a":', '"x",', "9", "1e9,", "\\u0041", "\\"])
@pytest.mark.parametrize("before", ["", "[", '{"sigmas":[', '{"x":"', '{"x":'])
def test_the_longest_text_takes_little(before: str, filling: str) -> None:
    text = (before + filling * MAX_CHARACTERS)[:MAX_CHARACTERS]
    tracemalloc.start()
    try:
        with pytest.raises(PlanError):
            plan_from_json(text)
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
