"""docs/compatibility/traps.md, T15 and T17 to T19: state lives for one run, nothing stays, no error is swallowed.

T16, state in an output that the server keeps, is tests/server/test_nodes.py's.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ertacache.erta.replay import Replay
from ertacache.erta.settings import Settings
from ertacache.tests.comfy.traps import (
    STEPS,
    cached,
    cfg_guider,
    empty,
    levels,
    phrase,
    profile,
    render,
    smooth,
    with_guider,
    wrapped,
)

pytestmark = pytest.mark.usefixtures("comfy_pack")


class Failure(RuntimeError):
    """An error of the model's own."""


def failures() -> dict[str, Callable[[], BaseException]]:
    import comfy.model_management as management

    return {
        "cancel": management.InterruptProcessingException,
        "error": lambda: Failure("made up"),
        "out of memory": lambda: torch.cuda.OutOfMemoryError("made up"),
    }


ENDINGS = ("cancel", "error", "out of memory")


def stopping(model: Any, at: int, failure: BaseException, kind: str = "predict_noise") -> Any:
    """A clone whose call ``at`` of a kind raises."""
    calls: list[int] = []

    def stop(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] == at:
            raise failure
        return executor(*args, **kwargs)

    return wrapped(model, kind, stop)


# T15: what is left behind


@dataclass(frozen=True)
class Seen:
    """What can be seen of a model from outside: each module's attributes and functions, and the patcher's own."""

    modules: dict[str, dict[str, int]]
    patcher: dict[str, Any]

    @classmethod
    def on(cls, patcher: Any) -> Seen:
        modules = {
            name: {key: id(value) if callable(value) else 0 for key, value in vars(module).items()}
            for name, module in patcher.model.named_modules()
        }
        kept = ("model_options", "wrappers", "callbacks", "attachments", "object_patches", "patches", "injections")
        return cls(modules, {name: repr(getattr(patcher, name)) for name in kept} | {"names": sorted(vars(patcher))})


def assert_nothing_is_left(level: str, ending: str) -> None:
    """After success, cancel, error or lack of memory, in a run that reuses and in one that records."""
    render()  # what ComfyUI itself leaves on a model is there after the first run
    before, full = Seen.on(smooth()), render()
    kept: list[weakref.ref[torch.Tensor]] = []
    observe = Replay.observe

    def watched(replay: Replay, i: int, key: str, feature: torch.Tensor) -> torch.Tensor:
        kept.append(weakref.ref(feature))
        return observe(replay, i, key, feature)

    failure = None if ending == "success" else failures()[ending]()
    base = smooth() if failure is None else stopping(smooth(), 8, failure)
    model, _ = cached(base, profile(level), speed=2.0, level=level)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replay, "observe", watched)
        with nullcontext() if failure is None else pytest.raises(type(failure)):
            render(model)
    del failure
    assert kept
    gc.collect()
    assert not [ref for ref in kept if ref() is not None], "a kept tensor is still alive"
    assert Seen.on(smooth()) == before, "something was left on the model"
    assert torch.equal(render(), full)


@levels
@pytest.mark.parametrize("ending", ["success", *ENDINGS])
def test_t15_nothing_is_left_of_a_run(level, ending):
    assert_nothing_is_left(level, ending)


def test_t15_a_holder_on_the_model_is_seen(monkeypatch):
    observe = Replay.observe

    def hoarding(replay: Replay, i: int, key: str, feature: torch.Tensor) -> torch.Tensor:
        smooth().model.diffusion_model.ertacache_state = feature
        return observe(replay, i, key, feature)

    monkeypatch.setattr(Replay, "observe", hoarding)
    try:
        with pytest.raises(AssertionError, match=r"still alive|left on the model"):
            assert_nothing_is_left("output", "success")
    finally:
        del smooth().model.diffusion_model.ertacache_state


