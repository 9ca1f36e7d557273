"""Identity: what distinguishes models, and what does not, on a real ModelPatcher."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomllib
import torch

from ertacache.erta.notes import note
from ertacache.erta.profile import Measured
from ertacache.erta.profile_file import measured_from_json, measured_to_json

KEY = "diffusion_model.blocks.0.ffn.0.weight"


@pytest.fixture(scope="module")
def identity(comfy: ModuleType) -> ModuleType:
    from ertacache.comfy_erta import identity

    return identity


def described(identity: ModuleType, model: Any, cfg: object = 3.0) -> Measured:
    """Of a run of 12 steps at guidance 3 that is about to start."""
    import comfy.samplers

    from ertacache.comfy_erta.task import Context

    guider, sampler = SimpleNamespace(model_patcher=model, cfg=cfg), comfy.samplers.sampler_object("euler")
    context = Context(guider, sampler, np.linspace(1.0, 0.0, 13), ((1, 16, 2, 4, 4),), ())
    measured: Measured = identity.measure_identity(context, "output", "simple")
    return measured


@pytest.mark.parametrize("cfg", [float("nan"), float("inf"), -float("inf"), 1e7, 10**400, "3", None, [3.0]])
def test_a_scale_that_no_profile_keeps_is_none(identity: ModuleType, wan: Any, cfg: object) -> None:
    """Of another pack's guider: it is no fault of a profile."""
    assert described(identity, wan, cfg).guidance is None


def with_lora(model: Any, strength: float = 0.7, scale: float = 1e-3, key: str = KEY) -> Any:
    """A clone with a full-rank patch of known values."""
    changed = model.clone()
    size = model.model_state_dict()[key].shape
    patch = (torch.arange(size.numel(), dtype=torch.float32) * scale).reshape(size)
    assert changed.add_patches({key: (patch,)}, strength) == [key]
    return changed


def reloaded(model: Any, dtype: torch.dtype, offset: float = 0.0) -> Any:
    """The model from an fp16 checkpoint of its weights, loaded as another dtype."""
    import comfy.sd

    prefix = "diffusion_model."
    checkpoint = {
        name.removeprefix(prefix): (value + offset).to(torch.float16)
        for name, value in model.model_state_dict(prefix).items()
    }
    return comfy.sd.load_diffusion_model_state_dict(checkpoint, model_options={"dtype": dtype})


def holder(**weights: torch.Tensor) -> Any:
    """What fingerprint_weights reads of a patcher, around weights that a tiny Wan does not have."""
    module = torch.nn.Module()
    for name, weight in weights.items():
        module.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))
    backups: dict[str, Any] = {"backup": {}, "hook_backup": {}, "object_patches_backup": {}}
    return SimpleNamespace(model=SimpleNamespace(diffusion_model=module), **backups)


@pytest.fixture
def loaded(wan: Any) -> Iterator[Any]:
    """A patched clone as it is while it samples: weights changed in place, originals in the backup."""
    import comfy.model_management

    patched = with_lora(wan)
    before = patched.model_state_dict()[KEY].cpu().clone()
    comfy.model_management.load_models_gpu([patched])
    assert not torch.equal(patched.model_state_dict()[KEY].cpu(), before), "loading patches in place"
    yield patched
    comfy.model_management.unload_all_models()
    patched.detach()


def test_description_of_a_tiny_wan(identity: ModuleType, wan: Any) -> None:
    import comfyui_version

    measured = described(identity, wan)
    assert measured.model_class == "WAN21"
    assert measured.parameters == sum(p.numel() for p in wan.model.diffusion_model.parameters())
    assert measured.loras == ""
    assert (measured.sampling, measured.shift) == ("ModelSamplingDiscreteFlow+CONST", 8.0)
    assert (measured.steps, measured.latent_shape) == (12, (1, 16, 2, 4, 4))
    assert measured.comfy_version == comfyui_version.__version__
    assert measured_from_json(measured_to_json(measured)) == measured


def test_pack_version_is_the_projects(identity: ModuleType, wan: Any) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert described(identity, wan).pack_version == project["version"]


def test_shift_and_sampling_come_from_the_patched_model(identity: ModuleType, wan: Any) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3

    shifted = described(identity, ModelSamplingSD3().patch(wan, 5.0)[0])
    assert (shifted.sampling, shifted.shift) == ("ModelSamplingDiscreteFlow+CONST", 5.0)
    discrete = described(identity, ModelSamplingDiscrete().patch(wan, "v_prediction", False)[0])
    assert (discrete.sampling, discrete.shift) == ("ModelSamplingDiscrete+V_PREDICTION", None)


