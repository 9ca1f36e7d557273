"""ERTA Profile's measurement and what a run compares with it, in a real ComfyUI."""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ertacache.erta.plan_file import plan_from_json, plan_to_json
from ertacache.erta.planner import MIN_CALLS
from ertacache.erta.profile import Profile
from ertacache.erta.profile_file import digest, to_bytes
from ertacache.erta.settings import Settings
from ertacache.tests.comfy.traps import codes

STEPS = 12


def measured(wan, sample, runs=2, level="output", **sampling):
    """(profile, latents in the order in which they were rendered, reports)"""
    from ertacache.comfy_erta.measuring import measure_profile

    latents, reports = [], []

    def render(model, run):
        latents.append(sample(model, seed=20 + run, **sampling))

    return measure_profile(wan, render, runs, level, "simple", reports.append), latents, reports


def forwards(model) -> list[int]:
    """Grows by one each time the model itself is asked."""
    from comfy.patcher_extension import WrappersMP

    calls: list[int] = []

    def count(executor, *args, **kwargs):
        calls.append(len(calls))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    return calls


def cancelling(model, stop_at: int) -> list[int]:
    """Grows by one with each model call, computed or reused; the one behind the first ``stop_at`` is cancelled."""
    import comfy.model_management as management
    from comfy.patcher_extension import WrappersMP

    calls: list[int] = []

    def cancel(executor, *args, **kwargs):
        calls.append(len(calls))
        if len(calls) > stop_at:
            raise management.InterruptProcessingException()
        return executor(*args, **kwargs)

    # Registered first is outermost: it also sees what is reused.
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "cancel", cancel)
    return calls


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def unlike(report) -> list[str]:
    return [note.text for note in report.notes if note.code == "unlike_profile"]


@pytest.fixture(scope="module")
def profile(wan, sample) -> Profile:
    return measured(wan, sample)[0]


