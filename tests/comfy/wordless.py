"""A subject for the bench that needs no text encoder."""

from __future__ import annotations

import torch


class Clips:
    """A subject without words: prompt n is random conditioning, frames are the latent's first channels."""

    prompts = tuple(range(25))

    def __init__(self):
        self.negative = self.encode(99)

    def encode(self, prompt):
        return [[torch.randn(1, 4, 4096, generator=torch.Generator().manual_seed(prompt)), {}]]

    def latent(self):
        return torch.zeros(1, 16, 2, 4, 4)

    def frames(self, latent):
        shown = latent[0, :3].permute(1, 2, 3, 0).float().sigmoid()
        return shown.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).numpy()
