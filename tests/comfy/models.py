"""Tiny instances of ComfyUI's own model classes with random weights, and what each is conditioned on.

One entry a model that an artist would load. Only sizes are made small: class, latent format, sampling and the way the
conditioning is read are ComfyUI's own, through ``comfy.supported_models``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import torch

Shape = tuple[int, ...]
VIDEO, WIDE, IMAGE, QWEN = (1, 16, 2, 8, 8), (1, 48, 2, 4, 4), (1, 16, 8, 8), (1, 16, 1, 8, 8)
TEXT: Shape = (1, 8, 32)


@dataclass(frozen=True)
class Tiny:
    """config: a class of ``comfy.supported_models``. unet: the sizes that ComfyUI's loader would find in a checkpoint.
    latent: one shape, or one for each part of a nested latent. conds: beyond the text; a tuple is the shape of a random
    tensor. controls: the entries of conds that steer the picture. kept: leading frames that a noise mask keeps, so that
    each token has a timestep of its own. cfg 1: a distilled model, the negative prompt is not evaluated. params: the
    dataclass that takes the sizes, where versions differ in its fields. newer: ComfyUI 0.3.75 has no such class.
    """

    config: str
    unet: Mapping[str, Any]
    latent: Shape | tuple[Shape, ...] = VIDEO
    text: Shape = TEXT
    conds: Mapping[str, Any] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    kept: int = 0
    cfg: float = 3.0
    params: str = ""
    newer: bool = False
    remark: str = ""

    @property
    def missing(self) -> str:
        """Why this ComfyUI cannot have it, or ""."""
        import comfy.supported_models
        import comfyui_version

        known = hasattr(comfy.supported_models, self.config)
        return "" if known or not self.newer else f"ComfyUI {comfyui_version.__version__} has no {self.config}"

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
        fill(model.diffusion_model, torch.Generator().manual_seed(seed))
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)

    def conditioning(self, seed: int, **changed: int) -> list[Any]:
        """One cond as a text encoder and the model's own node leave it. changed: another seed for an entry."""
        seeds = {name: changed.get(name, 100 + n) for n, name in enumerate(self.conds)}
        values = {name: _value(name, entry, seeds[name]) for name, entry in self.conds.items()}
        return [[_random(self.text, seed), values]]

    def empty_latent(self) -> dict[str, Any]:
        import comfy.nested_tensor

        if self.nested:
            return {"samples": comfy.nested_tensor.NestedTensor([torch.zeros(shape) for shape in self.latent])}
        samples = torch.zeros(self.latent)
        if not self.kept:
            return {"samples": samples}
        mask = torch.ones(1, 1, *self.latent[2:])
        mask[:, :, : self.kept] = 0.0
        return {"samples": _random(self.latent, 11), "noise_mask": mask}


