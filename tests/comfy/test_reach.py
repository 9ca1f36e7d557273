"""Profiles and plans are used where they hold: runs that a profile does not reach, parts of one model, plans of others.

All on the demo's trained model. An error is the relative one of the latent against the same run without the pack.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ertacache.erta.plan_file import plan_from_json, plan_to_json
from ertacache.erta.settings import Settings
from ertacache.tests.comfy import traps as T

pytestmark = pytest.mark.usefixtures("comfy_pack")

RECORD, BUILT_IN = "record", "built-in plan"
CUSTOM = "nodes_custom_sampler"


@pytest.fixture(scope="module")
def model(comfy_pack: Any) -> Any:
    return T.trained()


@pytest.fixture(scope="module")
def clip(model: Any) -> Any:
    return {"samples": render(model, seed=1)}


def render(model: Any, **changed: Any) -> torch.Tensor:
    return T.render_trained(model, changed.pop("prompt", 0), **{"steps": 20, "seed": 20, "cfg": 5.0, **changed})


def cached(
    model: Any, store: Any, without: str = RECORD, profile: Any = None, carried: str = "", **settings: Any
) -> Any:
    """(patched model, its reports)"""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    reports: list[Any] = []
    task = Caching(Settings(**settings), store, reports.append, profile, carried, without)
    return attach(model, task), reports


def recorded(model: Any, **changed: Any) -> Any:
    from ertacache.comfy_erta.measuring import measure_profile

    with torch.inference_mode():
        one = lambda observed, run: render(observed, seed=40 + run, **changed)  # noqa: E731
        return measure_profile(model, one, 1, "output", "simple", lambda report: None)


def error(found: torch.Tensor, full: torch.Tensor) -> float:
    return float((found - full).norm() / full.norm())


def codes(report: Any) -> list[str]:
    return [note.code for note in report.notes]


# A profile that does not reach over the run

PARTS: dict[str, dict[str, Any]] = {
    "img2img": {"denoise": 0.3},
    "a detailer": {"denoise": 0.5, "steps": 8},
    "the first stage of two": {"start_step": 0, "last_step": 10, "force_full_denoise": False},
    "two steps": {"start_step": 0, "last_step": 2, "force_full_denoise": False},
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("level", ["output", "blocks"])
def test_what_is_rendered_first_spoils_no_later_run(model: Any, clip: Any, store: Any, part: str, level: str) -> None:
    """It records what it is; the first full run records anew, and the next one follows a plan for it."""
    patched, reports = cached(model, store, level=level)
    image = {"latent": clip} if "denoise" in PARTS[part] else {}
    render(patched, seed=2, **image, **PARTS[part])
    render(patched, seed=3)
    assert "recorded" in codes(reports[-1])
    full = render(model)
    found = error(render(patched), full)
    assert reports[-1].computed == 10
    assert found < (0.5 if level == "output" else 1.0) * error(render(model, steps=10), full)


def test_the_profile_that_reaches_over_the_run_is_taken_whatever_its_name(model: Any, clip: Any, store: Any) -> None:
    patched, reports = cached(model, store)
    render(patched, seed=2, latent=clip, denoise=0.3)
    store.save("zz-full", recorded(model))
    render(patched)
    assert "profile zz-full" in reports[-1].as_text()
    assert reports[-1].reused == 10


@pytest.mark.parametrize("scheduler", ["karras", "beta", "sgm_uniform"])
def test_a_connected_profile_of_another_scheduler_is_no_worse_than_fewer_steps(
    model: Any, store: Any, scheduler: str
) -> None:
    patched, reports = cached(model, store, profile=recorded(model))
    built_in, _ = cached(model, store, BUILT_IN)
    full = render(model, scheduler=scheduler)
    found = error(render(patched, scheduler=scheduler), full)
    assert reports[-1].computed == 10, "the budget is kept"
    assert found < error(render(model, scheduler=scheduler, steps=10), full)
    assert found < 10.0 * error(render(built_in, scheduler=scheduler), full)


def two_stages(model: Any, seed: int, steps: int = 20) -> torch.Tensor:
    shared = {"seed": seed, "steps": steps}
    first = render(model, start_step=0, last_step=steps // 2, force_full_denoise=False, **shared)
    return render(
        model, latent={"samples": first}, disable_noise=True, start_step=steps // 2, last_step=steps, **shared
    )


def test_two_stages_of_one_model_each_find_their_part_and_a_whole_run_joins_them(model: Any, store: Any) -> None:
    patched, reports = cached(model, store)
    two_stages(patched, 30)
    assert len(store.names()) == 2
    full = two_stages(model, 31)
    found = error(two_stages(patched, 31), full)
    assert [report.reused for report in reports[-2:]] == [5, 5]
    assert found < 1.5 * error(two_stages(model, 31, steps=10), full), (
        "half of each stage is all that either can leave out"
    )
    whole = render(model)
    joined = error(render(patched), whole)
    assert joined < 0.5 * error(render(model, steps=10), whole)
    assert codes(reports[-1]).count("profile_found") == 2 and reports[-1].reused == 10
    assert len(store.names()) == 2, "nothing is recorded that is there in parts"


@pytest.mark.parametrize(("steps", "why"), [(4, "too_few_calls"), (210, "search_too_long")])
def test_nothing_is_recorded_or_promised_that_can_never_be_used(model: Any, store: Any, steps: int, why: str) -> None:
    patched, reports = cached(model, store)
    render(patched, steps=steps)
    assert why in codes(reports[-1]) and "recorded" not in codes(reports[-1]) and store.names() == []
    assert (reports[-1].reused > 0) == (steps > 200)


@pytest.mark.parametrize("without", [RECORD, BUILT_IN])
def test_a_run_of_one_sigma_passes_through(model: Any, store: Any, without: str) -> None:
    """SplitSigmas at an end: ComfyUI samples nothing and goes on."""
    sigmas = T.node(CUSTOM, "BasicScheduler", model, "simple", 20, 1.0)[:1]

    def split(sampled: Any) -> torch.Tensor:
        guider = T.node(CUSTOM, "CFGGuider", sampled, T.words(0), T.words(-1), 5.0)
        return T.with_guider(guider, sigmas, "euler", T.empty(frames=5))

    assert torch.equal(split(cached(model, store, without)[0]), split(model))


# A plan that the workflow carries


@pytest.fixture(scope="module")
def carried(model: Any, comfy_pack: Any, tmp_path_factory: Any) -> str:
    """The plan of a friend's machine."""
    from ertacache.comfy_erta.store import Store

    theirs = Store(tmp_path_factory.mktemp("friend"))
    theirs.save("theirs", recorded(model))
    patched, reports = cached(model, theirs)
    render(patched)
    return str(reports[-1].plan)