def test_runs_are_full_renders_bit_for_bit_and_the_perturbed_run_is_half_of_one(wan, sample):
    _, latents, reports = measured(wan, sample)
    assert [report.computed for report in reports] == [STEPS, STEPS // 2, STEPS]
    for latent, seed in ((latents[0], 20), (latents[2], 21)):
        assert torch.equal(latent, sample(seed=seed))
    assert not torch.equal(latents[1], latents[0]), "the perturbed run is a cached run of the first"
    assert codes(reports[1]) == ["error_response_measured"]


@pytest.mark.parametrize("sampler", ["euler", "heun", "uni_pc", "dpmpp_2m_sde"])
def test_a_profile_costs_its_full_runs_and_half_of_one(wan, sample, sampler):
    """Counted at the model, with samplers of every kind; each full run stays what it would be without."""
    model = wan.clone()
    calls = forwards(model)
    sample(model, sampler_name=sampler)
    once = len(calls)
    calls.clear()
    found, latents, _ = measured(model, sample, sampler_name=sampler)
    assert len(calls) == 2 * once + round(once / 2)
    assert found.tables[0].has_error_response
    assert torch.equal(latents[0], sample(seed=20, sampler_name=sampler))
    assert torch.equal(latents[2], sample(seed=21, sampler_name=sampler))


def test_the_first_run_has_the_error_response(profile):
    first, second = profile.tables
    assert first.has_error_response and not second.has_error_response
    assert np.isfinite(first.gain).all() and np.isfinite(first.deviation).all()
    assert (first.deviation > 0.0).all() and np.abs(first.gain).max() > 0.0


def test_measuring_twice_gives_the_same_profile(wan, sample, profile):
    assert to_bytes(measured(wan, sample)[0]) == to_bytes(profile)


@pytest.mark.parametrize("changed", [{"level": "blocks"}, {"steps": MIN_CALLS - 1}], ids=["blocks", "few steps"])
def test_where_no_error_response_can_be_measured_there_is_no_perturbed_run(wan, sample, changed):
    found, latents, reports = measured(wan, sample, **changed)
    assert len(latents) == len(reports) == 2
    assert not any(table.has_error_response for table in found.tables)


def test_a_run_that_cannot_be_recorded_is_refused_with_the_reason(wan, sample):
    from ertacache.comfy_erta.measuring import ProfileIncomplete

    with pytest.raises(ProfileIncomplete, match=r"^0 of 2 runs were measured\. .*euler_cfg_pp"):
        measured(wan, sample, sampler_name="euler_cfg_pp")


def test_a_later_run_that_cannot_be_recorded_is_refused_with_how_many_were(wan, sample):
    """The second run, after the perturbed run, with another sampler than the first."""
    from ertacache.comfy_erta.measuring import ProfileIncomplete, measure_profile

    def render(model, run):
        sample(model, seed=20 + run, sampler_name="euler" if run == 0 else "dpm_adaptive")

    with pytest.raises(ProfileIncomplete, match=r"^1 of 2 runs were measured\. everything computed: how often"):
        measure_profile(wan, render, 2, "output", "simple", lambda report: None)


def test_a_perturbed_run_that_goes_elsewhere_measures_nothing_and_says_so(wan, sample, monkeypatch):
    from ertacache.comfy_erta import measuring

    begin = measuring.Perturbing.begin

    def astray(self, context):
        start = begin(self, context)
        return replace(start, sigmas=(*start.sigmas[:4], *(0.9 * sigma for sigma in start.sigmas[4:])))

    monkeypatch.setattr(measuring.Perturbing, "begin", astray)
    found, latents, reports = measured(wan, sample)
    assert len(found.tables) == 2 and not any(table.has_error_response for table in found.tables)
    assert "error_response_failed" in codes(reports[1])
    assert torch.equal(latents[2], sample(seed=21))


SAMPLING = {"seed": 20, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def links(conds):
    latent = {"samples": torch.zeros(1, 16, 2, 4, 4)}
    return {"positive": conds[0], "negative": conds[1], "latent_image": latent}


def nodes_profile(wan, conds, name="kept", **changed):
    """What ERTA Profile gives out; its latent is 12 steps of seed 20."""
    node = importlib.import_module("ertacache.nodes.profiling").ERTAProfile
    options = importlib.import_module("ertacache.nodes.options").Options
    if "level" in changed:
        changed["options"] = options.of(level=changed.pop("level"))
    return node.execute(wan, **{"runs": 2, "name": name, **SAMPLING, **links(conds), **changed})


@pytest.fixture
def kept_here(store, monkeypatch):
    """The store that the nodes keep their profiles in."""
    monkeypatch.setattr(importlib.import_module("ertacache.nodes.profiling"), "default_store", lambda: store)
    return store


def test_the_node_gives_out_the_first_full_render_and_keeps_the_error_response(wan, sample, conds, profile, kept_here):
    output = nodes_profile(wan, conds)
    found, latent = output.result
    assert torch.equal(latent["samples"], sample(seed=20))
    assert kept_here.names() == ["kept"]
    kept = kept_here.load("kept")
    assert digest(kept) == digest(found) == digest(profile)
    assert [table.has_error_response for table in kept.tables] == [True, False]
    assert np.array_equal(kept.tables[0].deviation, profile.tables[0].deviation)
    said = [note["code"] for note in output.ui["erta"][0]["notes"]]
    assert said == ["error_response_measured", "runs_recorded"]
    assert "how errors grow was measured" in output.ui["text"][0]


def test_the_node_says_where_no_error_response_was_measured(wan, conds, kept_here):
    ui = nodes_profile(wan, conds, level="blocks").ui
    assert [note["code"] for note in ui["erta"][0]["notes"]] == ["no_error_response", "runs_recorded"]
    assert "how errors grow was not measured" in ui["text"][0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sampler_name": "dpm_adaptive"}, "depends on the model's outputs.*Choose a sampler .* such as euler"),
        ({"steps": 1}, "only one model call.*2 steps or more"),
        ({"denoise": 0.0}, "give steps and a denoise above 0"),
    ],
    ids=["sampler", "one step", "no step"],
)
def test_the_node_keeps_nothing_of_runs_that_cannot_be_recorded(wan, conds, kept_here, changed, message):
    from ertacache.comfy_erta.measuring import ProfileIncomplete

    with pytest.raises(ProfileIncomplete, match=rf"^0 of 2 runs were measured\. .*{message}"):
        nodes_profile(wan, conds, **changed)
    assert not kept_here.names()


@pytest.fixture
def room_for_three(monkeypatch):
    """Files that hold three runs of 12 model calls."""
    from ertacache.erta import profile_file

    sizes = [len(to_bytes(empty(STEPS, runs))) for runs in (1, 2)]
    monkeypatch.setattr(profile_file, "MAX_BYTES", profile_file.MAX_HEADER + 8 + 3 * (sizes[1] - sizes[0]) + 99)


def empty(calls: int, runs: int) -> Profile:
    from ertacache.erta.profile import Table
    from ertacache.tests.core.test_store import MEASURED

    square, row = np.zeros((calls, calls)), np.zeros(calls)
    tables = (Table(run, 0, 1, 1.0, np.linspace(1.0, 0.5, calls), square, square, row, row) for run in range(runs))
    return Profile(MEASURED, tuple(tables))


def test_more_runs_than_a_file_holds_are_refused_before_the_first(wan, conds, kept_here, room_for_three):
    from ertacache.comfy_erta.measuring import ProfileIncomplete

    model = wan.clone()
    calls = forwards(model)
    message = r"^runs is 4, but at 12 model calls a profile holds at most 3\. Set runs to 3, or take fewer steps\.$"
    with pytest.raises(ProfileIncomplete, match=message):
        nodes_profile(model, conds, runs=4)
    assert not calls
    assert nodes_profile(wan, conds, runs=3).result[0].calls == STEPS
    assert kept_here.names() == ["kept"]


def test_at_blocks_level_they_are_refused_after_the_first(wan, conds, kept_here, room_for_three):
    """Only then it is known that there are two streams, one for each prompt."""
    from ertacache.comfy_erta.measuring import ProfileIncomplete

    model = wan.clone()
    calls = forwards(model)
    message = r"^runs is 2, but at 12 model calls of 2 streams a profile holds at most 1\. Set runs to 1"
    with pytest.raises(ProfileIncomplete, match=message):
        nodes_profile(model, conds, runs=2, level="blocks")
    assert len(calls) == len(forwards_of_a_run(wan, conds))


def forwards_of_a_run(wan, conds) -> list[int]:
    model = wan.clone()
    calls = forwards(model)
    render = importlib.import_module("ertacache.nodes.profiling").render
    render(model, {**SAMPLING, **links(conds)})
    return calls


def test_where_not_even_one_run_fits_fewer_steps_are_the_remedy():
    from ertacache.comfy_erta.measuring import ProfileIncomplete, check_fits

    check_fits(1, 1000)
    with pytest.raises(ProfileIncomplete, match=r"runs is 1, but at 1000 model calls of 2 streams .* 0\. Take fewer"):
        check_fits(1, 1000, 2)


def fail_to_write(store, monkeypatch) -> str:
    store.user_dir.write_text("a file where the folder should be")
    return "cannot be kept: File exists .*make it writable"


def fail_to_sync(store, monkeypatch) -> str:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    return "cannot be kept: No space left on device; free space there"


def fail_to_fit(store, monkeypatch) -> str:
    """A model whose outputs are beyond what files may hold."""
    monkeypatch.setattr(importlib.import_module("ertacache.erta.profile_file"), "MAX_FEATURE", 1e-9)
    return "profile field 'gram'"


@pytest.mark.parametrize("fail", [fail_to_write, fail_to_sync, fail_to_fit])
def test_a_profile_that_cannot_be_kept_is_given_out_with_the_picture_and_a_warning(
    wan, sample, conds, kept_here, monkeypatch, fail
):
    message = fail(kept_here, monkeypatch)
    output = nodes_profile(wan, conds)
    found, latent = output.result
    assert torch.equal(latent["samples"], sample(seed=20))
    assert found.calls == STEPS and len(found.tables) == 2
    (content,) = output.ui["erta"]
    (said,) = [note for note in content["notes"] if note["code"] == "profile_not_kept"]
    assert said["level"] == "warning" and re.search(message, said["text"])
    assert said["text"] in output.ui["text"][0]
    assert (content["digest"] == "") == (fail is fail_to_fit)
    json.dumps(output.ui, allow_nan=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"runs": 0}, "runs is '0'; it must be a whole number from 1 to 64"),
        ({"runs": 2.0}, "runs is '2.0'; it must be a whole number from 1 to 64"),
        ({"runs": None}, "runs is 'None'"),
        ({"runs": "4"}, "runs is '4'"),
        ({"seed": None}, "seed is 'None'; it must be a whole number"),
        ({"steps": "12"}, "steps is '12'; it must be a whole number"),
        ({"cfg": float("nan")}, "cfg is 'nan'; it must be a number"),
        ({"cfg": float("inf")}, "cfg is 'inf'; it must be a number"),
        ({"cfg": 10**400}, "cfg is '1000"),
        ({"cfg": "3"}, "cfg is '3'; it must be a number"),
        ({"cfg": [3.0]}, "cfg is"),
        ({"denoise": float("nan")}, "denoise is 'nan'; it must be a number"),
        ({"denoise": None}, "denoise is 'None'; it must be a number"),
        ({"options": "blocks"}, "options is 'blocks'; it must be connected to ERTA Options"),
        ({"name": 7}, "profile name 7: use 1 to 64"),
        ({"name": ["a"]}, "profile name"),
        ({"name": None}, "profile name None"),
    ],
)
def test_a_linked_value_that_is_none_of_its_input_is_refused_before_the_first_render(
    wan, conds, kept_here, changed, message
):
    """ComfyUI checks what is typed, but not what comes by a link, and lets NaN through everywhere."""
    model = wan.clone()
    calls = forwards(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        nodes_profile(model, conds, **changed)
    assert not calls


def test_a_scale_beyond_what_profiles_keep_is_rendered_and_not_kept(wan, conds, kept_here):
    """Linked: a widget goes up to 100."""
    assert nodes_profile(wan, conds, cfg=2e6).result[0].measured.guidance is None


def test_the_seed_goes_round_at_its_end(wan, conds, kept_here):
    """The first run would be rendered in vain where the second has no seed."""
    assert len(nodes_profile(wan, conds, seed=2**64 - 1).result[0].tables) == 2


@pytest.mark.parametrize("stop_at", [3, STEPS + 4], ids=["first run", "perturbed"])
def test_cancel_of_the_node_keeps_no_profile_and_no_tensor(wan, conds, kept_here, stop_at):
    import comfy.model_management as management

    model = wan.clone()
    calls = cancelling(model, stop_at)
    left = []
    for _ in range(2):  # what is loaded or cached once is there after the first
        calls.clear()
        with pytest.raises(management.InterruptProcessingException):
            nodes_profile(model, conds)
        assert len(calls) == stop_at + 1
        left.append(live_tensors())
    assert left[1] <= left[0]
    assert not list(kept_here.user_dir.rglob("*"))


@pytest.mark.parametrize(
    "stop_at", [0, STEPS, STEPS + 4], ids=["first run", "perturbed run begins", "in the perturbed run"]
)
def test_cancel_while_measuring_leaves_the_model_as_it_was(wan, sample, stop_at):
    import comfy.model_management as management
    from comfy.patcher_extension import WrappersMP

    model = wan.clone()
    calls = cancelling(model, stop_at)
    with pytest.raises(management.InterruptProcessingException):
        measured(model, sample)
    assert len(calls) == stop_at + 1
    model.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, "cancel")
    assert torch.equal(sample(model), sample())