def fill(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights under which each layer gives numbers of the size that it gets."""
    for name, value in module.named_parameters():
        with torch.no_grad():
            if value.ndim > 1:
                value.normal_(0.0, _gain(name) / math.sqrt(math.prod(value.shape[1:])), generator=generator)
            else:
                value.normal_(float(name.endswith(("weight", "scale"))), 0.1, generator=generator)


def _gain(name: str) -> float:
    """Time is kept weak: random weights on its fast waves would make each step unlike the last, as no model does."""
    return 0.3 if any(part in name for part in ("time", "t_embedder", "adaln", "distilled_guidance")) else 1.0


def _random(shape: Iterable[int], seed: int) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _value(name: str, entry: Any, seed: int) -> Any:
    if name == "clip_vision_output":
        seen = _random(entry, seed)
        return SimpleNamespace(penultimate_hidden_states=seen, last_hidden_state=seen)
    if isinstance(entry, tuple):
        return _random(entry, seed)
    if isinstance(entry, list):
        return [_value("", part, seed + n) for n, part in enumerate(entry)]
    return entry


_WITH_BLOCKS = ("Flux", "Flux2", "Chroma", "HunyuanVideo", "HunyuanVideo15", "LTXV", "QwenImage")

_WAN = {"dim": 64, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": 32, "in_dim": 16}
_CLIP = {"clip_vision_output": (1, 257, 1280)}
_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 16,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_FLUX2 = {
    **_FLUX,
    "in_channels": 128,
    "out_channels": 128,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "vec_in_dim": None,
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
}
_CHROMA = {
    **_FLUX,
    "vec_in_dim": None,
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 64,
    "n_layers": 2,
}
_HUNYUAN = {
    **_FLUX,
    "theta": 256,
    "patch_size": [1, 2, 2],
    "byt5": False,
    "meanflow": False,
    "meanflow_sum": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
_HUNYUAN15 = {
    **_HUNYUAN,
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "vec_in_dim": None,
    "guidance_embed": False,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
}
_LTXV = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "cross_attention_dim": 64,
    "caption_channels": 32,
}
_LTXAV = {
    **_LTXV,
    "audio_cross_attention_dim": 32,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 16,
    "connector_num_layers": 1,
    "connector_num_attention_heads": 1,
    "connector_attention_head_dim": 32,
}
_QWEN = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "joint_attention_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
_UNET = {
    "use_checkpoint": False,
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 32,
    "use_temporal_resblock": False,
}
_LUMINA = {
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "cap_feat_dim": 32,
    "n_layers": 2,
    "qk_norm": True,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 512, 512],
    "multiple_of": 64,
    "ffn_dim_multiplier": 1.0,
}
_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 32,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}
_HIDREAM = {
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "axes_dims_rope": [16, 8, 8],
    "caption_channels": [32, 32],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "out_channels": 16,
    "llama_layers": [0, 1, 1],
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "num_layers": 1,
    "num_single_layers": 2,
    "patch_size": 2,
    "text_emb_dim": 16,
}
_SD3 = {
    "depth": 2,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "input_size": None,
    "pos_embed_max_size": 32,
    "adm_in_channels": 16,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
}
_KANDINSKY = {
    "model_dim": 64,
    "ff_dim": 64,
    "time_dim": 32,
    "in_text_dim": 32,
    "in_text_dim2": 16,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (8, 12, 12),
}
_FLUX_PARAMS, _HUNYUAN_PARAMS = "flux.model.FluxParams", "hunyuan_video.model.HunyuanVideoParams"
_POOLED = {"pooled_output": (1, 16)}
_START = {"concat_latent_image": VIDEO, "concat_mask": (1, 4, 2, 8, 8)}

MODELS: dict[str, Tiny] = {
    "Wan 2.1 T2V": Tiny("WAN21_T2V", _WAN),
    "Wan 2.1 I2V": Tiny(
        "WAN21_I2V", {**_WAN, "in_dim": 36}, conds={**_CLIP, **_START}, controls=("concat_latent_image",)
    ),
    "Wan 2.1 FLF": Tiny(
        "WAN21_I2V",
        {**_WAN, "in_dim": 36, "flf_pos_embed_token_number": 514},
        conds={"clip_vision_output": (1, 514, 1280), **_START},
        controls=("concat_latent_image",),
    ),
    "Wan 2.1 VACE": Tiny(
        "WAN21_Vace",
        {**_WAN, "vace_layers": 2, "vace_in_dim": 96},
        conds={"vace_frames": [(1, 32, 2, 8, 8)], "vace_mask": [(1, 64, 2, 8, 8)], "vace_strength": [1.0]},
        controls=("vace_frames",),
        remark="blocks level: VACE's own blocks still run at a reused step",
    ),
    "Wan 2.1 Fun Control": Tiny(
        "WAN21_FunControl2V",
        {**_WAN, "in_dim": 48, "in_dim_ref_conv": 16},
        conds={**_CLIP, "concat_latent_image": (1, 32, 2, 8, 8), "reference_latents": [(1, 16, 1, 8, 8)]},
        controls=("concat_latent_image", "reference_latents"),
    ),
    "Wan 2.1 Camera": Tiny(
        "WAN21_Camera",
        {**_WAN, "in_dim": 32},
        conds={**_CLIP, "concat_latent_image": VIDEO, "camera_conditions": (1, 24, 2, 64, 64)},
        controls=("camera_conditions",),
    ),
    "Wan 2.1 HuMo": Tiny(
        "WAN21_HuMo",
        _WAN,
        conds={"audio_embed": (1, 2, 8, 5, 1280), "reference_latents": [(1, 16, 1, 8, 8)]},
        controls=("audio_embed",),
    ),
    "Wan 2.2 T2V": Tiny(
        "WAN21_T2V", _WAN, remark="two experts: a profile each, the first step after the switch computed"
    ),
    "Wan 2.2 I2V": Tiny("WAN21_T2V", {**_WAN, "in_dim": 36}, conds=_START, controls=("concat_latent_image",)),
    "Wan 2.2 TI2V 5B": Tiny(
        "WAN22_T2V", {**_WAN, "in_dim": 48}, WIDE, kept=1, remark="a timestep of its own for each token"
    ),
    "Wan 2.2 Fun Camera": Tiny(
        "WAN22_Camera",
        {**_WAN, "in_dim": 36},
        conds={**_START, "camera_conditions": (1, 24, 2, 64, 64)},
        controls=("camera_conditions",),
    ),
    "Wan 2.2 S2V": Tiny(
        "WAN22_S2V",
        {**_WAN, "audio_inject_layers": [0, 1]},
        conds={
            "audio_embed": (1, 25, 1024, 8),
            "reference_latents": [(1, 16, 1, 8, 8)],
            "reference_motion": (1, 16, 19, 8, 8),
            "control_video": VIDEO,
        },
        controls=("audio_embed", "control_video"),
        remark="blocks level: the audio is still injected at a reused step",
    ),
    "Wan 2.2 Animate": Tiny(
        "WAN22_Animate",
        {**_WAN, "in_dim": 36},
        conds={**_CLIP, **_START, "pose_video_latent": (1, 16, 1, 8, 8)},
        controls=("pose_video_latent",),
        remark="tested with the pose video; the face video's encoder takes 512x512 pixels only",
    ),
    "Flux": Tiny("Flux", _FLUX, IMAGE, conds=_POOLED, cfg=1.0, params=_FLUX_PARAMS),
    "Flux Kontext": Tiny(
        "Flux",
        _FLUX,
        IMAGE,
        conds={**_POOLED, "reference_latents": [IMAGE]},
        controls=("reference_latents",),
        cfg=1.0,
        params=_FLUX_PARAMS,
    ),
    "Flux 2": Tiny(
        "Flux2",
        _FLUX2,
        (1, 128, 4, 4),
        conds={**_POOLED, "reference_latents": [(1, 128, 4, 4)]},
        controls=("reference_latents",),
        cfg=1.0,
        params=_FLUX_PARAMS,
    ),
    "Chroma": Tiny("Chroma", _CHROMA, IMAGE, conds=_POOLED, params="chroma.model.ChromaParams"),
    "HunyuanVideo": Tiny("HunyuanVideo", _HUNYUAN, conds=_POOLED, cfg=1.0, params=_HUNYUAN_PARAMS),
    "HunyuanVideo 1.5": Tiny(
        "HunyuanVideo15",
        _HUNYUAN15,
        (1, 32, 2, 4, 4),
        conds={
            "clip_vision_output": (1, 16, 1152),
            "concat_latent_image": (1, 32, 2, 4, 4),
            "concat_mask": (1, 1, 2, 4, 4),
            "pooled_output": None,
        },
        controls=("concat_latent_image",),
        params=_HUNYUAN_PARAMS,
    ),
    "LTX-Video": Tiny(
        "LTXV",
        _LTXV,
        (1, 128, 3, 4, 4),
        conds={"attention_mask": torch.ones(1, TEXT[1], dtype=torch.int64)},
        kept=1,
        remark="a timestep of its own for each token",
    ),
    "LTX-2": Tiny(
        "LTXAV",
        _LTXAV,
        ((1, 128, 2, 4, 4), (1, 8, 4, 16)),
        (1, 8, 64),
        newer=True,
        remark="video and audio in one nested latent",
    ),
    "Qwen-Image": Tiny("QwenImage", _QWEN, QWEN),
    "Qwen-Image Edit": Tiny(
        "QwenImage", _QWEN, QWEN, conds={"reference_latents": [QWEN]}, controls=("reference_latents",)
    ),
    "Stable Diffusion 3": Tiny("SD3", _SD3, IMAGE, conds=_POOLED),
    "SDXL": Tiny(
        "SDXL",
        {**_UNET, "model_channels": 64, "num_classes": "sequential", "adm_in_channels": 1552},
        (1, 4, 8, 8),
        conds=_POOLED,
    ),
    "Stable Diffusion 1.5": Tiny("SD15", {**_UNET, "adm_in_channels": None}, (1, 4, 8, 8)),
    "Lumina 2": Tiny("Lumina2", _LUMINA, IMAGE),
    "Z-Image": Tiny(
        "ZImage",
        {
            **_LUMINA,
            "dim": 256,
            "axes_dims": [32, 48, 48],
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        IMAGE,
    ),
    "HiDream": Tiny("HiDream", _HIDREAM, IMAGE, conds={**_POOLED, "conditioning_llama3": (1, 2, 8, 32)}),
    "Cosmos": Tiny(
        "CosmosT2V",
        {
            **_COSMOS,
            "pos_emb_learnable": False,
            "block_config": "FA-CA-MLP",
            "block_x_format": "THWBD",
            "affline_emb_norm": True,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
        },
    ),
    "Cosmos Predict2": Tiny("CosmosT2IPredict2", {**_COSMOS, "pos_emb_learnable": True}),
    "Kandinsky 5": Tiny("Kandinsky5", {**_KANDINSKY, "visual_embed_dim": 132}, conds=_POOLED, newer=True),
}
