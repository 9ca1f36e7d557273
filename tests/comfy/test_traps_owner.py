"""docs/compatibility/traps.md, T8 to T12: what is kept for one cond, pass or window is never used for another."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ertacache.erta.plan_file import plan_from_json
from ertacache.tests.comfy import traps
from ertacache.tests.comfy.traps import (
    GUIDANCE,
    STEPS,
    cached,
    cfg_guider,
    codes,
    counted,
    error,
    kept_apart,
    levels,
    node,
    phrase,
    profile,
    render,
    smooth,
    with_guider,
)

pytestmark = pytest.mark.usefixtures("comfy_pack")

SPEED = 2.0


def one() -> Any:
    return phrase(0)


@functools.cache
def full_render(positive: Callable[[], Any] = one) -> torch.Tensor:
    return render(positive=positive())


@functools.cache
def single(level: str) -> float:
    """Error that one positive and one negative are left with at SPEED: what all the others are measured against."""
    model, _ = cached(None, profile(level), speed=SPEED, level=level)
    return error(render(model), full_render())


def assert_as_good_as_a_single_cond(level: str, base: Any, full: torch.Tensor, sample: Callable[[Any], Any]) -> Any:
    model, reports = cached(base, profile(level), speed=SPEED, level=level)
    found = error(sample(model), full)
    (report,) = reports
    assert report.computed == sum(plan_from_json(report.plan).compute), f"not as planned: {report.notes}"
    assert 0.0 < found < 2.0 * single(level) + 1e-4, "the error is not that of a single cond"
    return report


# T8: guidance in one call or in two


def assert_split_is_batched(wan: Any, sample: Any, level: str) -> None:
    results, patterns = [], []
    for split in (lambda call: False, lambda call: True, lambda call: call % 3 == 1):
        calls = itertools.count()
        patch = pytest.MonkeyPatch()
        known = wan.model.memory_required

        def required(*args, split=split, calls=calls, known=known, **kwargs):
            # Asked once or twice for each batch: two model calls in a row may be split differently.
            return 1e30 if split(next(calls)) else known(*args, **kwargs)

        patch.setattr(wan.model, "memory_required", required)
        model, reports = cached(wan, speed=2.0, level=level)
        results.append(sample(model))
        patterns.append((reports[0].compute, reports[0].computed))
        patch.undo()
    assert patterns == [patterns[0]] * 3
    assert patterns[0][1] == STEPS // 2
    for result in results[1:]:
        assert error(result, results[0]) < 1e-4, "conds got what was another's"


@levels
def test_t08_split_guidance_gives_the_plan_and_the_picture_of_batched_guidance(wan, sample, level):
    assert_split_is_batched(wan, sample, level)


def test_t08_residuals_kept_by_their_place_in_the_batch_are_seen(wan, sample, monkeypatch):
    from ertacache.comfy_erta import blocks as module

    forward = module.BlocksLevel.forward

    def counting(level: Any, *args: Any, **kwargs: Any) -> Any:
        level.place = itertools.count()
        return forward(level, *args, **kwargs)

    monkeypatch.setattr(module.BlocksLevel, "forward", counting)
    monkeypatch.setattr(module.BlocksLevel, "_key", lambda level, uuid, window: str(next(level.place)))
    with pytest.raises(AssertionError):
        assert_split_is_batched(wan, sample, "blocks")


def test_t08_output_level_decides_once_for_all_conds(wan, sample, monkeypatch):
    """Counted at the model: a reused model call asks for neither of the two."""
    kept_apart(monkeypatch, wan)
    base, calls = counted(wan)
    model, _ = cached(base, speed=2.0)
    sample(model)
    assert len(calls) == 2 * (STEPS // 2)
    assert calls[::2] == calls[1::2]


# T9: more conds than two


def combined() -> Any:
    return [*phrase(0), *phrase(1)]


def averaged() -> Any:
    import nodes

    return nodes.ConditioningAverage().addWeighted(phrase(0), phrase(1), 0.5)[0]


def concatenated() -> Any:
    import nodes

    return nodes.ConditioningConcat().concat(phrase(0), phrase(1))[0]


def half_area(**where: float) -> Any:
    size = {"width": 1.0, "height": 1.0, "temporal": 1.0, "x": 0.0, "y": 0.0, "z": 0.0, **where}
    return node("nodes_video_model", "ConditioningSetAreaPercentageVideo", phrase(1), strength=1.0, **size)


def with_area() -> Any:
    return [*phrase(0), *half_area(width=0.5)]


def with_mask() -> Any:
    import nodes

    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1.0
    one, other = (
        nodes.ConditioningSetMask().append(phrase(number), mask, "default", 1.0)[0]
        for number, mask in ((0, left), (1, 1.0 - left))
    )
    return [*one, *other]


def regional() -> Any:
    """Two halves and one for what is between, as regional prompts are built."""
    return [*half_area(height=0.5), *half_area(height=0.5, y=0.5), *with_mask()]


POSITIVES = (combined, averaged, concatenated, with_area, with_mask, regional)


@levels
@pytest.mark.parametrize("positive", POSITIVES, ids=lambda make: make.__name__)
def test_t09_more_conds_than_two_are_as_good_as_one(level, positive):
    full = full_render(positive)
    assert_as_good_as_a_single_cond(level, smooth(), full, lambda model: render(model, positive=positive()))


@pytest.mark.parametrize("positive", (combined, with_area), ids=lambda make: make.__name__)
def test_t09_more_conds_than_two_in_separate_calls(monkeypatch, positive):
    kept_apart(monkeypatch, smooth())
    full = full_render(positive)
    assert_as_good_as_a_single_cond("blocks", smooth(), full, lambda model: render(model, positive=positive()))


def test_t09_conds_kept_as_positive_and_negative_only_are_seen(monkeypatch):
    from ertacache.comfy_erta import blocks as module

    forward = module.BlocksLevel.forward

    def by_role(level: Any, executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = next(arg for arg in args if isinstance(arg, dict) and "uuids" in arg)
        level.roles = iter(options["cond_or_uncond"])
        return forward(level, executor, *args, **kwargs)

    monkeypatch.setattr(module.BlocksLevel, "forward", by_role)
    monkeypatch.setattr(module.BlocksLevel, "_key", lambda level, uuid, window: str(next(level.roles)))
    with pytest.raises(AssertionError):
        test_t09_more_conds_than_two_are_as_good_as_one("blocks", combined)


def basic_guider(model: Any) -> Any:
    return node("nodes_custom_sampler", "BasicGuider", model, phrase(0))


def dual_cfg(model: Any) -> Any:
    return node("nodes_custom_sampler", "DualCFGGuider", model, phrase(0), phrase(1), phrase(-1), 3.0, 3.0, "regular")


def nested_dual_cfg(model: Any) -> Any:
    return node("nodes_custom_sampler", "DualCFGGuider", model, phrase(0), phrase(1), phrase(-1), 3.0, 3.0, "nested")


def perp_neg(model: Any) -> Any:
    return node("nodes_perpneg", "PerpNegGuider", model, phrase(0), phrase(1), phrase(-1), GUIDANCE, 1.0)


@levels
@pytest.mark.parametrize("guider", [cfg_guider, basic_guider, dual_cfg, nested_dual_cfg, perp_neg])
def test_t09_every_guider_is_as_good_as_a_single_cond(level, guider):
    full = with_guider(guider(smooth()))
    assert_as_good_as_a_single_cond(level, smooth(), full, lambda model: with_guider(guider(model)))


# T10: conditioning that holds for a part of the run


def sigma_at(percent: float) -> float:
    return float(smooth().get_model_object("model_sampling").percent_to_sigma(percent))


def by_ranges() -> Any:
    return [*phrase(0, start_percent=0.0, end_percent=0.45), *phrase(1, start_percent=0.45, end_percent=1.0)]


def by_control() -> Any:
    """A ControlNet as far as ComfyUI looks at one: what it hands the model is a Wan's own business to ignore."""
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, *args: Any, **kwargs: Any) -> None:
            return None

        def copy(self) -> Any:
            copied = Control()
            self.copy_to(copied)
            return copied

    control = Control().set_cond_hint(torch.zeros(1, 8, 8, 3), 1.0, (0.0, 0.45))
    return phrase(0, control=control, control_apply_to_uncond=False)


