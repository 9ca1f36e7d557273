"""The model under test: its weights, its prompts as conditioning, its empty latent, its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import comfy.sd
import folder_paths
import numpy as np
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

import nodes

from ..demo.tiny_wan import clips, codec, words
from . import rough, rough_clips
from .config import Config
from .loading import ROOT

Conditioning = list[list[Any]]

# Prompts at the end of a list that nothing is compared on: profiles are recorded on the last, thresholds are tuned on
# those before them.
RECORDED, TUNED = 16, 4


class Subject(Protocol):
    prompts: tuple[Any, ...]
    negative: Conditioning

    def encode(self, prompt: Any) -> Conditioning:
        """A prompt as ComfyUI's conditioning."""

    def latent(self) -> torch.Tensor:
        """(1, C, T, h, w) of zeros."""

    def frames(self, latent: torch.Tensor) -> np.ndarray:
        """(1, C, T, h, w) from a sampler -> (F, H, W, 3) float32 in [0, 1]."""


def model_file(config: Config) -> Path:
    """The weights: in the repository, at a path, or in ComfyUI's folders; the clips of the rough model."""
    if config.model == rough.NAME:
        return rough_clips.wheel()
    for path in (ROOT / config.model, Path(config.model)):
        if path.is_file():
            return path
    return Path(folder_paths.get_full_path_or_raise("diffusion_models", config.model))


def load_model(config: Config) -> Any:
    """The ModelPatcher, with the config's shift."""
    options = {} if config.dtype == "default" else {"dtype": getattr(torch, config.dtype)}
    if config.model == rough.NAME:
        model = rough.rough_model(rough.known_clips())
    else:
        model = comfy.sd.load_diffusion_model(str(model_file(config)), model_options=options)
    return ModelSamplingSD3().patch(model, config.shift)[0] if config.shift else model


class TinyWan:
    """The demo's stand-in: prompts that training never saw, a vocabulary as text encoder, a fixed codec as VAE."""

    def __init__(self) -> None:
        self.prompts = tuple(clips.unseen_prompts(64))
        self.negative = self.encode((words.MISSING,) * 4)

    def encode(self, prompt: Any) -> Conditioning:
        return [[words.embed(torch.tensor([prompt])), {}]]

    def latent(self) -> torch.Tensor:
        side = clips.SIZE // codec.BLOCK
        return torch.zeros(1, codec.CHANNELS, clips.FRAMES, side, side)

    def frames(self, latent: torch.Tensor) -> np.ndarray:
        from comfy.latent_formats import Wan21

        decoded: np.ndarray = codec.decode(Wan21().process_in(latent.float()))[0].numpy()
        return decoded


class StockWan:
    """A Wan with its own text encoder and VAE, through ComfyUI's loader nodes."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.prompts = config.prompts
        self._clip = nodes.CLIPLoader().load_clip(config.clip, config.clip_type)[0]
        self._vae = nodes.VAELoader().load_vae(config.vae)[0]
        self.negative = self.encode(config.negative)

    def encode(self, prompt: Any) -> Conditioning:
        encoded: Conditioning = nodes.CLIPTextEncode().encode(self._clip, prompt)[0]
        return encoded

    def latent(self) -> torch.Tensor:
        config = self.config
        return torch.zeros(1, 16, (config.frames - 1) // 4 + 1, config.height // 8, config.width // 8)

    def frames(self, latent: torch.Tensor) -> np.ndarray:
        images = nodes.VAEDecode().decode(self._vae, {"samples": latent})[0]
        decoded: np.ndarray = images.float().cpu().numpy().clip(0.0, 1.0)
        return decoded


def make_subject(config: Config) -> Subject:
    if config.model == rough.NAME:
        return rough.RoughClips(rough.known_clips())
    return TinyWan() if config.tiny else StockWan(config)
