"""docs/compatibility/traps.md, T21 to T24: other nodes on the model, torch.compile, what a reused model call costs.

T20, private imports, is tests/core/test_structure.py's; the control inputs of T21 are tests/comfy/test_models.py's.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ertacache.erta.replay import Replay
from ertacache.tests.comfy.conftest import make_wan
from ertacache.tests.comfy.traps import (
    LEVELS,
    STEPS,
    cached,
    codes,
    counted,
    error,
    levels,
    measure,
    node,
    profile,
    render,
    smooth,
    trained,
    wrapped,
)

pytestmark = pytest.mark.usefixtures("comfy_pack")


# T21: patches on the attention


def guided_attention(model: Any, strength: float) -> Any:
    """An attention patch as NAG's: what the model attends to is moved, inside every block."""
    calls: list[int] = []

    def override(attention: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return attention(*args, **kwargs) * (1.0 + strength)

    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = override
    clone.calls_of_the_patch = calls
    return clone


@levels
def test_t21_attention_patches_act_as_without_the_cache(level):
    """To the bit where all is computed; at 2x turning one up moves the picture as much as it does without."""
    weak, strong = (guided_attention(smooth(), strength) for strength in (0.1, 0.4))
    assert torch.equal(render(cached(weak, speed=1.0, level=level)[0]), render(weak))
    computed, _ = cached(weak, profile(level), speed=2.0, level=level, protect_start=STEPS)
    assert torch.equal(render(computed), render(weak))
    pictures = [render(cached(model, profile(level), speed=2.0, level=level)[0]) for model in (weak, strong)]
    moved, full = error(*pictures), error(render(weak), render(strong))
    assert 0.8 * full < moved < 1.2 * full


# T22: single slots, shared keys, switches of the whole process


def easy(model: Any) -> Any:
    return node("nodes_easycache", "EasyCacheNode", model, 0.2, 0.15, 0.95, False)


def lazy(model: Any) -> Any:
    return node("nodes_easycache", "LazyCacheNode", model, 0.2, 0.15, 0.95, False)


def teacache_like(model: Any) -> Any:
    """In the one slot that a function around the model has, as TeaCache, MagCache and WaveSpeed do it."""

    def around(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        return apply_model(args["input"], args["timestep"], **args["c"])

    around.__module__ = "custom_nodes.ComfyUI-TeaCache.nodes"
    clone = model.clone()
    clone.set_model_unet_function_wrapper(around)
    return clone


def assert_the_other_cache_is_left_alone(level: str, other: Callable[[Any], Any], ours_first: bool, store: Any) -> None:
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach
    from ertacache.erta.settings import Settings

    model = trained(torch.bfloat16)  # in float32 EasyCache spoils a flow model by itself: T1
    reports: list[Any] = []
    task = Caching(Settings(speed=2.0, level=level), store, reports.append)
    both = other(attach(model, task)) if ours_first else attach(other(model), task)
    assert torch.equal(render(both), render(other(model))), "the two skip on top of each other"
    assert codes(reports[0]) == ["other_caches"]
    assert not store.names(), "what another cache made up was recorded"


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "ours last"])
@pytest.mark.parametrize("other", [easy, lazy, teacache_like])
def test_t22_another_cache_is_named_and_left_alone(store, other, ours_first):
    assert_the_other_cache_is_left_alone("output", other, ours_first, store)


def test_t22_two_caches_at_once_are_seen(store, monkeypatch):
    from ertacache.comfy_erta import run as module

    monkeypatch.setattr(module, "other_caches", lambda options: ())
    with pytest.raises(AssertionError):
        assert_the_other_cache_is_left_alone("output", easy, False, store)


def test_t22_a_profile_is_not_measured_through_another_cache():
    from ertacache.comfy_erta.measuring import ProfileIncomplete
    from ertacache.tests.comfy.traps import measure

    with pytest.raises(ProfileIncomplete, match="easycache is on this model too"):
        measure(lambda model, run: render(model, seed=run), "output", easy(smooth()))