def lora_hooks(*keyframes: tuple[float, float]) -> Any:
    """A LoRA on some blocks by hooks, with strengths from percents on."""
    import comfy.hooks

    generator = torch.Generator().manual_seed(8)
    lora = {}
    for block in range(2):
        weight = smooth().model.diffusion_model.blocks[block].ffn[0].weight
        name = f"diffusion_model.blocks.{block}.ffn.0"
        lora[f"{name}.lora_up.weight"] = 0.1 * torch.randn(weight.shape[0], 4, generator=generator)
        lora[f"{name}.lora_down.weight"] = 0.1 * torch.randn(4, weight.shape[1], generator=generator)
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    group = comfy.hooks.HookKeyframeGroup()
    for strength, start in keyframes:
        group.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(group)
    return hooks


def by_hooks() -> Any:
    import comfy.hooks

    return comfy.hooks.set_hooks_for_conditioning(phrase(0), lora_hooks((0.0, 0.0), (1.0, 0.45)))


def assert_the_edge_is_computed(level: str, positive: Callable[[], Any]) -> None:
    base, calls = counted(smooth())
    model, reports = cached(base, profile(level), speed=SPEED, level=level)
    found = error(render(model, positive=positive()), full_render(positive))
    (report,) = reports
    behind = next(i for i, sigma in enumerate(report.sigmas) if sigma <= sigma_at(0.45))
    plan = plan_from_json(report.plan)
    assert behind in plan.resets and report.compute[behind] == "1", "the first model call behind the edge is reused"
    assert any(np.isclose(sigma, report.sigmas[behind], rtol=1e-4) for sigma in calls)
    assert report.computed == sum(plan.compute)
    assert found < 0.1


