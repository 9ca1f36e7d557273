"""Wan2.1's architecture at its real dimensions in ComfyUI, with random weights.

Time and memory do not depend on what the weights are.
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from typing import Any

import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.utils
import torch

from ..erta.profile import Profile

TEXT_WIDTH = 4096

SCHEDULER, SAMPLER, GUIDANCE = "simple", "euler", 5.0


@dataclass(frozen=True)
class Size:
    """Dimensions of the transformer. ComfyUI reads the number of heads as dim / 128. text: tokens of a prompt; ComfyUI
    pads what Wan's text encoder gives to 512."""

    dim: int
    ffn: int
    layers: int
    text: int = 512


SIZES = {"1.3B": Size(1536, 8960, 30), "14B": Size(5120, 13824, 40)}

# Of the same shape, small enough that a step takes a second or two on two CPU cores.
REDUCED = {"1.3B": Size(384, 2304, 4, 64), "14B": Size(512, 1408, 5, 64)}

# As small as ComfyUI's loader takes it for a Wan.
TINY = {"1.3B": Size(128, 256, 2, 8), "14B": Size(128, 384, 2, 8)}


@dataclass(frozen=True)
class Clip:
    """What is rendered, in frames and pixels."""

    frames: int
    width: int
    height: int
    batch: int = 1

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.batch, 16, (self.frames - 1) // 4 + 1, self.height // 8, self.width // 8

    @property
    def latent_bytes(self) -> int:
        """In float32, as the sampler holds it: the unit in which memory is stated."""
        return 4 * math.prod(self.latent_shape)

    @property
    def tokens(self) -> int:
        """Of one video: patches of 2x2, the edges padded."""
        _, _, frames, height, width = self.latent_shape
        return frames * (-(-height // 2)) * (-(-width // 2))


class FullModel:
    """One model, loaded as ComfyUI loads a checkpoint, and one call that samples it."""

    def __init__(self, size: Size) -> None:
        self.size = size
        comfy.utils.set_progress_bar_enabled(False)
        where = comfy.model_management.get_torch_device()
        # ComfyUI computes in float32 on a CPU whatever the weights are in, and would cast them at every step.
        self.dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        weights = random_weights(size, self.dtype, where)
        self.patcher: Any = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": self.dtype})
        generator = torch.Generator().manual_seed(3)
        texts = torch.randn(2, 1, size.text, TEXT_WIDTH, generator=generator)
        self.positive, self.negative = ([[text, {}]] for text in texts)
        self.profiles: dict[tuple[str, int], Profile] = {}

    @property
    def blocks(self) -> torch.nn.ModuleList:
        found: torch.nn.ModuleList = self.patcher.model.diffusion_model.blocks
        return found

    @property
    def device(self) -> torch.device:
        found: torch.device = self.patcher.load_device
        return found

    def sample(self, patcher: Any, clip: Clip, steps: int, callback: Any = None) -> torch.Tensor:
        """As KSampler does it, with an empty latent."""
        latent = torch.zeros(clip.latent_shape)
        noise = comfy.sample.prepare_noise(latent, 5)
        sampled: torch.Tensor = comfy.sample.sample(
            patcher,
            noise,
            steps,
            GUIDANCE,
            SAMPLER,
            SCHEDULER,
            self.positive,
            self.negative,
            latent,
            callback=callback,
            disable_pbar=True,
            seed=5,
        )
        return sampled

    def unload(self) -> None:
        """Give the memory back before another model is made."""
        del self.patcher
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()


def random_weights(size: Size, dtype: torch.dtype, where: torch.device) -> dict[str, torch.Tensor]:
    """A state dict in RAM, as a checkpoint's would be; drawn on the device, where it takes seconds for 14B."""
    empty = comfy.ldm.wan.model.WanModel(
        dim=size.dim,
        ffn_dim=size.ffn,
        num_heads=size.dim // 128,
        num_layers=size.layers,
        text_dim=TEXT_WIDTH,
        device="meta",
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator(where).manual_seed(7)
    weights = {}
    for name, parameter in empty.state_dict().items():
        values = torch.empty(parameter.shape, dtype=dtype, device=where)
        if values.ndim == 1:
            values.fill_(1.0 if ".norm" in name and name.endswith("weight") else 0.0)
        else:
            values.normal_(0.0, math.prod(parameter.shape[1:]) ** -0.5, generator=generator)
        weights[name] = values.cpu()
    return weights
