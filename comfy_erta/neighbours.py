"""What others on the same model do while a run goes on, noticed by what happens and not by their names."""

import sys
from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP

from .blocks import blocks_in
from .session import KEY


class Forwards:
    """Counts how often the diffusion model and its last block run in a model call.

    A call that should have been computed and in which they did not run was answered by somebody else. The counting
    lies inside of all that is around the model by then; it keeps no tensor.
    """

    def __init__(self, guider: Any) -> None:
        self.forwards = self.blocks = 0
        self.most, self.share = 0, 0.0  # the most forwards in a model call so far, the most blocks in a forward
        slots = blocks_in(guider.model_patcher.model.diffusion_model)
        options = guider.model_options.setdefault("transformer_options", {})
        # Traced by torch.compile a count would be compiled anew as it grows: then it is kept farther outside.
        traced = "torch._dynamo" in sys.modules
        self.slot = slots[-1] if slots and not traced else None
        kind = WrappersMP.APPLY_MODEL if traced else WrappersMP.DIFFUSION_MODEL
        comfy.patcher_extension.add_wrapper_with_key(kind, KEY, self._forward, options)

    def begin(self) -> None:
        """A model call begins."""
        self.forwards = self.blocks = 0

    def skipped(self) -> bool:
        """Whether the model call that is over was answered without the model, or without its blocks."""
        if self.forwards:
            self.share = max(self.share, self.blocks / self.forwards)
        self.most = max(self.most, self.forwards)
        return self.forwards < min(self.most, 1) or 2 * self.blocks < self.share * self.forwards

    def _forward(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        self.forwards += 1
        if self.slot is None:
            return executor(*args, **kwargs)

        def counted(value: Any) -> Any:
            found = isinstance(value, dict) and "uuids" in value
            return self._with_counted_block(value) if found else value

        return executor(*map(counted, args), **{name: counted(value) for name, value in kwargs.items()})

    def _with_counted_block(self, options: dict[str, Any]) -> dict[str, Any]:
        others = options.get("patches_replace", {})
        blocks = dict(others.get("dit", {}))
        blocks[self.slot] = self._counting(blocks.get(self.slot))
        return {**options, "patches_replace": {**others, "dit": blocks}}

    def _counting(self, previous: Callable[..., Any] | None) -> Callable[..., Any]:
        """The replacement of a block that counts when the block itself runs; another patch in its slot goes on."""

        def patch(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            def original(given: dict[str, Any]) -> Any:
                self.blocks += 1
                return extra["original_block"](given)

            return original(args) if previous is None else previous(args, {**extra, "original_block": original})

        return patch