def followed(wan, sample, store, profile, seed=20, **more):
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    reports = []
    sample(attach(wan, Caching(Settings(speed=2.0), store, reports.append, profile, **more)), seed=seed)
    return reports[0]


def test_a_run_like_the_profiled_ones_costs_no_call_on_top(wan, sample, store, profile):
    for seed in (20, 21):
        report = followed(wan, sample, store, profile, seed)
        assert report.computed == STEPS // 2
        assert not unlike(report)


def test_a_run_unlike_them_is_computed_more_with_one_line(wan, sample, store, profile):
    """Unlike by what the plan expects: next to nothing."""
    plan = plan_from_json(followed(wan, sample, store, profile).plan)
    wary = replace(plan, residual_limits=tuple(1e-6 * limit for limit in plan.residual_limits))
    report = followed(wan, sample, store, profile, carried=plan_to_json(wary))
    assert report.computed > plan.computed
    assert len(unlike(report)) == 1
    assert f"{report.computed - plan.computed} more computed" in unlike(report)[0]


def test_prediction_is_within_a_factor_of_three_of_what_the_profiled_runs_leave(wan, sample, store, profile):
    """On random weights, whose error response is unlike any trained model's."""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    reports, errors = [], []
    for seed in (20, 21):
        model = attach(wan, Caching(Settings(speed=2.0), store, reports.append, profile))
        full = sample(seed=seed)
        errors.append(float((sample(model, seed=seed) - full).norm() / full.norm()))
    predicted = plan_from_json(reports[0].plan).predicted_error[0]
    assert np.median(errors) / 3 < predicted < 3 * np.median(errors)