def around_the_model(model: Any) -> Any:
    def louder(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        return 1.1 * apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(louder)
    return clone


def on_a_block(model: Any) -> Any:
    def halved(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return {"img": args["img"] + 0.5 * (extra["original_block"](args)["img"] - args["img"])}

    clone = model.clone()
    for index in range(2):
        clone.set_model_patch_replace(halved, "dit", "double_block", index)
    return clone


def around_the_forward(model: Any) -> Any:
    def louder(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 1.1 * executor(*args, **kwargs)

    return wrapped(model, "diffusion_model", louder)


@levels
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "ours last"])
@pytest.mark.parametrize("other", [around_the_model, on_a_block, around_the_forward])
def test_t22_other_patches_go_on_acting(level, other, ours_first):
    """In either order, with the plan as it is; nothing has to be said about what does not disturb."""
    full = render(other(smooth()))
    assert error(full, render()) > 0.05, "the patch does something"
    ours, reports = cached(smooth() if ours_first else other(smooth()), profile(level), speed=2.0, level=level)
    result = render(other(ours) if ours_first else ours)
    assert error(result, full) < 0.03
    assert reports[0].computed == STEPS // 2


@levels
def test_t22_of_two_of_ours_the_last_one_counts(level):
    first, unheard = cached(None, profile(level), speed=3.0, level=level)
    second, reports = cached(first, profile(level), speed=2.0, level=level)
    alone, _ = cached(None, profile(level), speed=2.0, level=level)
    assert torch.equal(render(second), render(alone))
    assert not unheard and reports[0].computed == STEPS // 2


def host_functions() -> dict[str, int]:
    """Identity of every function and class in what packs are known to replace."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sample
    import comfy.samplers
    import execution

    modules = (comfy.model_base, comfy.model_patcher, comfy.sample, comfy.samplers, execution)
    owners = [*modules, comfy.samplers.CFGGuider, comfy.samplers.KSAMPLER, comfy.model_base.BaseModel]
    return {f"{owner.__name__}.{k}": id(v) for owner in owners for k, v in vars(owner).items() if callable(v)}


def assert_the_host_is_untouched(pack: Any, levels: tuple[str, ...] = LEVELS) -> None:
    """Also by executing the pack's own __init__ once more."""
    import torch._dynamo.config as dynamo

    before, switches = host_functions(), copy.deepcopy(dynamo.get_config_copy())
    pack.__spec__.loader.exec_module(pack)
    for level in levels:
        render(cached(None, profile(level), speed=2.0, level=level)[0])
    assert host_functions() == before, "a function of ComfyUI's was replaced"
    assert dynamo.get_config_copy() == switches, "a switch of torch.compile was moved"


def test_t22_nothing_of_the_host_is_replaced_or_switched(comfy_pack):
    assert_the_host_is_untouched(comfy_pack)


@pytest.mark.parametrize("what", ["function", "switch"])
def test_t22_a_replaced_function_or_a_moved_switch_is_seen(comfy_pack, monkeypatch, what):
    import comfy.samplers
    import torch._dynamo.config as dynamo

    close, before = Replay.close, dynamo.suppress_errors

    def meddling(replay: Replay) -> None:
        if what == "function":
            monkeypatch.setattr(comfy.samplers, "cond_cat", lambda conds: {})
        else:
            dynamo.suppress_errors = not before
        close(replay)

    monkeypatch.setattr(Replay, "close", meddling)
    try:
        with pytest.raises(AssertionError, match=r"was replaced|was moved"):
            assert_the_host_is_untouched(comfy_pack, levels=("output",))
    finally:
        dynamo.suppress_errors = before


# T23: what torch.compile makes of it


def compiled(model: Any) -> Any:
    return node("nodes_torch_compile", "TorchCompileModel", model, "eager")


def graphs(model: Any, times: int = 2) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """What Dynamo counts over some renders (breaks, frames, graphs, recompiles), and what was rendered."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    from ertacache.bench.full_count import steady_counts

    torch._dynamo.reset()
    counters.clear()
    with steady_counts():
        rendered = [render(model) for _ in range(times)]
    counted_now = {kind: dict(counters[kind]) for kind in ("frames", "stats", "recompiles")}
    return counted_now | {"breaks": sum(counters["graph_break"].values())}, rendered


@pytest.mark.filterwarnings("ignore")
def test_t23_output_level_adds_no_graph_break_no_frame_and_no_recompile():
    """The compile node before ours and after it, as without ours."""
    small = make_wan(torch.float32, blocks=1)
    plain, _ = graphs(compiled(small))
    assert plain["frames"]["ok"] > 0
    before, reports = cached(compiled(small), speed=2.0)
    assert graphs(before)[0] == plain
    after, others = cached(small, speed=2.0)
    assert graphs(compiled(after))[0] == plain
    assert [report.computed for report in (*reports, *others)] == [STEPS // 2] * 4


@pytest.mark.filterwarnings("ignore")
def test_t23_blocks_level_follows_its_plan_in_a_compiled_model():
    """From the first render on, where the compiled model contains our wrappers; a second render compiles nothing."""
    small = make_wan(torch.float32, blocks=2)
    known = measure(lambda model, run: render(model, seed=40 + run), "blocks", small)
    settings = {"speed": 2.0, "level": "blocks"}
    expected = render(cached(small, known, **settings)[0])
    before, reports = cached(compiled(small), known, **settings)
    after, others = cached(small, known, **settings)
    for model in (before, compiled(after)):
        (once, first), (twice, both) = graphs(model, 1), graphs(model, 2)
        assert all(error(result, expected) < 1e-5 for result in (*first, *both))
        assert once["frames"] == twice["frames"] and once["breaks"] == twice["breaks"]
        assert once["breaks"] < 10, "and the number of blocks does not add to them"
    for report in (*reports, *others):
        assert report.computed == STEPS // 2 and report.reused == STEPS // 2, report.notes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("level", LEVELS)
def test_t23_a_profile_recorded_on_a_compiled_model_is_the_same(level):
    import torch._dynamo

    small = make_wan(torch.float32, blocks=2)
    torch._dynamo.reset()
    plain, through = (
        measure(lambda model, run: render(model, seed=40 + run), level, model) for model in (small, compiled(small))
    )
    for table, other in zip(plain.tables, through.tables, strict=True):
        np.testing.assert_allclose(table.gram, other.gram, rtol=1e-4)
        np.testing.assert_allclose(table.l1, other.l1, rtol=1e-3, atol=1e-6)


# T24: what a reused model call waits for, and what is held


class NoReads(TorchDispatchMode):
    """Refuses what waits for a GPU: a number read from a tensor, a search, a comparison of two."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        assert not any(waits in name for waits in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default")), (
            f"{name} in a reused model call"
        )
        return function(*args, **(kwargs or {}))