@levels
@pytest.mark.parametrize("positive", [by_ranges, by_control, by_hooks])
def test_t10_first_call_behind_an_edge_is_computed(level, positive):
    assert_the_edge_is_computed(level, positive)


@pytest.mark.parametrize("positive", [by_ranges, by_control, by_hooks])
def test_t10_edges_that_are_not_looked_for_are_seen(monkeypatch, positive):
    from ertacache.comfy_erta import run as module

    monkeypatch.setattr(module, "conditioning_edges", lambda *args: ())
    with pytest.raises(AssertionError, match="behind the edge"):
        assert_the_edge_is_computed("output", positive)


# T11: more passes of the same cond


def skip_layer(start: float, end: float, layers: str = "1") -> Any:
    """Skip layer guidance on the model: one more pass of the positive from ``start`` to ``end``."""
    return node("nodes_slg", "SkipLayerGuidanceDiT", smooth(), 2.0, start, end, layers, "", 0.0)


def perturbed_attention() -> Any:
    """PAG patches nothing that a Wan has, but it does ask for the positive once more."""
    return node("nodes_pag", "PerturbedAttentionGuidance", smooth(), 2.0)


@levels
@pytest.mark.parametrize("layers", ["0", "1", "0, 1"])
def test_t11_skip_layer_guidance_throughout_is_as_good_as_without(level, layers):
    """Also where the first or the last block is skipped, at which residuals begin and end."""
    base = skip_layer(0.0, 1.0, layers)
    assert_as_good_as_a_single_cond(level, base, render(base), render)


def test_t11_residuals_that_ignore_the_pass_are_seen(monkeypatch):
    from ertacache.comfy_erta import blocks as module

    monkeypatch.setattr(module.BlocksLevel, "_key", lambda level, uuid, window: str(uuid))
    with pytest.raises(AssertionError):
        test_t11_skip_layer_guidance_throughout_is_as_good_as_without("blocks", "1")


@pytest.mark.parametrize("layers", ["0", "1"])
def test_t11_patches_put_in_before_the_pass_fills_their_slots_are_seen(monkeypatch, layers):
    """Skip layer guidance takes the slots of the blocks it skips: first and last patch must be around its own."""
    from ertacache.comfy_erta import blocks as module

    patched = module.with_patches

    def outdone(options: dict[str, Any], slots: Any, patch: Any) -> dict[str, Any]:
        theirs = options.get("patches_replace", {}).get("dit", {})
        found = patched(options, slots, patch)
        found["patches_replace"]["dit"].update(theirs)
        return found

    monkeypatch.setattr(module, "with_patches", outdone)
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        test_t11_skip_layer_guidance_throughout_is_as_good_as_without("blocks", layers)


