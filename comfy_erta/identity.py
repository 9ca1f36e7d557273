"""Identity: which model, LoRAs and settings a profile was measured on, and whether it fits the run at hand."""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_version import __version__ as comfy_version

from ..erta import VERSION
from ..erta.notes import Note, note
from ..erta.profile import MAX_SIGMA, Measured
from .blocks import block_slots
from .describing import few_values, parts
from .probing import sampler_name
from .task import Context

PARAMETERS_READ = 64

# Of what may be patched in, the parts that have a field of their own, or only say in which dtype is computed.
_DESCRIBED = ("model_sampling", "manual_cast_dtype")

# What a profile must share with a run that it is used for, and with what it was made where it does not. Of several the
# first is named: the others follow from it.
_REFUSED = {
    "model_class": "another kind of model ({old}, here {new})",
    "parameters": "a model of another size ({old} parameters, here {new})",
    "weights": "another model file or weight type",
    "loras": "other LoRAs or model patches",
    "level": "level {old} (here {new})",
}
# What it may differ in; with a difference in the last two, it is used all the same.
_USED = ("guidance", "latent_shape")
_REMARKED = ("sampling", "shift", "steps", "sampler", "scheduler", *_USED)


def measure_identity(context: Context, level: str, scheduler: str) -> Measured:
    """What the coming run is, as a profile keeps it. level: "output" or "blocks". scheduler: "" where unknown.

    Reads a few thousand numbers of the weights where they are; loads, moves and changes nothing. The result is the same
    before and after the model is loaded, in another process, and for a clone. Raises UnknownResponse where the model
    lacks the level, ProfileError for values that no profile has.
    """
    model = context.model
    if level == "blocks":
        block_slots(model)
    sampling = model.get_model_object("model_sampling")
    return Measured(
        model_class=type(model.model).__name__,
        parameters=sum(weight.numel() for weight in _base_parameters(model).values()),
        weights=fingerprint_weights(model),
        loras=fingerprint_loras(model),
        sampling=_sampling_name(sampling),
        shift=_number(vars(sampling).get("shift")),
        sampler=sampler_name(context.sampler).removeprefix("sample_"),
        scheduler=scheduler,
        steps=len(context.schedule) - 1,
        guidance=_number(getattr(context.guider, "cfg", None)),
        latent_shape=context.latent_shape,
        level=level,
        pack_version=VERSION,
        comfy_version=comfy_version,
    )


def differences(here: Measured, profile: Measured) -> tuple[list[str], list[Note]]:
    """(refusals, remarks): with what else the profile was made, so that it must not be used for the run `here`, and in
    what it differs without harm."""
    refusals, remarks = [], []
    for name in (*_REFUSED, *_REMARKED):
        old, new = getattr(profile, name), getattr(here, name)
        if old == new or (name == "scheduler" and not (old and new)):  # "" is not known, which is no difference
            continue
        old, new = _shown(old), _shown(new)
        if name in _REFUSED:
            refusals.append(_REFUSED[name].format(old=old, new=new))
        else:
            remarks.append(
                note("profile_differs_used" if name in _USED else "profile_differs", field=name, measured=old, here=new)
            )
    return refusals, remarks


def model_digest(measured: Measured) -> str:
    """64 hex digits that identify a model: a hash of the fields in which ``differences`` refuses any difference."""
    content = {name: value for name, value in asdict(measured).items() if name in _REFUSED}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(value: object) -> str:
    """A value in a message."""
    if value == "" or value is None:
        return "none"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value)


def fingerprint_weights(model: ModelPatcher) -> str:
    """64 hex digits that identify the base weights of the diffusion model, LoRAs not counted.

    Name, shape and 16 values each of up to 64 parameters, evenly picked. The values are rounded to bfloat16, so that
    fp32, fp16 and bf16 loads of one fp16 checkpoint agree; an fp8 or otherwise quantised load has other values, hence
    another fingerprint, as it should: its features differ. Parameters without data (device "meta") count by name and
    shape alone, as do all where the model is spread over processes (FSDP): each holds others, and asking the others
    waits for ever where they do not ask too.
    """
    spread = any(hasattr(module, "reshard") for module in model.model.diffusion_model.modules())
    held = {name.replace("_orig_mod.", ""): weight for name, weight in _base_parameters(model).items()}  # if compiled
    names = sorted(held)
    picked = np.linspace(0, len(names) - 1, min(PARAMETERS_READ, len(names))).round().astype(int)
    digest = hashlib.sha256()
    for name in (names[i] for i in picked):
        digest.update(f"{name}{tuple(held[name].shape)}".encode())
        digest.update(b"" if spread else few_values(_unpatched(model, f"diffusion_model.{name}", held[name])))
    return digest.hexdigest()