def assert_nothing_is_waited_for() -> None:
    """Reused model calls at output level, where no other code than ours runs in them."""
    pattern: list[str] = []
    calls: list[int] = []

    def guarded(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if not pattern or pattern[0][len(calls) - 1] == "1":
            return executor(*args, **kwargs)
        with NoReads():
            return executor(*args, **kwargs)

    model, reports = cached(wrapped(smooth(), "predict_noise", guarded), profile(), speed=2.0)
    render(model)
    pattern.append(reports[0].compute)
    calls.clear()
    render(model)
    assert reports[1].reused == STEPS // 2


def test_t24_a_reused_call_reads_no_number():
    assert_nothing_is_waited_for()


def test_t24_a_comparison_with_a_number_is_seen(monkeypatch):
    predict = Replay.predict

    def comparing(replay: Replay, i: int, key: str) -> torch.Tensor | None:
        found = predict(replay, i, key)
        return found if found is None or found.abs().max() > 0.0 else None

    monkeypatch.setattr(Replay, "predict", comparing)
    with pytest.raises(AssertionError, match="in a reused model call"):
        assert_nothing_is_waited_for()


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_t24_at_most_three_latents_are_held(sampler):
    """Whatever the number of conds; in float32, as the latent is here."""
    base, _ = counted(smooth())
    model, reports = cached(base, speed=2.0, predictor="auto")
    latent = render(model, sampler_name=sampler)
    assert 0 < reports[0].cache_bytes <= 3 * latent.nbytes


def test_t24_blocks_level_holds_what_it_says():
    """Two residuals per cond at most: (tokens, width) each, in float32 here."""
    model, reports = cached(None, profile("blocks"), speed=2.0, level="blocks")
    render(model)
    tokens, width, conds = 2 * 4 * 4, 128, 2
    assert 0 < reports[0].cache_bytes <= 2 * conds * tokens * width * 4


def test_t24_offloaded_the_picture_is_the_same_to_the_bit():
    """And at output level, which has nothing to offload, nothing is said."""
    from ertacache.comfy_erta.run import attach, attached_task

    for level in LEVELS:
        model, reports = cached(None, profile(level), speed=2.0, level=level)
        task = dataclasses.replace(attached_task(model), offload=True)
        apart = attach(model, task)
        assert torch.equal(render(apart), render(model))
        offloaded, here = reports
        assert offloaded.cache_bytes == here.cache_bytes and offloaded.reused == here.reused == STEPS // 2
        assert ("offloaded" in codes(offloaded)) == (level == "blocks")