def guidance_of_three(model: Any, low: float, high: float) -> Any:
    """As ComfyUI's CFG Override does in newer versions: another guidance between two sigmas, by a wrapper."""
    sigma_lo, sigma_hi = sigma_at(high), sigma_at(low)

    def override(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        if not sigma_lo <= float(args[1].flatten()[0]) <= sigma_hi:
            return executor(*args, **kwargs)
        saved, guider.cfg = guider.cfg, 3.0
        try:
            return executor(*args, **kwargs)
        finally:
            guider.cfg = saved

    return traps.wrapped(model, "predict_noise", override)


def attribute_range(model: Any, low: float, high: float) -> Any:
    """A patch as an object with a range of its own, as ComfyUI's newer model patches are."""

    class Louder:
        def __init__(self) -> None:
            self.sigma_start, self.sigma_end = sigma_at(low), sigma_at(high)

        def __call__(self, args: dict[str, Any]) -> torch.Tensor:
            within = self.sigma_end <= float(args["sigma"][0]) <= self.sigma_start
            return args["denoised"] + (0.3 * (args["cond_denoised"] - args["uncond_denoised"]) if within else 0.0)

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(Louder())
    return clone


def by_skipped_layers(model: Any, low: float, high: float) -> Any:
    return node("nodes_slg", "SkipLayerGuidanceDiT", model, 2.0, low, high, "1", "", 0.0)


def assert_hidden_edges_are_found(level: str, ranged: Callable[..., Any]) -> None:
    base = ranged(smooth(), 0.3, 0.7)
    report = assert_as_good_as_a_single_cond(level, base, render(base), render)
    for edge in (sigma_at(0.3), sigma_at(0.7)):
        behind = next(i for i, sigma in enumerate(report.sigmas) if sigma <= edge)
        assert behind in plan_from_json(report.plan).resets, "reuse goes on across the edge"
        assert report.compute[behind] == "1"


@levels
@pytest.mark.parametrize("ranged", [by_skipped_layers, guidance_of_three, attribute_range])
def test_t11_an_edge_that_only_a_function_knows_is_computed(level, ranged):
    assert_hidden_edges_are_found(level, ranged)


@pytest.mark.parametrize("ranged", [by_skipped_layers, guidance_of_three, attribute_range])
def test_t11_hidden_edges_that_are_not_looked_for_are_seen(monkeypatch, ranged):
    from ertacache.comfy_erta import run as module

    monkeypatch.setattr(module, "guidance_edges", lambda *args: ())
    with pytest.raises(AssertionError):
        assert_hidden_edges_are_found("output", ranged)


def test_t11_an_edge_that_nobody_can_find_is_noticed_on_the_way(monkeypatch):
    """Then only the residuals of the computed model calls show it: the skipped interval after the next one is
    computed.
    """
    from ertacache.comfy_erta import run as module

    monkeypatch.setattr(module, "guidance_edges", lambda *args: ())
    base = by_skipped_layers(smooth(), 0.3, 0.7)
    model, reports = cached(base, profile(), speed=SPEED)
    render(model)
    assert "unlike_profile" in codes(reports[0]), reports[0].notes
    assert reports[0].computed > sum(plan_from_json(reports[0].plan).compute)


@levels
def test_t11_perturbed_attention_guidance_is_as_good_as_without(level):
    base = perturbed_attention()
    assert_as_good_as_a_single_cond(level, base, render(base), render)


# T12: context windows


def windowed(schedule: str) -> Any:
    """13 latent frames by windows of 4 with an overlap of 2; without what newer versions ask for besides."""
    from comfy_extras.nodes_context_windows import WanContextWindowsManualNode as Windows

    newer = {"freenoise": False} if "freenoise" in inspect.signature(Windows.execute).parameters else {}
    return Windows.execute(smooth(), 13, 5, schedule, 1, False, "pyramid", **newer).result[0]


def render_long(model: Any) -> torch.Tensor:
    return render(model, latent=traps.empty(frames=13, height=4, width=4))


def assert_windows_follow_the_plan(level: str) -> Any:
    base, calls = counted(windowed("standard_static"))
    full = render_long(base)
    once = len(calls) // STEPS
    assert once > 1, "there are several windows"
    calls.clear()
    model, reports = cached(base, profile(level), speed=SPEED, level=level)
    found = error(render_long(model), full)
    (report,) = reports
    assert report.computed == sum(plan_from_json(report.plan).compute) == round(STEPS / SPEED)
    assert found < 2.0 * single(level) + 1e-4
    if level == "output":
        assert len(calls) == once * report.computed, "the whole latent is reused, above the windows"


@levels
def test_t12_context_windows_follow_the_plan_exactly(level):
    assert_windows_follow_the_plan(level)


def test_t12_residuals_that_ignore_the_window_are_seen(monkeypatch):
    from ertacache.comfy_erta import blocks as module

    monkeypatch.setattr(module.BlocksLevel, "_key", lambda level, uuid, window: str(uuid))
    with pytest.raises(AssertionError):
        assert_windows_follow_the_plan("blocks")


def test_t12_windows_that_move_are_computed_where_none_was_kept():
    """The uniform schedule shifts its windows from step to step: blocks level then knows only some of them."""
    base = windowed("standard_uniform")
    model, reports = cached(base, speed=SPEED, level="blocks")
    assert error(render_long(model), render_long(base)) < 2.0 * single("blocks") + 1e-4
    assert reports[0].computed + reports[0].reused == STEPS
