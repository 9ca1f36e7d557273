"""Number formats of weights and features, weights that are streamed, LoRAs, and one model for clips of every size.

The formats are those of ComfyUI's own loader, patched so that the device computes in bfloat16 or float16 as a card
does; a CPU would compute in float32. Streaming is that of --lowvram and --novram: ComfyUI's own loading, patched so
that the CPU is a card with so much memory; on a GPU these tests are skipped. What a second device is needed for (copies
to it, pinned memory, streams) is not seen here.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ertacache.erta.plan_file import plan_from_json
from ertacache.erta.planner import MIN_CALLS
from ertacache.erta.profile import Profile
from ertacache.erta.replay import Replay
from ertacache.erta.settings import Settings
from ertacache.tests.comfy.conftest import only_on_cpu, wan_weights
from ertacache.tests.comfy.test_samplers import masked
from ertacache.tests.comfy.test_traps_lifetime import Seen
from ertacache.tests.comfy.traps import STEPS, cached, codes, empty, error, levels, measure, phrase, render

pytestmark = pytest.mark.usefixtures("comfy_pack")

# As in test_models.py: random weights, another seed and prompt than the two recorded ones.
# At blocks level the prediction leaves out what the model's head does, and no error response is measured there.
FACTOR = {"output": 2.0, "blocks": 5.0}


@pytest.fixture(scope="module", autouse=True)
def in_inference_mode(comfy_pack: Any) -> Iterator[None]:
    """As ComfyUI runs all of its nodes, loaders too; some quantised weights cannot do without."""
    with torch.inference_mode():
        yield
    known.cache_clear()
    load.cache_clear()


# Number formats


@dataclass(frozen=True)
class Format:
    """dtype of the linear layers' weights, dtype that is computed in; scaled: how a checkpoint says that it is."""

    weights: torch.dtype
    compute: torch.dtype
    scaled: str = ""


FORMATS = {
    "float32": Format(torch.float32, torch.float32),
    "bfloat16": Format(torch.bfloat16, torch.bfloat16),
    "float16": Format(torch.float16, torch.float16),
    "bfloat16 in float32": Format(torch.bfloat16, torch.float32),
    "fp8_e4m3fn in bfloat16": Format(torch.float8_e4m3fn, torch.bfloat16),
    "fp8_e5m2 in bfloat16": Format(torch.float8_e5m2, torch.bfloat16),
    "fp8 scaled": Format(torch.float8_e4m3fn, torch.bfloat16, "scaled_fp8"),
    "fp8 scaled, by metadata": Format(torch.float8_e4m3fn, torch.bfloat16, "_quantization_metadata"),
}


@functools.cache
def load(name: str) -> Any:
    """ModelPatcher of the tiny Wan in a format."""
    import comfy.model_management as management
    import comfy.sd

    kind = FORMATS[name]
    weights, metadata = scaled(kind.scaled) if kind.scaled else (wan_weights(), None)
    options = {} if kind.scaled else {"dtype": kind.weights}
    with pytest.MonkeyPatch.context() as card:
        card.setattr(management, "should_use_fp16", lambda *args, **kwargs: kind.compute is torch.float16)
        card.setattr(management, "should_use_bf16", lambda *args, **kwargs: kind.compute is torch.bfloat16)
        return comfy.sd.load_diffusion_model_state_dict(weights, model_options=options, metadata=metadata)


