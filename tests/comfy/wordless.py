"""A subject for the bench that needs no text encoder, and what is made on it."""

from __future__ import annotations

from dataclasses import replace

import torch


def rigs(model, config, prompts):
    """make(**changes): a rig of the model on so many prompts, with a changed config."""
    from ertacache.bench.rig import Rig

    return lambda **changes: Rig(replace(config, **changes), prompts, Clips(), model)


def calibration_of(rig, folder):
    """The rig's, kept in a folder."""
    from ertacache.bench.calibration import Calibration
    from ertacache.bench.kept import Kept

    kept = Kept(folder, "test")
    return Calibration(rig, rivals=kept, ours=kept)


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
