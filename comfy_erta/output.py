"""Output level: the feature is the derivative d = (x - denoised) / sigma after guidance, at PREDICT_NOISE.

Needs nothing of the model's code, and keeps one tensor of the latent's size per kept model call. Each part of a nested
latent, which ComfyUI samples packed into one (B, 1, N), is a stream of its own: the larger one would hide the other.
"""

from typing import Any

import torch
from torch import Tensor

from ..erta.notes import note
from .neighbours import Forwards, Memory
from .session import Session

GUIDED = "guided"


class OutputLevel:
    """Reuse after guidance, for any model and guider."""

    def __init__(self, session: Session) -> None:
        self.session = session
        many = len(session.parts) > 1
        self.keys = [f"{GUIDED}/{n}" for n in range(len(session.parts))] if many else [GUIDED]
        self.forwards: Forwards | None = None
        self.memory: Memory | None = None

    def prepare(self, guider: Any) -> None:
        self.forwards, self.memory = Forwards(guider), Memory(guider)

    def call_model(self, executor: Any, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        x, timestep = args[0], args[1]
        doubt = self._doubt()
        d = None if doubt else self._predicted()
        if d is not None and d.shape == x.shape and d.device == x.device:
            return from_d(x, timestep, d), True
        self.session.check(timestep)
        denoised = self._computed(executor, x, *args, **kwargs)
        if self.session.observer is None or (doubt and self.session.expects_reuse):
            return denoised, False
        d = to_d(x, timestep, denoised)
        used = self._observed(d)
        # Untouched where nothing is corrected: the way through d and back costs 1e-5 in float32.
        return (denoised if used is d else from_d(x, timestep, used)), False

    def _predicted(self) -> Tensor | None:
        """All parts beside each other, or None where one of them is to be computed."""
        found = [part for part in map(self.session.predict, self.keys) if part is not None]
        if len(found) < len(self.keys):
            return None
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def _observed(self, d: Tensor) -> Tensor:
        """What to go on with; d itself where no part is corrected."""
        parts = d.split(self.session.parts, dim=-1) if len(self.keys) > 1 else (d,)
        used = [self.session.observe(key, part) for key, part in zip(self.keys, parts, strict=True)]
        untouched = all(one is part for one, part in zip(used, parts, strict=True))
        return d if untouched else torch.cat(used, dim=-1)

    def _doubt(self) -> bool:
        """Whether the call is to be computed, whatever the plan says, to see what guidance does."""
        if self.session.observer is None or self.memory is None:
            return False
        name = self.memory.changed(self.session.expects_reuse)
        if name:
            self.session.stop(note("guidance_remembers", call=self.session.call, name=name))
        return self.memory.doubt

    def _computed(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the guider answers. What is no prediction, or none of the model's, stops the session."""
        if self.session.observer is None or self.forwards is None or self.memory is None:
            return executor(*args, **kwargs)
        self.forwards.begin()
        self.memory.begin(args[1], next((one for one in (*args, *kwargs.values()) if isinstance(one, dict)), {}))
        denoised = executor(*args, **kwargs)
        self.memory.computed(self.session.start.sigmas[self.session.call])
        if not (isinstance(denoised, Tensor) and denoised.shape == x.shape):
            kind = f"shape {tuple(denoised.shape)}" if isinstance(denoised, Tensor) else type(denoised).__name__
            self.session.stop(note("unknown_answer", call=self.session.call, kind=kind))
        elif self.forwards.skipped():
            self.session.stop(note("answered_elsewhere", call=self.session.call))
        return denoised


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """The derivative in float32, whatever x is in; x (B, ...), sigma (B,)."""
    return (x.to(torch.float32) - denoised.to(torch.float32)) / _beside(sigma, x)


def from_d(x: Tensor, sigma: Tensor, d: Tensor) -> Tensor:
    """Denoised from the derivative, in x's dtype."""
    return torch.addcmul(x.to(torch.float32), _beside(sigma, x), d, value=-1.0).to(x.dtype)


def _beside(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(torch.float32).reshape(-1, *[1] * (x.ndim - 1))
