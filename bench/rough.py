"""The rough stand-in: the analytic denoiser of bench/posterior.py as a ComfyUI model, on real moving pictures.

Its roughness is set once, so that it is about as hard on a cache as the real Wan2.1. At shift 0.8 and guidance 3,
against its own full run of 50 Euler steps (16 prompts, median / worst PSNR): 25 plain steps 19.5 / 17.6 dB, LeMiCa's
list of 25 for Wan2.1 1.3B, held, 24.3 / 20.2 dB, another seed 11.6 / 9.1 dB. A model call takes about 9 ms on one CPU
thread.

A prompt is a set of sources: the clips cut from them, and those mirrored, are the prior of the cond. All clips are the
prior of the uncond. So guidance has its usual meaning, and a prompt is to the model what a text is to a trained one: it
says which part of the known clips is meant.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import numpy as np
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

from ..demo.tiny_wan import codec
from .posterior import PosteriorMean, Roughness
from .rough_clips import rough_clips

NAME = "rough"
"""What a config names as its model."""
PROMPTS, SOURCES = 64, 8
"""How many prompts there are, and of how many sources each is made."""
MULTIPLIER = 1000
"""Of sigma, for the timestep; as in Wan."""


class Clips:
    """Clips as latents: the tiny Wan's codec without its scales, which makes distances those of pixels.

    frames: (sources, cuts, F, H, W, 3) uint8. latents: (K, 16, F, H/6, W/6), of mean 0 per channel and root mean square
    1 over all; sources: (K,) which source each is from.
    """

    def __init__(self, frames: np.ndarray) -> None:
        pixels = torch.from_numpy(frames.copy()).float() / 255
        pixels = torch.cat([pixels, pixels.flip(-2)], dim=1)
        self.count = pixels.shape[0]
        self.sources = torch.arange(self.count).repeat_interleave(pixels.shape[1])
        raw = codec.encode(pixels.flatten(0, 1)) / _scale()
        self._mean = raw.mean((0, 2, 3, 4), keepdim=True)
        self._size = (raw - self._mean).square().mean().sqrt()
        self.latents = (raw - self._mean) / self._size

    def decode(self, latent: Tensor) -> np.ndarray:
        """(1, 16, F, h, w) -> (F, 6h, 6w, 3) float32 in [0, 1]."""
        raw = latent.float().cpu() * self._size + self._mean
        decoded: np.ndarray = codec.decode(raw * _scale())[0].numpy()
        return decoded


def _scale() -> Tensor:
    return codec.SCALE.view(1, -1, 1, 1, 1)


class PatchDenoiser(nn.Module):
    """The diffusion model: (x, timestep, context) -> velocity (x - D(x)) / sigma.

    context: (B, 1, sources), 1 for the sources of the prompt and 0 for others; all where none is named.
    """

    dtype = torch.float32

    def __init__(self, clips: Clips, roughness: Roughness) -> None:
        super().__init__()
        self.register_buffer("sources", clips.sources, persistent=False)
        # In a list like the blocks of a transformer: the bench counts model calls at its last one.
        self.layers = nn.ModuleList([PosteriorMean(clips.latents, roughness)])

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict[str, Any], **others: Any
    ) -> Tensor:
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        velocity: Tensor = executor.execute(x, timestep, context, transformer_options)
        return velocity

    def _forward(self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        if not torch.equal(timestep, timestep[:1].expand_as(timestep)):
            raise ValueError(f"one timestep for the whole batch is needed, these are {timestep.tolist()}")
        sigma = float(timestep.flatten()[0]) / MULTIPLIER
        named = context[:, 0]
        chosen = torch.where(named.any(dim=1, keepdim=True), named, torch.ones_like(named))
        denoised = self.layers[-1](x, sigma, chosen[:, self.sources])
        return (x - denoised) / max(sigma, 1e-6)


class _Format(comfy.latent_formats.LatentFormat):
    latent_channels = codec.CHANNELS
    latent_dimensions = 3


class _Supported(comfy.supported_models_base.BASE):
    sampling_settings = {"shift": 1.0, "multiplier": MULTIPLIER}  # noqa: RUF012  as ComfyUI's own declare it
    latent_format = _Format


class RoughModel(comfy.model_base.BaseModel):
    def __init__(self, clips: Clips, roughness: Roughness) -> None:
        config = _Supported({"disable_unet_model_creation": True})
        super().__init__(config, comfy.model_base.ModelType.FLOW)
        self.diffusion_model = PatchDenoiser(clips, roughness).eval()


@functools.cache
def known_clips() -> Clips:
    """The real ones. Raises FileNotFoundError where they cannot be had."""
    return Clips(rough_clips())


def rough_model(clips: Clips, roughness: Roughness | None = None) -> Any:
    """The ModelPatcher."""
    management = comfy.model_management
    model = RoughModel(clips, roughness or Roughness())
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


class RoughClips:
    """The subject: prompts that name sources, and the clips' codec."""

    def __init__(self, clips: Clips) -> None:
        self._clips = clips
        draw = random.Random(2024)
        self.prompts = tuple(tuple(sorted(draw.sample(range(clips.count), SOURCES))) for _ in range(PROMPTS))
        self.negative = self.encode(range(clips.count))

    def encode(self, prompt: Sequence[int]) -> list[list[Any]]:
        named = torch.zeros(1, 1, self._clips.count)
        named[..., list(prompt)] = 1.0
        return [[named, {}]]

    def latent(self) -> Tensor:
        return torch.zeros_like(self._clips.latents[:1])

    def frames(self, latent: Tensor) -> np.ndarray:
        return self._clips.decode(latent)