def test_fingerprints_before_loading_are_those_after(identity: ModuleType, wan: Any) -> None:
    import comfy.model_management

    patched = with_lora(wan)
    before = described(identity, patched)
    comfy.model_management.load_models_gpu([patched])
    try:
        assert KEY in patched.backup
        assert described(identity, patched) == before
    finally:
        comfy.model_management.unload_all_models()
        patched.detach()
    assert described(identity, patched) == before
    assert described(identity, wan).weights == before.weights


def test_patched_weight_would_change_the_fingerprint_without_its_backup(identity: ModuleType, loaded: Any) -> None:
    # Guards the test above: the patched parameter is among those that are read.
    hidden = SimpleNamespace(model=loaded.model, backup={}, hook_backup={}, object_patches_backup={})
    assert identity.fingerprint_weights(hidden) != identity.fingerprint_weights(loaded)


def test_hooked_weight_is_read_from_its_backup(identity: ModuleType) -> None:
    model = holder(weight=torch.ones(4))
    before = identity.fingerprint_weights(model)
    model.hook_backup["diffusion_model.weight"] = (torch.ones(4), torch.device("cpu"))
    model.model.diffusion_model.weight.mul_(2)
    assert identity.fingerprint_weights(model) == before


def test_describing_changes_nothing(identity: ModuleType, wan: Any) -> None:
    patched = with_lora(wan)
    state = patched.model_state_dict()
    copies = {name: value.clone() for name, value in state.items()}
    places = {name: value.data_ptr() for name, value in state.items()}
    kept = (patched.patches_uuid, patched.model.model_loaded_weight_memory, dict(patched.backup), patched.model.device)
    described(identity, patched)
    after = patched.model_state_dict()
    assert all(torch.equal(after[name], copies[name]) and after[name].data_ptr() == places[name] for name in copies)
    assert kept == (
        patched.patches_uuid,
        patched.model.model_loaded_weight_memory,
        dict(patched.backup),
        patched.model.device,
    )


# Weights