def scaled(how: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(state dict, metadata) of an fp8-scaled checkpoint: the older ones have a key, the newer ones metadata."""
    weights = wan_weights()
    layers = [name.removesuffix(".weight") for name, value in weights.items() if value.ndim == 2]
    for layer in layers:
        weight = weights[f"{layer}.weight"]
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        weights[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        weights[f"{layer}.{'scale_weight' if how == 'scaled_fp8' else 'weight_scale'}"] = scale
    if how == "scaled_fp8":
        return {**weights, how: torch.zeros(0, dtype=torch.float8_e4m3fn)}, {}
    return weights, {how: json.dumps({"layers": {layer: {"format": "float8_e4m3fn"} for layer in layers}})}


def stored(model: Any) -> torch.dtype:
    weight = model.model.diffusion_model.blocks[0].ffn[0].weight
    return getattr(weight, "_qdata", weight).dtype


@dataclass(frozen=True)
class Watched:
    """What happened meanwhile: the dtype of each block stack's and head's input, key, dtype and bytes of features."""

    stacks: list[torch.dtype]
    heads: list[torch.dtype]
    features: list[tuple[str, torch.dtype, int]]


@contextmanager
def watched(model: Any) -> Iterator[Watched]:
    seen, inner, observe = Watched([], [], []), model.model.diffusion_model, Replay.observe

    def keep(replay: Replay, i: int, key: str, feature: torch.Tensor) -> torch.Tensor:
        seen.features.append((key, feature.dtype, feature.nbytes))
        return observe(replay, i, key, feature)

    watching = ((inner.blocks[0], seen.stacks), (inner.head, seen.heads))
    hooks = [m.register_forward_pre_hook(lambda _, args, to=to: to.append(args[0].dtype)) for m, to in watching]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Replay, "observe", keep)
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def unsteadiness(base: Any, full: torch.Tensor, **inputs: Any) -> float:
    """How far the picture moves with the last digits of its noise: less cannot be asked in a format."""
    import comfy.sample

    prepare = comfy.sample.prepare_noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.sample, "prepare_noise", lambda *args, **kwargs: prepare(*args, **kwargs) * (1.0 + 1e-5))
        return error(render(base, **inputs), full)


def record(base: Any, level: str, **inputs: Any) -> Profile:
    """Two runs of other seeds and prompts. They are to the bit what the model gives by itself."""
    rendered: dict[int, torch.Tensor] = {}

    def sample(model: Any, run: int) -> None:
        # The first of what is rendered under a number is the recorded run, the second its perturbed run.
        rendered.setdefault(run, render(model, seed=40 + run, **{"positive": phrase(10 + run), **inputs}))

    found = measure(sample, level, base)
    for run, picture in rendered.items():
        assert torch.equal(picture, render(base, seed=40 + run, **{"positive": phrase(10 + run), **inputs}))
    return found


def assert_it_holds(base: Any, level: str, compute: torch.dtype, **inputs: Any) -> None:
    """Nothing changes at speed 1 and while recording; at 2x half is computed, and the error is the predicted one."""
    with watched(base) as without:
        full = render(base, **inputs)
    before = Seen.on(base)
    assert torch.isfinite(full).all() and {*without.stacks, *without.heads} == {compute}
    assert torch.equal(render(cached(base, speed=1.0, level=level)[0], **inputs), full)
    model, reports = cached(base, record(base, level, **inputs), speed=2.0, level=level)
    with watched(base) as seen:
        result = render(model, **inputs)
    (report,) = reports
    assert report.complete and report.computed == report.reused == STEPS // 2, report.notes
    assert 2 * len(seen.stacks) == len(without.stacks) == len(without.heads) > 0
    assert len(seen.heads) == len(without.heads if level == "blocks" else seen.stacks)
    assert {*seen.stacks, *seen.heads} == {compute}, "a part was given another dtype than it computes in"
    assert_kept_in(compute if level == "blocks" else torch.float32, seen, report)
    assert torch.isfinite(result).all()
    floor = unsteadiness(base, full, **inputs)
    assert 0.0 < error(result, full) < FACTOR[level] * (report.predicted_error[0] + floor)
    assert Seen.on(base) == before, "something was left on the model"
    assert torch.equal(render(base, **inputs), full)


def assert_kept_in(dtype: torch.dtype, seen: Watched, report: Any) -> None:
    """Guidance is summed in float32, block stacks return what they compute in. The plan says how many are kept."""
    assert {kind for _, kind, _ in seen.features} == {dtype}
    depth = max(len(coefficients) for coefficients in plan_from_json(report.plan).coefficients)
    assert report.cache_bytes == depth * sum({key: size for key, _, size in seen.features}.values()) > 0


@levels
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_changes_nothing_but_the_digits(level, name):
    base = load(name)
    assert stored(base) == FORMATS[name].weights
    assert_it_holds(base, level, FORMATS[name].compute)


def clip(kind: str) -> dict[str, Any]:
    latent = masked()
    if kind == "video to video":
        del latent["noise_mask"]
    return {"latent": latent, "denoise": 1.0 if kind == "inpainting" else 0.6}


@levels
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["video to video", "inpainting", "both"])
def test_a_clip_that_is_there_already_is_as_good_as_a_new_one(level, name, kind):
    assert_it_holds(load(name), level, FORMATS[name].compute, **clip(kind))


# Streamed weights


@contextmanager
def short_of_memory(state: str, share: float = 0.0) -> Iterator[Counter[Any]]:
    """ComfyUI loads onto a card in this state with room for a share of the weights; counts each layer's casts."""
    import comfy.model_management as management
    import comfy.ops

    only_on_cpu("a card's own size decides there how much is loaded, not this share")
    load_models, cast = management.load_models_gpu, comfy.ops.cast_bias_weight
    casts: Counter[Any] = Counter()

    def load(models: list[Any], **kwargs: Any) -> None:
        room = management.minimum_inference_memory() + share * models[0].model_size()

        def free(device: Any = None, torch_free_too: bool = False) -> Any:
            left = room - models[0].loaded_size()
            return (left, left) if torch_free_too else left

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(management, "is_device_cpu", lambda device: False)
            patch.setattr(management, "get_free_memory", free)
            load_models(models, **kwargs)

    def counting(layer: Any, *args: Any, **kwargs: Any) -> Any:
        casts[layer] += 1
        return cast(layer, *args, **kwargs)

    management.unload_all_models()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(management, "vram_state", management.VRAMState[state])
            patch.setattr(management, "load_models_gpu", load)
            patch.setattr(comfy.ops, "cast_bias_weight", counting)
            yield casts
    finally:
        management.unload_all_models()


def with_lora(base: Any, strength: float = 0.5) -> Any:
    """With a LoRA on the linear layers of all blocks, through ComfyUI's loader."""
    import comfy.sd

    generator = torch.Generator().manual_seed(4)
    lora = {}
    for name, weight in wan_weights().items():
        if name.startswith("blocks.") and weight.ndim == 2:
            rows, columns = weight.shape
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            lora[f"{layer}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.1
            lora[f"{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    return comfy.sd.load_lora_for_models(base, None, lora, strength, 0.0)[0]


@functools.cache
def known(name: str, lora: bool, level: str) -> Profile:
    """Recorded on the model loaded in full."""
    return record(with_lora(load(name)) if lora else load(name), level)


STREAMED = {"--novram": ("NO_VRAM", 0.0), "--lowvram": ("LOW_VRAM", 0.7)}
PARTLY = [(how, name) for how in STREAMED for name in ("float32", "bfloat16")]
# Newer ComfyUIs reserve so much for a cast of fp8 that nothing of a model as small as this fits beside it.
WHOLLY = [("--novram", name) for name in ("fp8_e4m3fn in bfloat16", "fp8 scaled")]


@levels
@pytest.mark.parametrize(("how", "name"), PARTLY + WHOLLY)
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_a_reused_step_streams_no_weights(level, how, name, lora):
    """And what was recorded on the model loaded in full fits."""
    base = with_lora(load(name)) if lora else load(name)
    model, reports = cached(base, known(name, lora, level), speed=2.0, level=level)
    inside = set(base.model.diffusion_model.blocks.modules())
    with short_of_memory(*STREAMED[how]) as casts:
        full = render(base)
        assert_streamed(base, how, lora)
        of_full = casts.copy()
        casts.clear()
        result = render(model)
        assert_streamed(base, how, lora)
        assert casts.keys() == of_full.keys() and inside & casts.keys()
        for layer, count in of_full.items():
            halved = level == "output" or layer in inside
            assert casts[layer] == (count // 2 if halved else count)
        assert reports[0].computed == STEPS // 2
        floor = unsteadiness(base, full)
    assert 0.0 < error(result, full) < FACTOR[level] * (reports[0].predicted_error[0] + floor)


def assert_streamed(base: Any, how: str, lora: bool) -> None:
    """ComfyUI left weights off its card; a LoRA on them is applied with each cast."""
    assert base.model.model_lowvram
    assert base.loaded_size() == 0 if how == "--novram" else 0 < base.loaded_size() < base.model_size()
    assert (base.lowvram_patch_counter() > 0) == lora


@levels
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_recorded_while_streamed_all_holds(level, name):
    with short_of_memory(*STREAMED["--lowvram"]):
        assert_it_holds(with_lora(load(name)), level, FORMATS[name].compute)


@levels
def test_unloaded_and_half_loaded_between_two_renders_it_is_the_same_picture(level):
    import comfy.model_management as management

    base = with_lora(load("float32"))
    model, reports = cached(base, known("float32", True, level), speed=2.0, level=level)
    pictures = [render(model)]
    assert base.loaded_size() == base.model_size()
    management.unload_all_models()
    assert base.loaded_size() == 0
    pictures.append(render(model))
    with short_of_memory(*STREAMED["--lowvram"]):
        pictures.append(render(model))
        loaded = base.loaded_size()
        model.partially_unload(model.offload_device, loaded // 3)
        assert 0 < base.loaded_size() < loaded
        pictures.append(render(model))
        model.partially_load(model.load_device, 0.7 * base.model_size() - base.loaded_size())
        assert base.loaded_size() == loaded and base.model.model_lowvram
        pictures.append(render(model))
    pictures.append(render(model))
    assert not base.model.model_lowvram
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    assert all((report.compute, report.notes) == (reports[0].compute, reports[0].notes) for report in reports)


# LoRAs


@levels
def test_a_loras_strength_makes_another_model_and_back_the_same(store, level):
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    reports: list[Any] = []

    def render_at(strength: float) -> tuple[torch.Tensor, Any]:
        task = Caching(Settings(speed=2.0, level=level), store, reports.append)
        return render(attach(with_lora(load("float32"), strength), task)), reports[-1]

    first, recorded = render_at(0.5)
    assert recorded.computed == STEPS and torch.equal(first, render(with_lora(load("float32"), 0.5)))
    weak, by_first = render_at(0.5)
    other, anew = render_at(0.8)
    assert anew.computed == STEPS and len(store.names()) == 2
    assert torch.equal(other, render(with_lora(load("float32"), 0.8)))
    strong, by_second = render_at(0.8)
    again, by_third = render_at(0.5)
    assert torch.equal(again, weak) and not torch.equal(strong, weak)
    assert by_third.notes == by_first.notes != by_second.notes
    assert [report.computed for report in (by_first, by_second, by_third)] == [STEPS // 2] * 3
    assert len(store.names()) == 2


@levels
@pytest.mark.parametrize("sampler", ["euler", "lcm"])
@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8])
def test_a_distilled_model_reuses_what_it_says(level, sampler, steps):
    """A LoRA, guidance 1 and few steps."""
    inputs = {"sampler_name": sampler, "steps": steps, "cfg": 1.0}
    base = with_lora(load("float32"))
    model, reports = cached(base, record(base, level, **inputs), speed=2.0, level=level)
    full = render(base, **inputs)
    with watched(base) as seen:
        result = render(model, **inputs)
    (report,) = reports
    assert report.calls == steps and report.computed == len(seen.stacks)
    assert f"{report.computed} of {steps} steps computed, {report.reused} reused" in report.as_text()
    if steps < MIN_CALLS:
        assert torch.equal(result, full) and "too_few_calls" in codes(report)
    else:
        assert report.computed == round(steps / 2)
        assert 0.0 < error(result, full) < FACTOR[level] * report.predicted_error[0]


# One model for everything


CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"latent": empty(2), "seed": 7},
    {"latent": empty(4)},
    {"latent": empty(3), "positive": phrase(3)},
    {"latent": empty(height=4, width=12)},
    {"latent": empty(height=7, width=9)},
    {"latent": empty(frames=1)},
    {"latent": empty(2, 5, 6, 6), "steps": 7},
    *({"steps": steps} for steps in (1, 2, 3, 5, 6, 20, 100)),
    {},
)


@levels
def test_one_model_for_clips_of_every_size_is_as_a_new_one_for_each(level):
    base, found = load("float32"), known("float32", False, level)
    model, reports = cached(base, found, speed=2.0, level=level)
    plain, _ = cached(base, speed=1.0, level=level)
    for changed in CHANGES:
        alone, expected = cached(base, found, speed=2.0, level=level)
        assert torch.equal(render(model, **changed), render(alone, **changed)), changed
        assert torch.equal(render(plain, **changed), render(base, **changed)), changed
        assert (reports[-1].compute, reports[-1].notes) == (expected[-1].compute, expected[-1].notes)
        steps = changed.get("steps", STEPS)
        assert reports[-1].computed == (steps if steps < MIN_CALLS else round(steps / 2)), reports[-1].notes
