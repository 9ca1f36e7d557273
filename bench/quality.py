"""How far a result lies from the full run with the same seed."""

from __future__ import annotations

from dataclasses import dataclass

import flip_evaluator
import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

# Equal clips have no PSNR; JSON and plots want a number.
MOST_DB = 120.0


@dataclass(frozen=True)
class Score:
    """psnr: dB over the whole clip. ssim: scikit-image's defaults, mean over frames. flip: mean over frames, 0 = equal,
    at the library's default of 67 pixels per degree. latent_l1: |x - ref|_1 / |ref|_1 of the final latent."""

    psnr: float
    ssim: float
    flip: float
    latent_l1: float


def score(frames: np.ndarray, reference: np.ndarray, latent: torch.Tensor, reference_latent: torch.Tensor) -> Score:
    """frames, reference: (F, H, W, 3) float32 in [0, 1]; latents in the model's own units."""
    difference = (latent - reference_latent).abs().sum() / reference_latent.abs().sum()
    pairs = list(zip(reference, frames, strict=True))
    return Score(
        psnr=psnr(frames, reference),
        ssim=float(np.mean([structural_similarity(a, b, data_range=1.0, channel_axis=-1) for a, b in pairs])),
        flip=float(np.mean([flip_of(a, b) for a, b in pairs])),
        latent_l1=float(difference),
    )


def psnr(frames: np.ndarray, reference: np.ndarray) -> float:
    """Over all frames together, at most MOST_DB."""
    if np.array_equal(frames, reference):
        return MOST_DB
    return min(float(peak_signal_noise_ratio(reference, frames, data_range=1.0)), MOST_DB)


def flip_of(reference: np.ndarray, frame: np.ndarray) -> float:
    """LDR-FLIP of one frame (H, W, 3), sRGB in [0, 1]."""
    images = (np.ascontiguousarray(image, dtype=np.float32) for image in (reference, frame))
    # A dictionary of its own: the library writes into its argument.
    _, mean, _ = flip_evaluator.evaluate(*images, "LDR", applyMagma=False, parameters={})
    return float(mean)
