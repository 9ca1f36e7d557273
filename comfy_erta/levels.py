"""Where a feature is read and put back.

output: the derivative d = (x - denoised) / sigma after guidance, at PREDICT_NOISE. Needs nothing of the model's code.
blocks: the residual of the transformer's block stack per cond, through ``patches_replace["dit"]``; embeddings and head
still run with the current timestep on a reused evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..erta.response import UnknownResponse

if TYPE_CHECKING:
    from .session import Session

GUIDED = "guided"
_KEY = "ertacache"


class Level(Protocol):
    def prepare(self, session: Session, guider: Any) -> None:
        """Put what the level needs into the guider's options of this run."""

    def evaluate(self, session: Session, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One evaluation: (x, timestep, ...) -> denoised. Sets session.reused_now."""


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """The derivative in float32, whatever x is in; x (B, ...), sigma (B,)."""
    return (x.to(torch.float32) - denoised.to(torch.float32)) / _beside(sigma, x)


def from_d(x: Tensor, sigma: Tensor, d: Tensor) -> Tensor:
    """Denoised from the derivative, in x's dtype."""
    return torch.addcmul(x.to(torch.float32), _beside(sigma, x), d, value=-1.0).to(x.dtype)


def _beside(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(torch.float32).reshape(-1, *[1] * (x.ndim - 1))


class OutputLevel:
    """Reuse after guidance: one latent-sized tensor per evaluation, for any model and guider."""

    def prepare(self, session: Session, guider: Any) -> None:
        pass

    def evaluate(self, session: Session, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        x, timestep = args[0], args[1]
        d = session.predict(GUIDED)
        if d is not None and d.shape == x.shape and d.device == x.device:
            session.reused_now = True
            return from_d(x, timestep, d)
        session.check(timestep)
        denoised: Tensor = executor(*args, **kwargs)
        if not session.observing:
            return denoised
        d = to_d(x, timestep, denoised)
        used = session.observe(GUIDED, d)
        # Untouched where nothing is corrected: the way through d and back costs 1e-5 in float32.
        return denoised if used is d else from_d(x, timestep, used)


class BlocksLevel:
    """Reuse of the block stack's residual, per cond and context window."""

    def prepare(self, session: Session, guider: Any) -> None:
        stack = _Stack(session, block_count(guider.model_patcher))
        options = guider.model_options.setdefault("transformer_options", {})
        comfy.patcher_extension.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, stack.forward, options)

    def evaluate(self, session: Session, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not session.expects_reuse:
            session.check(args[1])
        session.forwards_computed = session.forwards_reused = 0
        session.seen.clear()
        denoised: Tensor = executor(*args, **kwargs)
        session.reused_now = session.forwards_reused > 0 and session.forwards_computed == 0
        return denoised


def block_count(model_patcher: Any) -> int:
    """Number of blocks of a Wan model. Raises UnknownResponse for models without the hook that is known here."""
    model = model_patcher.model.diffusion_model
    if not has_blocks(model_patcher):
        raise UnknownResponse(
            f"level 'blocks' is known for Wan models only, this is {type(model).__name__}: choose level 'output'"
        )
    return len(model.blocks)


def has_blocks(model_patcher: Any) -> bool:
    """Whether the model is a Wan, whose block loop asks ``patches_replace["dit"]`` for each block."""
    model = model_patcher.model.diffusion_model
    return "WanModel" in {cls.__name__ for cls in type(model).__mro__}


class _Stack:
    """The block stack of one run: what the current forward does, and the residuals it leaves."""

    def __init__(self, session: Session, count: int) -> None:
        self.session = session
        self.count = count
        self.keys: list[str] = []
        self.predicted: list[Tensor] | None = None
        # What went into the stack, where it is computed; what comes out of it, where it is reused.
        self.entered: Tensor | None = None
        self.left: Tensor | None = None

    def forward(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper: one call per batch of conds. All of them are reused, or none."""
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "uuids" in a)
        window = options.get("context_window")
        self.keys = [self._key(uuid, window) for uuid in options["uuids"]]
        found = [self.session.predict(key) for key in self.keys]
        self.predicted = [p for p in found if p is not None]
        if len(self.predicted) < len(found):
            self.predicted = None
        patched = self._patched(options)
        given = [patched if arg is options else arg for arg in args]
        named = {name: patched if arg is options else arg for name, arg in kwargs.items()}
        try:
            return executor(*given, **named)
        finally:
            self.entered = self.left = self.predicted = None

    def _patched(self, options: dict[str, Any]) -> dict[str, Any]:
        """A copy with our patches around what is in the slots by now: skip layer guidance fills some for its pass."""
        others = options.get("patches_replace", {})
        blocks = dict(others.get("dit", {}))
        for index in range(self.count):
            slot = ("double_block", index)
            blocks[slot] = self.block(index, blocks.get(slot))
        return {**options, "patches_replace": {**others, "dit": blocks}}

    def _key(self, uuid: Any, window: Any) -> str:
        """Extra passes (skip layer guidance and the like) come again under the same uuid: they are counted."""
        where = "" if window is None else str(getattr(window, "index_list", window))
        seen = self.session.seen
        seen[uuid, where] = seen.get((uuid, where), -1) + 1
        return f"{uuid}/{seen[uuid, where]}/{where}"

    def block(self, index: int, previous: Callable[..., Any] | None) -> Callable[..., Any]:
        """The replacement of one block; another patch in its slot goes on being called when it is computed."""

        def patch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            image = args["img"]
            if index == 0:
                self._enter(image)
            if self.predicted is not None:
                return {"img": self.left if index == self.count - 1 else image}
            out: dict[str, Any] = extra["original_block"](args) if previous is None else previous(args, extra)
            if index == self.count - 1:
                self._leave_computed(out["img"])
            return out

        return patch

    def _enter(self, image: Tensor) -> None:
        if self.predicted is not None:
            shape = (image.shape[0] // len(self.keys), *image.shape[1:])
            if any(p.shape != shape or p.device != image.device for p in self.predicted):
                self.predicted = None
        self.session.forwards_reused += self.predicted is not None
        self.session.forwards_computed += self.predicted is None
        # Now or by a copy: blocks of some models write into what they are given, and so does what VACE and S2V add
        # between the blocks, on a reused evaluation too.
        if self.predicted is None:
            self.entered = image.clone()
        else:
            residual = torch.cat(self.predicted) if len(self.predicted) > 1 else self.predicted[0]
            self.left = (image.to(torch.float32) + residual).to(image.dtype)

    def _leave_computed(self, image: Tensor) -> None:
        assert self.entered is not None
        residual = image - self.entered
        for key, part in zip(self.keys, residual.chunk(len(self.keys)), strict=True):
            self.session.observe(key, part)


def level_named(name: str) -> Level:
    return BlocksLevel() if name == "blocks" else OutputLevel()