@levels
def test_t15_two_runs_in_a_row_are_as_two_fresh_ones(level):
    """Another seed, prompt, length and step count each time, and the first again at the end."""
    changes = (
        {},
        {"seed": 6},
        {"positive": phrase(3)},
        {"latent": empty(frames=3)},
        {"steps": 15},
        {"cfg": 1.0},
        {"sampler_name": "dpmpp_2m"},
        {},
    )
    model, reports = cached(None, profile(level), speed=2.0, level=level)
    for changed in changes:
        alone, expected = cached(None, profile(level), speed=2.0, level=level)
        assert torch.equal(render(model, **changed), render(alone, **changed)), changed
        assert reports[-1].compute == expected[-1].compute
    assert all(report.reused for report in reports)


# T17: what a bypassed or deleted node leaves


def assert_bypassed_is_untouched(level: str) -> None:
    """A clone without the node gives what it gave before, at the old size and at a new one."""
    small = {"latent": empty(height=4, width=6)}
    before = render(), render(**small)
    module = smooth().model.diffusion_model
    functions = {name: getattr(type(module), name) for name in ("forward", "forward_orig", "_forward")}
    model, _ = cached(None, profile(level), speed=2.0, level=level)
    render(model)
    assert torch.equal(render(), before[0]) and torch.equal(render(smooth().clone(), **small), before[1])
    assert {name: getattr(type(module), name) for name in functions} == functions
    for owner in (module, smooth().model, *module.blocks):
        assert not {"forward", "forward_orig", "_forward", "apply_model", "_apply_model"} & set(vars(owner)), "patched"


@levels
def test_t17_a_bypassed_node_leaves_the_plain_model(level):
    assert_bypassed_is_untouched(level)


def test_t17_a_function_put_on_the_module_is_seen(monkeypatch):
    from ertacache.comfy_erta import run as module

    begin = module._begin

    def patching(task: Any, context: Any) -> Any:
        inner = context.model.model.diffusion_model
        monkeypatch.setattr(inner, "forward", inner.forward)
        return begin(task, context)

    monkeypatch.setattr(module, "_begin", patching)
    with pytest.raises(AssertionError, match="patched"):
        assert_bypassed_is_untouched("output")


# T18: only what lies upstream was changed


def with_lora(model: Any) -> Any:
    clone = model.clone()
    generator = torch.Generator().manual_seed(4)
    clone.add_patches({"diffusion_model.blocks.0.ffn.0.weight": (torch.randn(128, 128, generator=generator),)}, 0.05)
    return clone


def with_shift(model: Any) -> Any:
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 3.0)[0]


def other_weights(model: Any) -> Any:
    from ertacache.tests.comfy.conftest import make_wan

    return make_wan(torch.float32)


UPSTREAM = {"lora": with_lora, "shift": with_shift, "weights": other_weights}


@pytest.mark.parametrize("changed", UPSTREAM)
def test_t18_a_change_upstream_is_cached_anew_and_named(store, changed):
    """The node's own inputs are as before; the profile that fitted is refused, or its difference is named."""
    from ertacache.comfy_erta.caching import Caching, ProfileMismatch
    from ertacache.comfy_erta.run import attach, attached_task

    store.save("kept", profile())
    reports: list[Any] = []
    task = Caching(Settings(speed=2.0), store, reports.append, without_profile="built-in plan")
    first = attach(smooth(), task)
    render(first)
    again = attach(UPSTREAM[changed](smooth()), task)
    assert attached_task(again) is task and again.wrappers["outer_sample"]["ertacache"]
    render(again)
    assert reports[0].predicted_error and reports[1].reused
    named = {"lora": "other LoRAs", "shift": "shift", "weights": "another model file"}[changed]
    if reports[1].predicted_error:
        assert any(note.values.get("field") == named for note in reports[1].notes), reports[1].notes
        return
    connected, _ = cached(UPSTREAM[changed](smooth()), profile(), speed=2.0)
    with pytest.raises(ProfileMismatch, match=named):
        render(connected)


# T19: cancelled, failed, out of memory


@functools.cache
def plain_render() -> torch.Tensor:
    return render()


