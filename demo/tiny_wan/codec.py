"""A fixed linear codec between RGB frames and 16-channel latents: no weights, no training.

Each 6x6 pixel block is turned into an orthonormal luma/chroma basis and an orthonormal 6x6 DCT; the lowest
10 luma and 3 + 3 chroma coefficients are kept and scaled by fixed constants. One frame is one latent frame.
"""

from __future__ import annotations

import math

import torch

BLOCK = 6
CHANNELS = 16
KEPT = (10, 3, 3)


def _dct() -> torch.Tensor:
    """(6, 6) orthonormal DCT-II matrix, rows = frequencies."""
    k = torch.arange(BLOCK, dtype=torch.float64)
    matrix = torch.cos(math.pi / BLOCK * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix


def _basis() -> torch.Tensor:
    """(16, 3 * 6 * 6) orthonormal rows: the kept coefficients of a block laid out as (rgb, y, x)."""
    opponent = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    opponent = opponent / opponent.norm(dim=1, keepdim=True)
    order = sorted(((u, v) for u in range(BLOCK) for v in range(BLOCK)), key=lambda f: (f[0] + f[1], f[0]))
    dct = _dct()
    rows = [
        torch.einsum("c,y,x->cyx", opponent[plane], dct[u], dct[v]).flatten()
        for plane, kept in enumerate(KEPT)
        for u, v in order[:kept]
    ]
    return torch.stack(rows).float()


BASIS = _basis()
SCALE = torch.tensor([0.22, *[1.6] * 2, *[3.4] * 3, *[5.5] * 4, *[0.5, 1.7, 1.7] * 2])


def encode(frames: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, 3) frames in [0, 1] -> (B, 16, T, H/6, W/6) latents."""
    b, t, h, w, _ = frames.shape
    blocks = (frames * 2 - 1).reshape(b, t, h // BLOCK, BLOCK, w // BLOCK, BLOCK, 3)
    blocks = blocks.permute(0, 1, 2, 4, 6, 3, 5).flatten(4)
    return ((blocks @ BASIS.T.to(blocks)) * SCALE.to(blocks)).permute(0, 4, 1, 2, 3).contiguous()


def decode(latents: torch.Tensor) -> torch.Tensor:
    """(B, 16, T, h, w) latents -> (B, T, 6h, 6w, 3) frames, clipped to [0, 1]."""
    b, _, t, h, w = latents.shape
    blocks = (latents.permute(0, 2, 3, 4, 1) / SCALE.to(latents)) @ BASIS.to(latents)
    blocks = blocks.reshape(b, t, h, w, 3, BLOCK, BLOCK).permute(0, 1, 2, 5, 3, 6, 4)
    return ((blocks.reshape(b, t, h * BLOCK, w * BLOCK, 3) + 1) / 2).clamp(0, 1)
