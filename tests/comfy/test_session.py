"""The adapter in a real ComfyUI: levels, lifetime, counting, and what must never happen."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch

from ertacache.erta.notes import note
from ertacache.erta.plan_file import plan_from_json
from ertacache.erta.profile import Profile
from ertacache.erta.profile_file import to_bytes
from ertacache.erta.settings import Settings
from ertacache.tests.comfy.traps import codes

STEPS = 12


@pytest.fixture(scope="session")
def recorded(comfy_pack, wan, sample):
    """recorded(level, **sampling) -> Profile of two runs of the tiny model."""
    from ertacache.comfy_erta.recording import Recording
    from ertacache.comfy_erta.run import attach

    def record(level="output", model=None, **sampling):
        kept, tables = [], []

        def keep(measured, found):
            kept.append(measured)
            tables.extend(found)
            return ()

        for run in range(2):
            task = Recording(level, run, keep, lambda report: None)
            sample(attach(model or wan, task), seed=20 + run, **sampling)
        return Profile(kept[0], tuple(tables))

    return record


def cached(wan, store, settings, profile=None, **more):
    """(model, reports) with the cache on it."""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    reports = []
    return attach(wan, Caching(settings, store, reports.append, profile, **more)), reports


class Counter:
    """Counts the model's own forwards and keeps weak references to what it returned."""

    def __init__(self, model):
        from comfy.patcher_extension import WrappersMP

        self.calls, self.outputs = 0, []
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "counter", self)

    def __call__(self, executor, *args, **kwargs):
        self.calls += 1
        result = executor(*args, **kwargs)
        self.outputs.append(weakref.ref(result))
        return result


def error(result, reference):
    return float((result - reference).norm() / reference.norm())


