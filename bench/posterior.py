"""An analytic denoiser: the posterior mean of a clip, patch by patch, under a set of known clips. Nothing is trained.

A flow model sees x = (1 - sigma) c + sigma noise. The prior here is a finite set of clips c_1 ... c_K with weights
pi_k, each blurred by a kernel of standard deviation h, so x = (1 - sigma) (c_k + h n') + sigma n with unit normal n,
n'. At the latent cell p = (frame, row, column) the estimate is the mean of what the clips hold at p,

    D(x)[p] = sum_k w_k[p] c_k[p]                                                                       (1)
    w_k[p]  ~ pi_k exp( - sum_q g(q - p) |x[q] - (1 - sigma) c_k[q]|^2 / (2 v) ),    sum_k w_k[p] = 1   (2)
    v       = sigma^2 + (1 - sigma)^2 h^2,    g(r) = exp(-|r|^2 / (2 s^2))                              (3)
    s       = min(s_most, s_least + s_rate sigma / (1 - sigma))    in cells                             (4)

For g = 1 this is E[c | x], the exact posterior mean. With a window g it is the posterior mean given a patch around p,
where a cell at distance r counts as seen with noise variance v / g(r). Far cells count less, so patches of different
clips combine, and results are new clips.

The window (4) shrinks as the noise goes, as it does in trained networks (Kamb & Ganguli, "An analytic theory of
creativity in convolutional diffusion models", arXiv 2412.20292). By s ~ sigma / (1 - sigma), the evidence in a patch
does not grow much faster than the window loses cells, so choices between clips are made over the whole run and not at
once. Each choice is a softmax that tips over within few model calls: that is what makes the model rough. s_least,
s_rate and h set how rough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Roughness:
    """kernel: h of equation 3, in units of the latent. least, rate, most: s_least, s_rate, s_most of equation 4."""

    kernel: float = 0.1
    least: float = 0.8
    rate: float = 0.02
    most: float = 8.0

    def window(self, sigma: float) -> float:
        """Standard deviation of the window in cells (equation 4)."""
        return min(self.most, self.least + self.rate * sigma / max(1.0 - sigma, 1e-6))

    def variance(self, sigma: float) -> float:
        """v of equation 3."""
        return sigma**2 + ((1.0 - sigma) * self.kernel) ** 2


class PosteriorMean(nn.Module):
    """Equations 1 to 4 on a bank of clips, (K, C, T, H, W) float32, kept as (T H W, K, C) for two batched products."""

    def __init__(self, clips: Tensor, roughness: Roughness) -> None:
        super().__init__()
        self.grid = tuple(clips.shape[2:])
        self.roughness = roughness
        bank = clips.permute(2, 3, 4, 0, 1).flatten(0, 2).contiguous()
        # A parameter, so that it counts as the model's weights: for its size, its device and its identity.
        self.bank = nn.Parameter(bank, requires_grad=False)
        self.register_buffer("norms", bank.square().sum(-1, keepdim=True), persistent=False)

    def forward(self, x: Tensor, sigma: float, prior: Tensor) -> Tensor:
        """x: (B, C, T, H, W) noisy latents. prior: (B, K), not negative, any sum. Returns D(x), shaped as x."""
        cells = x.permute(2, 3, 4, 1, 0).flatten(0, 2)
        alpha = 1.0 - sigma
        # |x[q]|^2 is left out: it is the same for every clip.
        distance = alpha * alpha * self.norms - 2.0 * alpha * (self.bank @ cells)
        evidence = self._windowed(distance, self.roughness.window(sigma)) / (2.0 * self.roughness.variance(sigma))
        weights = torch.softmax(prior.log().T - evidence, dim=1)
        mean = weights.transpose(1, 2) @ self.bank
        return mean.unflatten(0, self.grid).permute(3, 4, 0, 1, 2).contiguous()

    def _windowed(self, values: Tensor, width: float) -> Tensor:
        """Sum over q of g(q - p) values[q], one axis of the grid after the other. values: (T H W, K, B)."""
        frames, rows, columns = (_gaussian(count, width).to(values) for count in self.grid)
        grid = values.reshape(*self.grid, -1)
        grid = torch.einsum("st,tyxn->syxn", frames, grid)
        grid = torch.einsum("zy,tyxn->tzxn", rows, grid)
        return torch.einsum("wx,tyxn->tywn", columns, grid).reshape(values.shape)


def _gaussian(count: int, width: float) -> Tensor:
    """(count, count) of g(q - p) along one axis."""
    place = torch.arange(count, dtype=torch.float32)
    return torch.exp(-0.5 * ((place[:, None] - place[None]) / width) ** 2)
