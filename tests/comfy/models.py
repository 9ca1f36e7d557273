"""Tiny instances of ComfyUI's own model classes with random weights, and what each is conditioned on.

Only sizes are made small: class, latent format, sampling and the way the conditioning is read are ComfyUI's own,
through ``comfy.supported_models``.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import torch

Fit = tuple[int, ...]
VIDEO, WIDE, IMAGE, QWEN = (1, 16, 2, 8, 8), (1, 48, 2, 4, 4), (1, 16, 8, 8), (1, 16, 1, 8, 8)
PIXELS, TEXT = (1, 3, 64, 64), (1, 8, 32)

_OF_TIME = ("time", "t_embedder", "adaln", "distilled_guidance", "tmlp", "tproj")
_WITH_BLOCKS = ("Flux", "FluxInpaint", "Flux2", "LongCatImage", "Chroma", "LTXV", "QwenImage")
_WITH_BLOCKS += ("HunyuanVideo", "HunyuanVideoI2V", "HunyuanImage21", "HunyuanVideo15", "HunyuanVideo15_SR_Distilled")


@dataclass(frozen=True)
class Tiny:
    """config: a class of ``comfy.supported_models``. unet: the sizes that ComfyUI's loader would find in a checkpoint.
    latent: one shape, or one for each part of a nested latent. conds: beyond the text; a tuple is the shape of a random
    tensor. controls: the entries of conds that steer the picture. kept: leading frames that a noise mask keeps, so that
    each token has a timestep of its own. cfg 1: a distilled model, the negative prompt is not used. params: the
    dataclass that takes the sizes, where versions differ in its fields. shrink: makes small what no size in the config
    reaches, or fills what only a checkpoint has. latent_input: the latent is no noise. newer: ComfyUI 0.3.75 has no
    such class, or, where its class alone does not show it, no such module of ``comfy_extras`` (node).
    """

    config: str
    unet: Mapping[str, Any]
    latent: Fit | tuple[Fit, ...] = VIDEO
    text: Fit = TEXT
    conds: Mapping[str, Any] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    kept: int = 0
    cfg: float = 3.0
    params: str = ""
    shrink: Callable[[Any], None] | None = None
    latent_input: bool = False
    newer: bool = False
    node: str = ""
    remark: str = ""

    @property
    def missing(self) -> str:
        """Why this ComfyUI cannot have it, or ""."""
        import comfy.supported_models
        import comfyui_version

        known = hasattr(comfy.supported_models, self.config)
        if self.node:
            known = importlib.util.find_spec(f"comfy_extras.{self.node}") is not None
        absent = f"ComfyUI {comfyui_version.__version__} has no {self.node or self.config}"
        return "" if known or not self.newer else absent

    @property
    def nested(self) -> bool:
        return isinstance(self.latent[0], tuple)

    @property
    def blocks(self) -> bool:
        """Whether the pack knows this model's blocks."""
        return self.config.startswith("WAN") or self.config in _WITH_BLOCKS

    def sizes(self) -> dict[str, Any]:
        """What this version of ComfyUI takes."""
        if not self.params:
            return dict(self.unet)
        module, name = self.params.rsplit(".", 1)
        known = {one.name for one in fields(getattr(importlib.import_module(f"comfy.ldm.{module}"), name))}
        return {name: value for name, value in self.unet.items() if name in known}

    def build(self, seed: int = 7) -> Any:
        """A ModelPatcher on the CPU, in float32."""
        import comfy.model_patcher
        import comfy.ops
        import comfy.supported_models

        kind = getattr(comfy.supported_models, self.config)
        config = kind({**kind.unet_config, **self.sizes()})
        config.custom_operations = comfy.ops.disable_weight_init
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "")
        if self.shrink is not None:
            self.shrink(model.diffusion_model)
        fill(model.diffusion_model, torch.Generator().manual_seed(seed))
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)

    def conditioning(self, seed: int, **changed: int) -> list[Any]:
        """One cond as a text encoder and the model's own node leave it. changed: another seed for an entry."""
        seeds = {name: changed.get(name, 100 + n) for n, name in enumerate(self.conds)}
        values = {name: _value(name, entry, seeds[name]) for name, entry in self.conds.items()}
        return [[_random(self.text, seed), values]]

    def empty_latent(self, seed: int = 11) -> dict[str, Any]:
        import comfy.nested_tensor

        if self.nested:
            return {"samples": comfy.nested_tensor.NestedTensor([torch.zeros(shape) for shape in self.latent])}
        samples = torch.zeros(self.latent)
        if self.latent_input:
            return {"samples": _random(self.latent, seed)}
        if not self.kept:
            return {"samples": samples}
        mask = torch.ones(1, 1, *self.latent[2:])
        mask[:, :, : self.kept] = 0.0
        return {"samples": _random(self.latent, 11), "noise_mask": mask}


def fill(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights under which each layer gives numbers of the size that it gets."""
    for name, value in module.named_parameters():
        with torch.no_grad():
            if value.ndim > 1 and not name.endswith("bias"):
                value.normal_(0.0, _gain(name) / math.sqrt(_inputs(name, value)), generator=generator)
            else:
                value.normal_(float(name.endswith(("weight", "scale"))), 0.1, generator=generator)


def _gain(name: str) -> float:
    """Time is kept weak: random weights on its fast waves would make each step unlike the last, as no model does."""
    if name.endswith(".modulation"):
        return 8.0  # Wan's gates: by them attention, and what only comes in by attention, gets weight enough to steer
    if "motion_encoder" in name:
        return 2.0  # it blurs
    return 0.3 if any(part in name for part in _OF_TIME) else 1.0


def _inputs(name: str, value: torch.Tensor) -> int:
    """Of a layer; those of Wan Animate's motion encoder scale their weights themselves."""
    return 1 if "motion_encoder" in name else math.prod(value.shape[1:])


def shrink_motion_encoder(model: Any) -> None:
    """For faces of 32x32 pixels, 8 channels wide. ComfyUI's is for 512x512 and takes seconds for each of them."""
    from comfy.ldm.wan.model_animate import ConvLayer, EqualConv2d, ResBlock

    halvings = (ResBlock(8, 8) for _ in range(3))
    layers = (ConvLayer(3, 8, 1), *halvings, EqualConv2d(8, 512, 4, bias=False))
    model.motion_encoder.enc.net_app.convs = torch.nn.ModuleList(layers)


def without_llm_adapter(model: Any) -> None:
    """Half a gigabyte, run once for a prompt. Without token ids the text goes past it."""
    model.llm_adapter = None


def with_rope(model: Any) -> None:
    """The frequencies of its positions, which come with a checkpoint."""
    frequencies = model.rope.inv_freq
    frequencies.copy_(10000.0 ** -torch.linspace(0.0, 1.0, len(frequencies)))


def _random(shape: Iterable[int], seed: int) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _value(name: str, entry: Any, seed: int) -> Any:
    if name.startswith("clip_vision_output"):
        seen = _random(entry, seed)
        return SimpleNamespace(penultimate_hidden_states=seen, last_hidden_state=seen)
    if isinstance(entry, tuple):
        return _random(entry, seed)
    if isinstance(entry, list):
        return [_value("", part, seed + n) for n, part in enumerate(entry)]
    return entry