def test_loads_of_one_fp16_checkpoint_in_three_dtypes_agree(identity: ModuleType, wan: Any) -> None:
    loads = [reloaded(wan, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    dtypes = {model.model_state_dict()[KEY].dtype for model in loads}
    assert dtypes == {torch.float32, torch.float16, torch.bfloat16}
    assert len({identity.fingerprint_weights(model) for model in loads}) == 1


def test_fp8_load_is_another_model(identity: ModuleType, wan: Any) -> None:
    quantised = reloaded(wan, torch.float8_e4m3fn)
    assert quantised.model_state_dict()[KEY].dtype == torch.float8_e4m3fn
    assert identity.fingerprint_weights(quantised) != identity.fingerprint_weights(wan)


def test_other_weights_of_the_same_shape_are_another_model(identity: ModuleType, wan: Any) -> None:
    assert identity.fingerprint_weights(reloaded(wan, torch.float32, offset=0.01)) != identity.fingerprint_weights(
        reloaded(wan, torch.float32)
    )


def test_name_and_shape_of_a_weight_count(identity: ModuleType) -> None:
    prints = [
        identity.fingerprint_weights(model)
        for model in (holder(a=torch.ones(4)), holder(b=torch.ones(4)), holder(a=torch.ones(2, 2)))
    ]
    assert len(set(prints)) == 3


def test_compiled_model_is_the_same_model(identity: ModuleType) -> None:
    plain, compiled = holder(a=torch.ones(4)), holder(a=torch.ones(4))
    wrapper = torch.nn.Module()
    wrapper.add_module("_orig_mod", compiled.model.diffusion_model)
    compiled.model.diffusion_model = wrapper
    assert identity.fingerprint_weights(compiled) == identity.fingerprint_weights(plain)


def test_weights_without_data_are_described(identity: ModuleType) -> None:
    assert len(identity.fingerprint_weights(holder(a=torch.empty(4, device="meta")))) == 64
    assert len(identity.fingerprint_weights(holder(a=torch.empty(0)))) == 64
    assert len(identity.fingerprint_weights(holder())) == 64


def test_quantised_weight_is_read_without_dequantising_it(
    identity: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.quant_ops import QuantizedTensor

    one, other = (
        QuantizedTensor.from_float(torch.randn(8, 8), "TensorCoreFP8Layout", scale=torch.tensor(1.0)) for _ in range(2)
    )
    models = [holder(a=one), holder(a=one.clone()), holder(a=other)]
    monkeypatch.setattr(QuantizedTensor, "dequantize", lambda self: pytest.fail("dequantised"))
    first, same, different = map(identity.fingerprint_weights, models)
    assert first == same != different


# LoRAs


def test_lora_fingerprint_is_the_same_in_every_process(identity: ModuleType, wan: Any) -> None:
    assert (
        identity.fingerprint_loras(with_lora(wan)) == "25a0e520aa5c2e28dc745ef759f6a8e7f78605537bb2241c918a6900965172a7"
    )


def test_lora_strength_and_content_and_place_count(identity: ModuleType, wan: Any) -> None:
    other_key = KEY.replace("blocks.0", "blocks.1")
    models = [
        wan,
        with_lora(wan),
        with_lora(wan, strength=0.8),
        with_lora(wan, scale=2e-3),
        with_lora(wan, key=other_key),
        with_lora(with_lora(wan)),
    ]
    prints = [identity.fingerprint_loras(model) for model in models]
    assert prints[0] == ""
    assert len(set(prints)) == len(models)
    assert identity.fingerprint_loras(with_lora(wan).clone()) == prints[1]


def test_order_in_which_keys_were_patched_does_not_count(identity: ModuleType, wan: Any) -> None:
    other_key = KEY.replace("blocks.0", "blocks.1")
    one = with_lora(with_lora(wan), key=other_key)
    other = with_lora(with_lora(wan, key=other_key))
    assert list(one.patches) != list(other.patches)
    assert identity.fingerprint_loras(one) == identity.fingerprint_loras(other)


def lora_file(wan: Any, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = wan.model_state_dict()[KEY].shape
    name = KEY.removesuffix(".weight")
    return {
        f"{name}.lora_up.weight": torch.randn(rows, 4, generator=generator),
        f"{name}.lora_down.weight": torch.randn(4, columns, generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }


def test_lora_file_through_comfyuis_loader(identity: ModuleType, wan: Any) -> None:
    import comfy.sd
    from comfy.weight_adapter import LoRAAdapter

    def load(seed: int, alpha: float = 2.0) -> str:
        file = lora_file(wan, seed)
        file[f"{KEY.removesuffix('.weight')}.alpha"] = torch.tensor(alpha)
        patched, _ = comfy.sd.load_lora_for_models(wan, None, file, 1.0, 0.0)
        assert isinstance(patched.patches[KEY][0][1], LoRAAdapter)
        return str(identity.fingerprint_loras(patched))

    assert load(1) == load(1)
    assert len({load(1), load(2), load(1, alpha=4.0)}) == 3


def test_merged_model_counts_as_patched(identity: ModuleType, wan: Any) -> None:
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    other = reloaded(wan, torch.float32, offset=0.01)
    half, again, more = (ModelMergeSimple().merge(wan, other, ratio)[0] for ratio in (0.5, 0.5, 0.6))
    assert identity.fingerprint_loras(half) == identity.fingerprint_loras(again) != identity.fingerprint_loras(more)


# Patches that are no weights

PLACE = "diffusion_model.blocks.0.ffn.0"


class Beside(torch.nn.Module):
    """As LoRA packs that add beside a layer."""

    def __init__(self, layer: torch.nn.Module, up: float) -> None:
        super().__init__()
        self.layer, self.up = layer, torch.nn.Parameter(torch.full((4, 4), up), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up.mean()


def in_place_of_a_module(model: Any, up: float) -> None:
    model.add_object_patch(PLACE, Beside(model.get_model_object(PLACE), up))


def with_another_config(model: Any, scale: float) -> None:
    """As newer ComfyUI's "config" patches: the module once more, with its weights and another setting."""
    module = copy.copy(model.get_model_object(PLACE))
    module.config = {"rank": 4, "scale": scale}
    model.add_object_patch(PLACE, module)


def in_place_of_a_function(model: Any, scale: float) -> None:
    forward = model.get_model_object(f"{PLACE}.forward")
    model.add_object_patch(f"{PLACE}.forward", lambda x: forward(x) * scale)


def around_a_weight(model: Any, scale: float) -> None:
    model.add_weight_wrapper(KEY, lambda weight: weight * scale)


def injected(model: Any, scale: float) -> None:
    from comfy.patcher_extension import PatcherInjection

    def inject(patcher: Any) -> None:
        assert scale

    model.set_injections("a LoRA", [PatcherInjection(inject, lambda patcher: None)])


KINDS = [in_place_of_a_module, with_another_config, in_place_of_a_function, around_a_weight, injected]


def with_patch(wan: Any, kind: Any, value: float) -> Any:
    model = wan.clone()
    kind(model, value)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_patch_makes_another_model(identity: ModuleType, wan: Any, kind: Any) -> None:
    one, again, other = (with_patch(wan, kind, value) for value in (0.5, 0.5, 0.25))
    prints = [identity.fingerprint_loras(model) for model in (one, again, other, one.clone())]
    assert prints[0] == prints[1] == prints[3] and len({"", *prints}) == 3
    assert identity.fingerprint_loras(with_lora(one)) not in (prints[0], identity.fingerprint_loras(with_lora(wan)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [False, True])
def test_patches_of_every_kind_are_described_before_loading_as_after(
    identity: ModuleType, wan: Any, kind: Any, lora: bool
) -> None:
    import comfy.model_management

    patched = with_patch(with_lora(wan) if lora else wan, kind, 0.5)
    before, plain = described(identity, patched), described(identity, wan)
    comfy.model_management.load_models_gpu([patched])
    try:
        assert described(identity, patched) == before
        assert described(identity, wan) == plain == replace(before, loras="")
    finally:
        comfy.model_management.unload_all_models()
        patched.detach()


def test_a_patch_in_place_of_a_function_is_the_same_in_every_process(identity: ModuleType, wan: Any) -> None:
    model = with_patch(wan, around_a_weight, 0.5)
    known = "58516265764ba7ac3a2fbb04f5867c37ec37eedad31f3a8b09b458d75b9eda1a"
    assert identity.fingerprint_loras(model) == known


def test_what_is_only_compiled_or_described_elsewhere_is_no_patch(identity: ModuleType, wan: Any) -> None:
    model = wan.clone()
    compiled = torch.nn.Module()
    compiled.add_module("_orig_mod", wan.get_model_object(PLACE))
    model.add_object_patch(PLACE, compiled)
    model.add_object_patch("model_sampling", wan.get_model_object("model_sampling"))
    model.add_object_patch("manual_cast_dtype", torch.float16)
    assert identity.fingerprint_loras(model) == ""


# Differences


@pytest.fixture
def here(identity: ModuleType, wan: Any) -> Measured:
    return described(identity, wan)


def test_equal_runs_do_not_differ(identity: ModuleType, here: Measured) -> None:
    assert identity.differences(here, here) == ([], [])
    assert identity.differences(here, replace(here, pack_version="9", comfy_version="9")) == ([], [])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model_class", "Flux", "another kind of model (Flux, here {model_class})"),
        ("parameters", 12, "a model of another size (12 parameters, here {parameters})"),
        ("weights", "ab" * 32, "another model file or weight type"),
        ("loras", "cd" * 32, "other LoRAs or model patches"),
        ("level", "blocks", "level blocks (here output)"),
    ],
)
def test_another_model_is_refused_in_words(
    identity: ModuleType, here: Measured, field: str, value: object, words: str
) -> None:
    (refusal,), remarks = identity.differences(here, replace(here, **{field: value}))
    assert remarks == []
    assert refusal == words.format_map(vars(here))


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("sampling", "ModelSamplingFlux+CONST", "ModelSamplingFlux+CONST"),
        ("shift", None, "none"),
        ("steps", 50, "50"),
        ("sampler", "heun", "heun"),
        ("scheduler", "beta", "beta"),
    ],
)
def test_other_sigmas_are_remarked(identity: ModuleType, here: Measured, field: str, value: object, shown: str) -> None:
    refusals, (remark,) = identity.differences(here, replace(here, **{field: value}))
    assert refusals == []
    assert remark == note("profile_differs", field=field, measured=shown, here=getattr(here, field))


def test_a_scheduler_that_is_not_known_is_no_difference(identity: ModuleType, here: Measured) -> None:
    unknown = replace(here, scheduler="")
    assert identity.differences(here, unknown) == identity.differences(unknown, here) == ([], [])


@pytest.mark.parametrize(
    ("field", "value", "shown", "now"),
    [("guidance", 6.0, "6.0", "3.0"), ("latent_shape", (1, 16, 21, 60, 104), "1x16x21x60x104", "1x16x2x4x4")],
)
def test_other_conditions_are_remarked(
    identity: ModuleType, here: Measured, field: str, value: object, shown: str, now: str
) -> None:
    refusals, (remark,) = identity.differences(here, replace(here, **{field: value}))
    assert refusals == []
    assert remark == note("profile_differs_used", field=field, measured=shown, here=now)