def test_a_carried_plan_goes_before_the_store_and_renders_the_same(model: Any, store: Any, carried: str) -> None:
    alone, reports = cached(model, store, carried=carried)
    there = render(alone)
    assert codes(reports[-1]) == ["carried"] and reports[-1].reused == 10
    store.save("ours", recorded(model, prompt=3))
    beside, reports = cached(model, store, carried=carried)
    assert torch.equal(render(beside), there)
    assert codes(reports[-1]) == ["carried"]


def test_a_missing_profile_falls_back_to_the_carried_plan(model: Any, store: Any, carried: str) -> None:
    from ertacache.comfy_erta.caching import Missing

    patched, reports = cached(model, store, profile=Missing("gone"), carried=carried)
    render(patched)
    assert codes(reports[-1]) == ["profile_missing", "carried"]


def test_a_connected_profile_goes_before_a_plan_that_was_not_made_from_it(model: Any, store: Any, carried: str) -> None:
    patched, reports = cached(model, store, profile=recorded(model, prompt=3), carried=carried)
    render(patched)
    assert "carried" not in codes(reports[-1])
    assert "profile" in reports[-1].as_text() and "carried_other" in codes(reports[-1])


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "more steps": ({"steps": 30}, {}, "steps or scheduler"),
    "another scheduler": ({"scheduler": "beta"}, {}, "steps or scheduler"),
    "another sampler on the same sigmas": ({"sampler_name": "dpmpp_2m"}, {}, "sampler"),
    "another guidance": ({"cfg": 3.0}, {}, "guidance"),
    "another speed": ({}, {"speed": 1.5}, "settings"),
    "another mode": ({}, {"mode": "paper"}, "settings"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_carried_plan_is_followed_by_no_other_run(model: Any, store: Any, carried: str, other: str) -> None:
    changed, settings, differs = OTHERS[other]
    patched, reports = cached(model, store, BUILT_IN, carried=carried, **settings)
    render(patched, **changed)
    assert "carried" not in codes(reports[-1])
    assert f"the workflow's plan was made for other {differs}" in reports[-1].as_text()


@pytest.mark.parametrize("steps", [20, 60])
def test_a_plan_of_paper_mode_belongs_to_its_steps_too(model: Any, store: Any, steps: int) -> None:
    """Its schedule is adjusted, so that its sigmas are no longer those of the scheduler."""
    profile = recorded(model, steps=30)
    patched, reports = cached(model, store, mode="paper", timesteps=True, profile=profile)
    render(patched, steps=30)
    plan = reports[-1].plan
    assert plan_from_json(plan).schedule
    again, reports = cached(model, store, mode="paper", timesteps=True, profile=profile, carried=plan)
    render(again, steps=30)
    assert "carried" in codes(reports[-1])
    render(again, steps=steps)
    assert "carried" not in codes(reports[-1]) and reports[-1].calls == steps


def test_a_carried_plan_knows_the_edges_that_it_was_made_for(model: Any, store: Any, carried: str) -> None:
    spans = ({"start_percent": 0.0, "end_percent": 0.4}, {"start_percent": 0.4, "end_percent": 1.0})
    parts = [[prompt, {**options, **span}] for span in spans for prompt, options in T.words(0)]
    patched, reports = cached(model, store, BUILT_IN, carried=carried)
    render(patched, positive=parts)
    assert "conditioning" in reports[-1].as_text() and "carried" not in codes(reports[-1])


def limits(plan: Any, size: float) -> tuple[float, ...]:
    from ertacache.erta.plan import predicted_calls

    called = dict(predicted_calls(plan.compute, plan.resets))
    ends = [i in called and plan.compute[i] for i in range(plan.calls)]
    return tuple(size * 4.0 * (i - called[i][0] - 1) if end else 0.0 for i, end in enumerate(ends))


@pytest.mark.parametrize("size", [1.0, -1.0])
def test_a_strangers_plan_in_which_errors_grow_is_not_rendered(
    model: Any, store: Any, carried: str, size: float
) -> None:
    """Each of its corrections may stand in a plan."""
    plan = plan_from_json(carried)
    plan = plan_to_json(replace(plan, corrections=limits(plan, size)))
    patched, reports = cached(model, store, BUILT_IN, carried=plan)
    full = render(model)
    assert error(render(patched), full) < 0.1
    assert "carried_refused" in codes(reports[-1]) and "errors would grow" in reports[-1].as_text()


def test_a_run_probes_its_sampler_once(model: Any, store: Any, monkeypatch: Any) -> None:
    """While it records, with a stored profile, and with a carried plan whose profile is here."""
    from ertacache.comfy_erta import task

    probed: list[Any] = []
    probe = task.sampler_response
    monkeypatch.setattr(task, "sampler_response", lambda *about: probed.append(about) or probe(*about))
    patched, reports = cached(model, store)
    render(patched)
    assert "recorded" in codes(reports[-1]) and len(probed) == 1
    render(patched, seed=21)
    assert reports[-1].reused == 10 and reports[-1].curve and len(probed) == 2
    carrying, reports = cached(model, store, carried=reports[-1].plan)
    render(carrying)
    assert codes(reports[-1]) == ["carried"] and reports[-1].curve and len(probed) == 3
