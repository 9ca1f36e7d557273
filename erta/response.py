"""The impulse response of a sampler (docs/method.md, Impulse response).

A deterministic sampler is linear in its first latent and in the derivatives ``d = (x - denoised) / sigma`` of its
model. A run on unit impulses measures the rest; no model and no sampler's name is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_CALLS = 1000

# Superposition holds to this share: functions with float32 constants, of which other packs have some, in either dtype.
PRECISION = 2e-5

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), sigma (B,)) -> denoised (B, ...), as samplers call their model."""

RunSampler = Callable[[Denoise, Tensor], Tensor]
"""(model, first latent (B, 1, ...)) -> last latent of the same shape: one complete run of a sampler."""


class UnknownResponse(Exception):
    """The sampler has no impulse response that can be relied on; the message says why, for the report."""


@dataclass(frozen=True)
class ImpulseResponse:
    """What one sampler does with M model outputs.

    sigmas: (M,) float64, sigma at each model call in the order of the calls.
    matrix: (M, M + 1) float64; ``[i, e]`` is dx at call e per unit of output i, the last column that of the final
    latent. For Euler's method ``matrix[i, e] = sigma[i + 1] - sigma[i]`` for every e > i.
    stochastic: the sampler adds fresh noise of its own on the way.
    """

    sigmas: np.ndarray
    matrix: np.ndarray
    stochastic: bool = False

    @property
    def calls(self) -> int:
        """M, how often the sampler calls its model."""
        return len(self.sigmas)

    @property
    def end(self) -> np.ndarray:
        """(M,) impulse response of each output on the final latent."""
        return self.matrix[:, -1]

    @property
    def signature(self) -> tuple[float, float, float]:
        """Three sums over the matrix, which tell samplers on one schedule apart."""
        ramp = np.linspace(1.0, 2.0, self.calls)
        return float(np.abs(self.matrix).sum()), float((ramp @ self.matrix).sum()), float(ramp**2 @ self.end)

    @property
    def multistep(self) -> bool:
        """Whether steps take back part of what the step before did, as those of linear multistep methods do."""
        if self.calls < 3:
            return False
        first, second, third = (np.diagonal(self.matrix, offset)[: self.calls - 2] for offset in (1, 2, 3))
        # A bend: what fresh noise drowns falls off evenly.
        return bool(np.mean(np.abs(first - 2.0 * second + third) > 0.1 * np.abs(first)) > 0.75)

    def calls_once_per_step(self, schedule: np.ndarray) -> bool:
        """Whether call i happens at schedule[i] and nowhere else, so that moving the sigmas moves the steps."""
        nominal = np.asarray(schedule, dtype=np.float64)[:-1]
        return len(nominal) == self.calls and bool(np.allclose(nominal, self.sigmas, rtol=1e-5, atol=1e-9))


class _Scripted:
    """A model whose derivative at call e is row e of a script, whatever x is; it keeps what it was asked."""

    def __init__(self, outputs: Callable[[int, Tensor], Tensor]) -> None:
        self.outputs = outputs
        self.sigmas: list[float] = []
        self.positions: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if len(self.sigmas) >= MAX_CALLS:
            raise UnknownResponse(f"it calls the model more than {MAX_CALLS} times")
        first = float(sigma.reshape(-1)[0])
        if not first > 0.0:
            raise UnknownResponse(f"it calls the model at sigma {first:g}, where the derivative does not exist")
        index = len(self.sigmas)
        self.sigmas.append(first)
        # A copy: some samplers step in place.
        self.positions.append(x.detach().reshape(x.shape[0]).to(torch.float64, copy=True))
        d = self.outputs(index, x).to(x).reshape(x.shape)
        return x - d * sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _pattern(index: int) -> float:
    """A fixed sequence without a pattern that a sampler could share; no random state is touched."""
    return float(np.cos(1.0 + 2.7 * index))


def probe(run: RunSampler, dtype: torch.dtype = torch.float64) -> ImpulseResponse:
    """Measure a sampler's response by two model-free runs on one-element latents.

    The first run counts the calls. The second has M + 1 batch elements: element b gets d = 1 at call b and 0
    elsewhere, the last one gets twice the outputs of the first run. Raises UnknownResponse where the number of calls
    or their sigmas depend on the outputs, where superposition fails, or where the model is never called.
    """
    counting = _Scripted(lambda e, x: torch.full((x.shape[0],), _pattern(e)))
    run(counting, torch.zeros(1, 1, 1, 1, 1, dtype=dtype))
    count = len(counting.sigmas)
    if count == 0:
        raise UnknownResponse("it never calls the model")

    def impulses(e: int, x: Tensor) -> Tensor:
        d = torch.zeros(x.shape[0], dtype=torch.float64)
        if e < count:
            d[e] = 1.0
        d[-1] = 2.0 * _pattern(e)
        return d

    scripted = _Scripted(impulses)
    last = run(scripted, torch.zeros(count + 1, 1, 1, 1, 1, dtype=dtype))
    if scripted.sigmas != counting.sigmas:
        raise UnknownResponse("how often or where it calls the model depends on the model's outputs")
    columns = [*scripted.positions, last.detach().reshape(count + 1).to(torch.float64)]
    moved = torch.stack(columns, dim=1).numpy()
    _check_superposition(moved)
    return ImpulseResponse(np.array(counting.sigmas), moved[:-1].copy())


def _check_superposition(moved: np.ndarray) -> None:
    matrix, combined = moved[:-1], moved[-1]
    outputs = np.array([2.0 * _pattern(e) for e in range(len(matrix))])
    expected = outputs @ matrix
    scale = np.abs(outputs) @ np.abs(matrix) + 1e-6 * np.abs(matrix).max()
    if not np.isfinite(moved).all():
        raise UnknownResponse("its response to a unit impulse is not finite")
    if np.any(np.abs(combined - expected) > PRECISION * scale + 1e-30):
        raise UnknownResponse("its result is not a linear function of the model's outputs")
    if not np.abs(matrix[:, -1]).max() > 0.0:
        raise UnknownResponse("its result does not depend on the model's outputs")