def _base_parameters(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """The diffusion model's parameters by name, as they are without the modules that loading puts into it."""
    held = {f"diffusion_model.{name}": weight for name, weight in model.model.diffusion_model.named_parameters()}
    for path, original in model.object_patches_backup.items():
        if isinstance(original, torch.nn.Module) and path.startswith("diffusion_model"):
            held = {name: weight for name, weight in held.items() if not name.startswith(f"{path}.")}
            held |= dict(original.named_parameters(prefix=path))
    return {name.removeprefix("diffusion_model."): weight for name, weight in held.items()}


def _unpatched(model: ModelPatcher, key: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight as it was before LoRAs: loading patches it in place and keeps the original in a backup."""
    if key in model.backup:
        return model.backup[key].weight
    return model.hook_backup[key][0] if key in model.hook_backup else weight


def fingerprint_loras(model: ModelPatcher) -> str:
    """64 hex digits that identify all patches (LoRAs, merges, what is put in the place of modules, functions and
    weights) and their strengths; "" without any.

    Patches that belong to a conditioning (hooks) are not counted.
    """
    others = sorted(_other_patches(model), key=lambda pair: pair[0])
    if not model.patches and not others:
        return ""
    digest = hashlib.sha256()
    for key in sorted(model.patches):
        digest.update(key.encode())
        for strength, value, model_strength, offset, function in model.patches[key]:
            digest.update(f"{float(strength)!r},{float(model_strength)!r}".encode())
            for part in parts((value, offset, function)):
                digest.update(part)
    known = frozenset(map(id, _own(model))) if others else frozenset()
    for name, patch in others:
        for part in (name.encode(), *parts(patch, known)):
            digest.update(part)
    return digest.hexdigest()


def _other_patches(model: ModelPatcher) -> Iterator[tuple[str, object]]:
    """By name: modules and functions put in the place of the model's own, and what is put around its weights."""
    for path, value in model.object_patches.items():
        value = getattr(value, "_orig_mod", value)  # as torch.compile wraps it
        if path not in _DESCRIBED and value is not _original(model, path):
            yield path, value
    yield from model.weight_wrapper_patches.items()
    yield from model.injections.items()


def _own(model: ModelPatcher) -> Iterator[object]:
    """Modules and weights that are not patched in, whether the model is loaded or not."""
    patches = [value for value in model.object_patches.values() if isinstance(value, torch.nn.Module)]
    originals = [_original(model, path) for path in model.object_patches]
    patched = {module for patch in patches for module in patch.modules()}
    yield from (module for module in model.model.modules() if module not in patched)
    yield from (module for one in originals if isinstance(one, torch.nn.Module) for module in one.modules())
    yield from (weight for name, weight in model.model.named_parameters() if name in model.patches)
    yield from _base_parameters(model).values()


def _original(model: ModelPatcher, path: str) -> object:
    """What is in a patched place without the patch; None for nothing."""
    if path in model.object_patches_backup:
        return model.object_patches_backup[path]
    return functools.reduce(lambda owner, name: getattr(owner, name, None), path.split("."), model.model)


def _sampling_name(sampling: object) -> str:
    """Class names of the sampling's parts; ComfyUI joins them in a class of no telling name."""
    parts = type(sampling).__bases__
    return "+".join(part.__name__ for part in parts) if len(parts) > 1 else type(sampling).__name__


def _number(value: object) -> float | None:
    """None for what is no number that a profile keeps; NaN is none either."""
    return float(value) if isinstance(value, int | float) and abs(value) <= MAX_SIGMA else None