@pytest.mark.parametrize("level", ["output", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_speed_one_and_recording_are_bit_identical(comfy_pack, sample, store, recorded, level, dtype):
    from ertacache.tests.comfy.conftest import make_wan

    model = make_wan(dtype)
    reference = sample(model)
    untouched, _ = cached(model, store, Settings(speed=1.0, level=level))
    assert torch.equal(sample(untouched), reference)
    profile = recorded(level, model=model)
    all_computed = Settings(speed=2.0, level=level, protect_start=STEPS)
    kept, reports = cached(model, store, all_computed, profile)
    assert torch.equal(sample(kept), reference)
    assert reports[0].computed == STEPS
    recording, _ = cached(model, store, Settings(speed=2.0, level=level))
    assert torch.equal(sample(recording), reference)


@pytest.mark.parametrize("level", ["output", "blocks"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc", "dpmpp_2m_sde"])
def test_reused_calls_do_not_reach_the_model(wan, sample, store, recorded, level, sampler):
    reference = sample(sampler_name=sampler)
    profile = recorded(level, sampler_name=sampler)
    model, reports = cached(wan, store, Settings(speed=2.0, level=level), profile)
    counter = Counter(model)
    result = sample(model, sampler_name=sampler)
    report = reports[0]
    assert report.computed + report.reused == report.calls
    assert report.computed == round(report.calls / 2)
    assert report.complete, report.notes
    if level == "output":
        assert counter.calls == report.computed
    # Fresh noise moves the stochastic one, so that less can be foreseen.
    assert 0.0 < error(result, reference) < (1.0 if sampler == "dpmpp_2m_sde" else 0.25)


def test_the_two_levels_agree_at_the_same_schedule(wan, sample, store, recorded):
    reference = sample()
    errors = {}
    for level in ("output", "blocks"):
        settings = Settings(speed=1.5, level=level, predictor="linear", corrector=False)
        model, _ = cached(wan, store, settings, recorded(level))
        errors[level] = error(sample(model), reference)
    assert errors["blocks"] < 5.0 * errors["output"] + 1e-4


def test_first_render_records_and_the_second_is_fast(wan, sample, store):
    model, reports = cached(wan, store, Settings(speed=2.0))
    reference = sample()
    assert torch.equal(sample(model), reference)
    assert len(store.names()) == 1
    assert reports[0].computed == STEPS
    sample(model, seed=6)
    assert reports[1].computed == STEPS // 2
    assert reports[1].predicted_error
    assert len(store.names()) == 1


def rotten(profile):
    """The file of a profile whose header and sigmas are as good as ever, while every other number in it is NaN."""
    data, sigmas = to_bytes(profile), profile.sigmas.tobytes()
    start, place = 8 + int.from_bytes(data[:8], "little"), data.index(sigmas)
    end = place + len(profile.tables) * len(sigmas)
    return data[:start] + b"\xff" * (place - start) + data[place:end] + b"\xff" * (len(data) - end)


def test_a_stored_profile_with_rotten_tables_is_passed_over(wan, sample, store, recorded):
    for name in ("a", "b", "c"):
        store.save(name, recorded())
    for name in ("a", "b"):
        (store.user_dir / f"{name}.safetensors").write_bytes(rotten(recorded()))
    assert [entry.name for entry in store.headers()] == ["a", "b", "c"], "at first look all three fit"
    model, reports = cached(wan, store, Settings(speed=2.0))
    sample(model)
    assert codes(reports[0])[:3] == ["profile_unreadable", "profile_unreadable", "profile_found"]
    assert [note.values["name"] for note in reports[0].notes[:3]] == ["a", "b", "c"]
    assert "safetensors" in reports[0].notes[0].values["reason"]
    assert reports[0].computed == STEPS // 2 and reports[0].predicted_error
    (store.user_dir / "c.safetensors").unlink()
    assert torch.equal(sample(model), sample())
    assert codes(reports[1]) == ["profile_unreadable", "profile_unreadable", "recording_first", "recorded"]
    assert reports[1].computed == STEPS and len(store.names()) == 3


@pytest.fixture
def coming(wan, sample):
    """coming(steps) -> the Context of a run of so many steps."""
    from ertacache.comfy_erta.run import attach
    from ertacache.comfy_erta.task import Start

    class Looking:
        def begin(self, context):
            self.context = context
            return Start()

    def look(steps):
        task = Looking()
        sample(attach(wan, task), steps=steps)
        return task.context

    return look


def over(calls):
    """The report of a run that went as planned."""
    from ertacache.comfy_erta.report import Report

    return Report(calls, calls, calls, 0, 1.0, 1.0, 0.0, 0)


def test_notes_are_records_in_a_reports_dict_and_lines_of_its_text(comfy_pack):
    said = note("other_sigma", call=3, sigma="0.5", expected="0.7")
    report = replace(over(12), notes=(said,))
    record = {"level": "warning", "code": "other_sigma", "text": said.text, "values": dict(said.values)}
    assert json.loads(json.dumps(report.as_dict()))["notes"] == [record]
    assert report.as_text().splitlines()[-1] == said.text


def test_two_recordings_of_one_task_at_once_do_not_mix(coming):
    """Each is finished by what ``begin`` gave back for it, in whatever order."""
    from ertacache.comfy_erta.recording import Recording

    kept, reports = [], []

    def keep(measured, tables):
        kept.append((measured, tables))
        return ()

    task = Recording("output", 0, keep, reports.append)
    starts = [task.begin(coming(steps)) for steps in (STEPS, 8)]
    features = torch.randn(STEPS, 1, 16, 2, 4, 4)
    for i, feature in enumerate(features):
        for start in starts:
            if i < len(start.sigmas):
                start.observer.observe(i, "guided", feature * len(start.sigmas))
    for start in reversed(starts):
        start.finish(over(len(start.sigmas)), features[0])
    assert [measured.steps for measured, _ in kept] == [8, STEPS] == [report.calls for report in reports]
    for (measured, (table,)), start in zip(kept, reversed(starts), strict=True):
        assert table.sigmas.tolist() == list(start.sigmas)
        mine = features[: measured.steps].flatten(1).double() * measured.steps
        assert table.gram == pytest.approx((mine @ mine.T).numpy(), rel=1e-5, abs=0.01)


def test_two_cached_runs_of_one_task_at_once_do_not_mix(wan, store, recorded, coming):
    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    task = model.get_attachment("ertacache")
    starts = [task.begin(coming(steps)) for steps in (STEPS, 8)]
    assert [start.plan.calls for start in starts] == [STEPS, 8]
    assert starts[0].observer is not starts[1].observer
    for start in reversed(starts):
        start.finish(over(start.plan.calls), torch.zeros(1))
    assert [{point.of for point in report.curve} for report in reports] == [{8}, {STEPS}]


def test_builtin_plan_is_fast_at_once_and_keeps_nothing(wan, sample, store):
    model, reports = cached(wan, store, Settings(speed=2.0), without_profile="built-in plan")
    result = sample(model)
    assert reports[0].computed == STEPS // 2
    assert not store.names()
    assert not reports[0].predicted_error
    assert 0.0 < error(result, sample()) < 0.25


def test_a_carried_plan_renders_the_same_where_the_profile_is_missing(wan, sample, store, recorded, tmp_path):
    from ertacache.comfy_erta.store import Store

    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    first = sample(model)
    assert plan_from_json(reports[0].plan).computed == STEPS // 2
    elsewhere = Store(tmp_path / "empty")
    again, found = cached(wan, elsewhere, Settings(speed=2.0), carried=reports[0].plan)
    assert torch.equal(sample(again), first)
    assert "carried" in codes(found[0])
    other, found = cached(wan, elsewhere, Settings(speed=1.5), carried=reports[0].plan, without_profile="built-in plan")
    sample(other)
    assert found[0].computed == round(STEPS / 1.5), "a turned knob beats the carried plan"
    shifted, found = cached(wan, elsewhere, Settings(speed=2.0), carried="{not json", without_profile="built-in plan")
    sample(shifted)
    assert "carried_refused" in codes(found[0])


def test_other_models_lora_refuses_a_connected_profile(wan, sample, store, recorded):
    from ertacache.comfy_erta.caching import ProfileMismatch

    profile = recorded()
    lora = wan.clone()
    key = "diffusion_model.blocks.0.ffn.0.weight"
    lora.add_patches({key: (torch.randn(128, 128),)}, 0.5)
    model, _ = cached(lora, store, Settings(), profile)
    with pytest.raises(ProfileMismatch, match="made with other LoRAs or model patches"):
        sample(model)
    store.save("base", profile)
    unconnected, reports = cached(lora, store, Settings(), without_profile="built-in plan")
    sample(unconnected)
    assert not reports[0].predicted_error, "with none connected it does not count as fitting"


@pytest.mark.parametrize(
    "changed", [{"steps": 20}, {"cfg": 4.0}, {"scheduler": "normal"}, {"sampler_name": "dpmpp_2m"}]
)
def test_other_settings_are_used_and_said(wan, sample, store, recorded, changed):
    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    sample(model, **changed)
    assert reports[0].reused > 0
    assert reports[0].notes, "a line says what differs"


def test_other_latent_shape_is_used_and_said(wan, sample, store, recorded):
    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    sample(model, latent={"samples": torch.zeros(2, 16, 3, 4, 6)})
    assert reports[0].reused > 0
    assert any(note.values.get("field") == "latent_shape" for note in reports[0].notes)


def test_unforeseeable_samplers_are_computed_in_full_and_say_so(wan, sample, store):
    for name in ("dpm_adaptive", "euler_cfg_pp"):
        model, reports = cached(wan, store, Settings(speed=2.0))
        assert torch.equal(sample(model, sampler_name=name), sample(sampler_name=name))
        assert reports[0].reused == 0
        assert codes(reports[0]) == ["computed_all"]


def test_few_steps_pass_through(wan, sample, store, recorded):
    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    for steps in (1, 2, 5):
        assert torch.equal(sample(model, steps=steps), sample(steps=steps))
        assert "too_few_calls" in codes(reports[-1])


def test_speed_beyond_reach_takes_the_nearest(wan, sample, store, recorded):
    model, reports = cached(wan, store, Settings(speed=50.0), recorded())
    sample(model)
    assert reports[0].computed == 2
    assert "speed_limited" in codes(reports[0])


@pytest.mark.parametrize("level", ["output", "blocks"])
@pytest.mark.parametrize("stop_at", [0, 1, 5, STEPS - 1])
def test_cancel_leaves_no_profile_no_tensor_and_no_wrapper(wan, sample, store, level, stop_at):
    import comfy.model_management as management
    from comfy.patcher_extension import WrappersMP

    before = {k: dict(v) if isinstance(v, dict) else v for k, v in vars(wan).items()}
    model, reports = cached(wan, store, Settings(speed=2.0, level=level))
    counter = Counter(model)
    entered = []

    def outer(executor, *args, **kwargs):
        entered.append(1)
        return executor(*args, **kwargs)

    def cancel(executor, x, timestep, *args, **kwargs):
        if cancel.calls == stop_at:
            raise management.InterruptProcessingException()
        cancel.calls += 1
        return executor(x, timestep, *args, **kwargs)

    cancel.calls = 0
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "outer", outer)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "cancel", cancel)
    with pytest.raises(management.InterruptProcessingException):
        sample(model)
    assert len(entered) == 1, "never sampled again after a cancel"
    assert not store.names() and not reports
    gc.collect()
    assert not [ref for ref in counter.outputs if ref() is not None], "a tensor of the run is still alive"
    model.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, "cancel")
    assert torch.equal(sample(model), sample()), "the next run is as a fresh one"
    assert set(vars(wan)) == set(before)


def test_errors_of_the_model_arrive_untouched(wan, sample, store, recorded):
    from comfy.patcher_extension import WrappersMP

    failure = torch.cuda.OutOfMemoryError("made up")
    model, _ = cached(wan, store, Settings(speed=2.0), recorded())

    def fail(executor, *args, **kwargs):
        raise failure

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "fail", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        sample(model)
    assert caught.value is failure


def test_the_second_node_in_a_row_replaces_the_first(wan, sample, store, recorded):
    profile = recorded()
    first, unheard = cached(wan, store, Settings(speed=3.0), profile)
    second, reports = cached(first, store, Settings(speed=2.0), profile)
    sample(second)
    assert reports[0].computed == STEPS // 2
    assert not unheard


def test_running_twice_with_one_model_gives_one_picture(wan, sample, store, recorded):
    """The run's state is not in the MODEL: a model that ComfyUI serves from its cache works the second time too."""
    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    first = sample(model)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(sample(model), first)
    torch.random.set_rng_state(state)
    assert [r.computed for r in reports] == [STEPS // 2] * 2


def test_first_call_behind_a_range_edge_is_computed(wan, sample, conds, store, recorded):
    import node_helpers

    early = node_helpers.conditioning_set_values(conds[0], {"start_percent": 0.0, "end_percent": 0.5})
    late = node_helpers.conditioning_set_values(conds[1], {"start_percent": 0.5, "end_percent": 1.0})
    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    positive = [*early, *late]
    result = sample(model, positive=positive)
    edge = float(wan.get_model_object("model_sampling").percent_to_sigma(0.5))
    plan = plan_from_json(reports[0].plan)
    behind = next(i for i, sigma in enumerate(plan.sigmas) if sigma <= edge)
    assert plan.compute[behind] and plan.corrections[behind] == 0.0
    assert error(result, sample(positive=positive)) < 0.25


def test_a_sampler_that_comes_elsewhere_than_foreseen_is_computed_from_there(wan, sample, store, recorded):
    from ertacache.comfy_erta import run as module

    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    task = module.attached_task(model)

    class Shifted:
        def begin(self, context):
            start = task.begin(context)
            wrong = (*start.sigmas[:4], *(0.9 * s for s in start.sigmas[4:]))
            return replace(start, sigmas=wrong)

    result = sample(module.attach(wan, Shifted()))
    assert not reports[0].complete
    assert "other_sigma" in codes(reports[0])
    assert error(result, sample()) < 0.25


def test_inpainting_and_partial_denoise_reuse(wan, sample, store, recorded):
    latent = {"samples": torch.randn(1, 16, 2, 4, 4), "noise_mask": torch.zeros(1, 1, 4, 4)}
    latent["noise_mask"][..., 2:] = 1.0
    model, reports = cached(wan, store, Settings(speed=1.5), recorded())
    inputs = {"latent": latent, "denoise": 0.6}
    result, reference = sample(model, **inputs), sample(**inputs)
    assert reports[0].reused > 0
    assert error(result, reference) < 0.25
    kept = (result - latent["samples"])[..., :2].abs().max()
    assert kept < 1e-4, "what the mask protects stays"


def test_paper_mode_adjusts_the_sigmas_and_ends_at_zero(wan, sample, store, recorded):
    import comfy.samplers

    settings = Settings(speed=2.0, mode="paper", level="blocks", timesteps=True)
    model, reports = cached(wan, store, settings, recorded("blocks"))
    result = sample(model)
    plan = plan_from_json(reports[0].plan)
    assert len(plan.schedule) == STEPS + 1 and plan.schedule[-1] == 0.0
    sampling = wan.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    assert plan.schedule[0] == pytest.approx(float(sigmas[0]))
    assert all(moved >= float(there) - 1e-6 for moved, there in zip(plan.schedule, sigmas, strict=True))
    assert plan.schedule[STEPS // 2] > float(sigmas[STEPS // 2]) + 1e-4, "reused steps are shorter"
    assert plan.sigmas == plan.schedule[:-1]
    assert reports[0].complete
    assert error(result, sample()) < 0.5


def test_no_host_synchronisation_on_a_reused_call(wan, sample, store, recorded):
    """Under a mode that refuses to read a scalar from a tensor; computed model calls are outside of it."""
    from comfy.patcher_extension import WrappersMP
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = str(func)
            assert "_local_scalar_dense" not in name and "nonzero" not in name, name
            return func(*args, **(kwargs or {}))

    model, reports = cached(wan, store, Settings(speed=2.0), recorded())
    reused = []

    def watch(executor, x, timestep, *args, **kwargs):
        computes = Counter.__new__(Counter)
        computes.calls = 0

        if watch.plan[len(reused)] == "1":
            reused.append(False)
            return executor(x, timestep, *args, **kwargs)
        with NoReads():
            reused.append(True)
            return executor(x, timestep, *args, **kwargs)

    sample(model)
    watch.plan = reports[0].compute
    watched = model.clone()
    # Registered first is outermost, so the per-run wrapper of the cache lies inside this one.
    watched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "watch", watch)
    sample(watched)
    assert sum(reused) == reports[1].reused > 0
