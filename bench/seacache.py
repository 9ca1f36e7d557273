"""SeaCache: reuse the block stack's residual while the first block's filtered input has changed little.

Written from the paper (arXiv 2602.18993, CVPR 2026) and the public code's description. Before each model call the first
block's modulated input, norm(x) (1 + scale) + shift on the grid of tokens, is filtered along frames, rows and columns:

    gain_axis = a S / (a^2 S + b^2),  S = 1 / |f|^3,  a = 1 - sigma,  b = sigma       the Wiener filter
    gain      = product over the axes, divided by its mean

The relative L1 change of the filtered input from one model call to the next, computed or not, is added up. A sum below
the threshold reuses the residual, otherwise the call is computed and the sum starts again. Nothing is calibrated.

Tuned: the threshold, and the published two choices of calls that are computed whatever the sum is: the first and the
last, or a tenth at the start and none at the end.

Departures: one decision for all conds of a model call. In a Wan it is the original's, which decides for each cond: the
prompt enters behind that input. The first model call's input is filtered too; the public code keeps those of the
protected calls unfiltered, and so starts its first sum with the difference of a filtered and an unfiltered input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from .embeddings import relative_l1
from .methods import Place, Proposals, Setting
from .online import Executor, halved, online, wrap_forward

LOWEST, HIGHEST = 0.002, 2.0
POWER = 3.0
_TINY = 1e-16  # keeps the constant part's signal finite


def seacache(place: Place) -> Proposals:
    """The threshold searched for both published ways to protect the ends."""
    for first, last in ((1, 1), (max(1, place.steps // 10), 0)):
        yield from halved(place, LOWEST, HIGHEST, functools.partial(_setting, first, last))


def _setting(first: int, last: int, threshold: float) -> Setting:
    label = f"threshold {threshold:g}, {first} first and {last} last computed"
    return Setting(label, functools.partial(filtered, threshold=threshold, first=first, last=last))


def filtered(model: Any, threshold: float, first: int, last: int) -> Any:
    """A clone that follows the rule. The model is a Wan."""
    return online(model, lambda grid, patcher: Filtering(Sums(threshold, first, last, len(grid) - 1), patcher))


class Sums:
    """When to compute: the rule on a run of ``count`` model calls."""

    def __init__(self, threshold: float, first: int, last: int, count: int) -> None:
        self._threshold, self._protected = threshold, range(first, count - last)
        self._last: torch.Tensor | None = None
        self._sum = 0.0

    def computes(self, i: int, seen: torch.Tensor) -> bool:
        """Whether model call i is computed, by its filtered input. Calls come in their order."""
        change = 0.0 if self._last is None else relative_l1(seen, self._last)
        self._last = seen
        if i == 0 or i not in self._protected:
            return True
        self._sum += change
        if self._sum < self._threshold:
            return False
        self._sum = 0.0
        return True


class Filtering:
    """The rule in one run, at a Wan's block stack."""

    def __init__(self, sums: Sums, patcher: Any) -> None:
        self._sums, self._model = sums, patcher.model.diffusion_model
        self._call, self._sigma = -1, 1.0
        self._grid: tuple[int, ...] = ()
        self._keys: list[Any] = []
        self._computes: bool | None = None  # of the current model call; None before its first forward
        self._entered: torch.Tensor | None = None
        self._residuals: dict[Any, torch.Tensor] = {}

    def prepare(self, model_options: dict[str, Any]) -> None:
        wrap_forward(self.forward, model_options)

    def call_model(self, executor: Executor, x: torch.Tensor, sigma: torch.Tensor, *rest: Any) -> torch.Tensor:
        self._call += 1
        self._sigma, self._computes = float(sigma.reshape(-1)[0]), None
        return executor(x, sigma, *rest)

    def forward(self, executor: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper: one call per batch of conds."""
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "uuids" in a)
        self._keys = options["uuids"]
        self._grid = tuple(-(-n // p) for n, p in zip(x.shape[2:], self._model.patch_size, strict=True))
        patched = self._patched(options)
        positional = [patched if arg is options else arg for arg in args]
        named = {name: patched if arg is options else arg for name, arg in kwargs.items()}
        try:
            return executor(x, *positional, **named)
        finally:
            self._entered = None

    def _patched(self, options: dict[str, Any]) -> dict[str, Any]:
        others = options.get("patches_replace", {})
        count = len(self._model.blocks)
        blocks = {("double_block", i): functools.partial(self.block, i, count - 1) for i in range(count)}
        return {**options, "patches_replace": {**others, "dit": {**others.get("dit", {}), **blocks}}}

    def block(self, i: int, last: int, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """The replacement of block i."""
        tokens = args["img"]
        if i == 0 and self._computes is None:
            self._computes = self._sums.computes(self._call, self._seen(tokens, args["vec"]))
        if not self._computes:
            return {"img": tokens + self._kept() if i == last else tokens}
        if i == 0:
            self._entered = tokens.clone()
        out: dict[str, Any] = extra["original_block"](args)
        if i == last:
            self._residuals.update(self._apart(out["img"] - self._entered))
        return out

    def _seen(self, tokens: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:
        """The first cond's filtered input, (B, F, H, W, C)."""
        part = len(tokens) // len(self._keys)
        seen = modulated(self._model.blocks[0], tokens[:part], vec[:part]).unflatten(1, self._grid)
        return wiener(seen, self._sigma)

    def _kept(self) -> torch.Tensor:
        return torch.cat([self._residuals[key] for key in self._keys])

    def _apart(self, residual: torch.Tensor) -> dict[Any, torch.Tensor]:
        return dict(zip(self._keys, residual.chunk(len(self._keys)), strict=True))


def modulated(block: Any, tokens: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:
    """What the block's attention gets, float32. tokens (B, N, C); vec: the projected time embedding, (B, 6, C) or
    (B, 1, 6, C)."""
    vec = vec[:, 0] if vec.ndim == 4 else vec
    shift, scale = (block.modulation.to(vec) + vec)[:, :2].float().chunk(2, dim=1)
    normed: torch.Tensor = block.norm1(tokens).float()
    return normed * (1.0 + scale) + shift


def wiener(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """x (B, F, H, W, C) filtered along frames, rows and columns for a flow model's sigma in [0, 1]."""
    sigma = min(max(sigma, 1e-6), 1.0 - 1e-6)
    gains = torch.ones((), device=x.device)
    for axis in (1, 2, 3):
        shape = [-1 if n == axis else 1 for n in range(x.ndim)]
        gains = gains * gain(x.shape[axis], sigma).to(x.device).reshape(shape)
    spectrum = torch.fft.fftn(x.float(), dim=(1, 2, 3)) * (gains / gains.mean())
    return torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real


def gain(length: int, sigma: float) -> torch.Tensor:
    """(length,) of the frequencies of one axis, before the division by the mean."""
    signal = 1.0 / (torch.fft.fftfreq(length).abs() ** POWER + _TINY)
    return (1.0 - sigma) * signal / ((1.0 - sigma) ** 2 * signal + sigma**2 + _TINY)