def test_a_profile_that_cannot_be_kept_does_not_cost_the_picture(wan, sample, tmp_path):
    """A full disk or the like, at the end of a first render that records."""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach
    from ertacache.comfy_erta.store import Store

    in_the_way = tmp_path / "profiles"
    in_the_way.write_text("a file where the folder should be")
    reports = []
    latent = sample(attach(wan, Caching(Settings(), Store(in_the_way), reports.append)))
    assert torch.equal(latent, sample())
    (note,) = [note for note in reports[0].notes if note.code == "not_recorded"]
    assert "cannot be kept" in note.text


@pytest.mark.parametrize("level", ["output", "blocks"])
def test_a_part_of_the_elements_plans_as_well_as_all(comfy_pack, monkeypatch, level):
    """At full size every n-th element of a feature is measured, two million; here at most a tenth of 5120 or more."""
    from ertacache.erta import recorder
    from ertacache.tests.comfy.traps import cached, error, measure, render_trained, trained

    model, steps, prompts = trained(), 24, range(3)
    full = [render_trained(model, prompt, steps=steps) for prompt in prompts]

    def planned_from(sample: int) -> tuple[int, float, float]:
        """Elements measured, worst error at 2x, predicted error."""
        monkeypatch.setattr(recorder, "SAMPLE", sample)
        known = measure(lambda m, run: render_trained(m, 10 + run, seed=40 + run, steps=steps), level, model)
        patched, reports = cached(model, known, speed=2.0, level=level)
        errors = [error(render_trained(patched, prompt, steps=steps), full[prompt]) for prompt in prompts]
        return known.tables[0].elements, max(errors), reports[0].predicted_error[0]

    (every, error_all, predicted_all), (part, error_part, predicted_part) = (
        planned_from(recorder.SAMPLE),
        planned_from(2**9),
    )
    assert part < every / 10
    assert error_part < 1.25 * error_all
    assert predicted_all / 1.5 < predicted_part < 1.5 * predicted_all


@pytest.mark.parametrize("prompt", [0, 1])
def test_the_error_predicted_by_a_profile_of_one_prompt_holds_for_others(comfy_pack, prompt):
    """With these two it was three times too high as long as the perturbed run held its features."""
    from ertacache.tests.comfy.traps import cached, error, measure, render_trained, trained

    model, steps, others = trained(), 50, range(20, 24)
    known = measure(lambda m, run: render_trained(m, prompt, seed=40 + run, steps=steps), "output", model)
    patched, reports = cached(model, known, speed=2.0)
    errors = [error(render_trained(patched, p, steps=steps), render_trained(model, p, steps=steps)) for p in others]
    assert 0.5 < reports[0].predicted_error[0] / float(np.median(errors)) < 2.0