def assert_it_arrives(level: str, ending: str, at: int, store: Any, known: Any = None) -> None:
    """Raised at one model call: sampled once, the same object arrives, nothing is kept, the next run is a fresh one."""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    entered: list[int] = []

    def enter(executor: Any, *args: Any, **kwargs: Any) -> Any:
        entered.append(1)
        return executor(*args, **kwargs)

    failure = failures()[ending]()
    reports: list[Any] = []
    # The run's own call of the sampler lies inside ours, so what we call is counted.
    base = stopping(wrapped(smooth(), "sampler_sample", enter), at, failure, "predict_noise")
    model = attach(base, Caching(Settings(speed=2.0, level=level), store, reports.append, known))
    with pytest.raises(type(failure)) as caught:
        render(model)
    assert caught.value is failure
    assert len(entered) == 1, "sampled again"
    assert not reports and not store.names()
    # Also for ComfyUI, which counts a model as leaked when all its patched clones are gone before it is loaded anew.
    assert torch.equal(render(), plain_render())


@levels
@pytest.mark.parametrize("ending", ENDINGS)
def test_t19_what_is_raised_at_any_call_arrives(store, level, ending):
    for at in range(STEPS) if ending == "cancel" else (0, 5, STEPS - 1):
        assert_it_arrives(level, ending, at, store, profile(level))
        assert_it_arrives(level, ending, at, store)
    model, reports = cached(None, profile(level), speed=2.0, level=level)
    fresh, _ = cached(None, profile(level), speed=2.0, level=level)
    assert torch.equal(render(model), render(fresh))
    assert reports[0].reused == STEPS // 2


@levels
@pytest.mark.parametrize("ending", ENDINGS)
def test_t19_what_the_model_itself_raises_arrives(level, ending):
    failure = failures()[ending]()
    model, reports = cached(stopping(smooth(), 3, failure, "diffusion_model"), profile(level), speed=2.0, level=level)
    with pytest.raises(type(failure)) as caught:
        render(model)
    assert caught.value is failure and not reports
    assert torch.equal(render(), plain_render())


def test_t19_sampling_again_after_an_exception_is_seen(store, monkeypatch):
    from ertacache.comfy_erta import run as module

    observe_run = module._observe_run

    def stubborn(task: Any, watcher: Any, executor: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return observe_run(task, watcher, executor, *args, **kwargs)
        except Exception:  # noqa: BLE001 - the fault itself
            return executor(*args, **kwargs)

    monkeypatch.setattr(module, "_observe_run", stubborn)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        assert_it_arrives("output", "error", 4, store, profile())


def test_t19_a_cancel_while_the_sampler_is_probed_arrives():
    """Foreign sampler functions may look for a cancel themselves, also when they are only asked what they would do."""
    import comfy.model_management as management
    import comfy.samplers

    def looking(model, x, sigmas, extra_args=None, callback=None, disable=None):
        management.throw_exception_if_processing_interrupted()
        return comfy.samplers.k_diffusion_sampling.sample_euler(model, x, sigmas, extra_args, callback, disable)

    model, reports = cached(speed=2.0)
    management.interrupt_current_processing()
    try:
        with pytest.raises(management.InterruptProcessingException):
            with_guider(cfg_guider(model), sampler=comfy.samplers.KSAMPLER(looking))
    finally:
        management.interrupt_current_processing(False)
    assert not reports
    with_guider(cfg_guider(model), sampler=comfy.samplers.KSAMPLER(looking))
    assert reports[0].reused == STEPS // 2


@pytest.mark.parametrize("kind", [AttributeError, KeyError, ZeroDivisionError])
def test_a_sampler_function_that_cannot_be_probed_is_computed_in_full(kind):
    """It looks for something on the model that only a real one has, or does what made-up latents do not allow."""
    import comfy.samplers

    def particular(model, x, sigmas, extra_args=None, callback=None, disable=None):
        if x.numel() < 100:
            raise kind("not for such a small latent")
        return comfy.samplers.k_diffusion_sampling.sample_euler(model, x, sigmas, extra_args, callback, disable)

    model, reports = cached(speed=2.0)
    sampler = comfy.samplers.KSAMPLER(particular)
    result, full = (with_guider(cfg_guider(one), sampler=sampler) for one in (model, smooth()))
    assert torch.equal(result, full)
    assert ["cannot be probed" in note.text for note in reports[0].notes] == [True]
