"""Block level: the feature is the residual of the transformer's block stack, per cond and context window.

It is read and put back through ``patches_replace["dit"]``. Embeddings and head still run with the current timestep on a
reused model call.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..erta.notes import note
from ..erta.offload import fetch, put_aside
from ..erta.response import UnknownResponse
from .memory_graph import in_memory_graph, opens_memory_graph
from .session import KEY, Session

# By the model's class: the kind of slot that its block loop asks ``patches_replace["dit"]`` for, and the list of blocks
# that it loops over. Others have no such slots, or (LTX-2) hand over more than one stream in them.
_BLOCKS: dict[str, dict[str, str]] = {
    "WanModel": {"double_block": "blocks"},
    "QwenImageTransformer2DModel": {"double_block": "transformer_blocks"},
    "LTXVModel": {"double_block": "transformer_blocks"},
    "Flux": {"double_block": "double_blocks", "single_block": "single_blocks"},
    "Chroma": {"double_block": "double_blocks", "single_block": "single_blocks"},
    "HunyuanVideo": {"double_block": "double_blocks", "single_block": "single_blocks"},
}

Slot = tuple[str, int]
Patch = Callable[..., Any]


def block_slots(model_patcher: Any) -> list[Slot]:
    """The slots of a model's blocks, in the order in which they run. Raises UnknownResponse where they are unknown."""
    model = model_patcher.model.diffusion_model
    slots = blocks_in(model)
    if opens_memory_graph(model):
        raise UnknownResponse(
            "ComfyUI's compiler replays the memory of this model's forwards, which level 'blocks' would change: choose "
            "level 'output', or start ComfyUI with --disable-comfy-compiler"
        )
    if not slots:
        raise UnknownResponse(
            f"level 'blocks' is known for {', '.join(_BLOCKS)} only, this is {type(model).__name__}: "
            "choose level 'output'"
        )
    return slots


def blocks_in(model: Any) -> list[Slot]:
    """The slots of a diffusion model's blocks, in the order in which they run; none where they are unknown."""
    return [(kind, i) for kind, name in known_blocks(model).items() for i in range(len(getattr(model, name)))]


def known_blocks(model: Any) -> dict[str, str]:
    """The row of _BLOCKS for a diffusion model, empty where there is none or the blocks are not to be touched."""
    if opens_memory_graph(model):
        return {}
    # What derives from Wan keeps its loop over the blocks; what derives from others may not.
    wan = "WanModel" in (cls.__name__ for cls in type(model).__mro__)
    return _BLOCKS.get("WanModel" if wan else type(model).__name__, {})


def with_patches(
    options: dict[str, Any], slots: Iterable[Slot], patch: Callable[[Slot, Patch | None], Patch]
) -> dict[str, Any]:
    """A copy of a forward's options with a patch in each slot, around what is there by now: skip layer guidance fills
    some for its pass. patch: (slot, what is in it) -> what is to be."""
    others = options.get("patches_replace", {})
    blocks = dict(others.get("dit", {}))
    for slot in slots:
        blocks[slot] = patch(slot, blocks.get(slot))
    return {**options, "patches_replace": {**others, "dit": blocks}}


@dataclass
class _Forward:
    """One forward of the model: its streams; the image's tokens that went in where the stack is computed, or that come
    out where it is reused; its tokens in front of the text."""

    keys: list[str]
    entered: Tensor | None = None
    left: Tensor | None = None
    before_join: Tensor | None = None


class BlocksLevel:
    """Reuse of the block stack's residual in one run.

    A residual is what the stack adds to the image's tokens (B, N, C). Where a model has two kinds of blocks the text
    joins the image between them, in front or behind: that has changed between versions, so it is looked at once a run.

    The forwards of a model call may run at the same time, in threads (ComfyUI's MultiGPU CFG Split): what belongs to
    one goes with it, and what they share is held by one of them at a time.
    """

    def __init__(self, session: Session, slots: list[Slot]) -> None:
        self.session = session
        self.slots = slots
        self.lock = threading.Lock()
        # Of the current model call: forwards, the reused ones, how often each cond and window came.
        self.forwards = self.forwards_reused = 0
        self.seen: dict[tuple[Any, str], int] = {}
        self.rooms: list[Tensor] = []  # in main memory, free for the next forward
        self.join = next((slot for slot in slots if slot[0] != slots[0][0]), None)
        # What keeps books: traced by torch.compile it would be compiled anew as they fill, and has lost entries.
        self.enter, self.leave = _untraced(self._enter), _untraced(self._leave_computed)
        self.begin, self.locate_text = _untraced(self._begin), _untraced(self._locate_text)
        self.text_first: bool | None = None if self.join else False

    def prepare(self, guider: Any) -> None:
        options = guider.model_options.setdefault("transformer_options", {})
        comfy.patcher_extension.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, self.forward, options)

    def call_model(self, executor: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, bool]:
        if not self.session.expects_reuse:
            self.session.check(args[1])
        self.forwards = self.forwards_reused = 0
        self.seen.clear()
        denoised: Tensor = executor(*args, **kwargs)
        return denoised, 0 < self.forwards == self.forwards_reused

    def forward(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper: one call per batch of conds. All of them are reused, or none."""
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "uuids" in a)
        one = self.begin(options["uuids"], options.get("context_window"))
        if one is None:
            return executor(*args, **kwargs)
        patched = with_patches(options, self.slots, partial(self.block, one))
        positional = [patched if arg is options else arg for arg in args]
        named = {name: patched if arg is options else arg for name, arg in kwargs.items()}
        try:
            return executor(*positional, **named)
        finally:
            one.entered = one.left = one.before_join = None

    def _begin(self, uuids: list[Any], window: Any) -> _Forward | None:
        """None where the forward is to be left alone."""
        if self._steps_aside():
            return None
        with self.lock:
            self.forwards += 1
            return _Forward([self._key(uuid, window) for uuid in uuids])

    def _steps_aside(self) -> bool:
        if in_memory_graph():
            self.session.stop(note("memory_graph", call=self.session.call))
        return self.session.mismatch is not None

    def _key(self, uuid: Any, window: Any) -> str:
        """Extra passes (skip layer guidance and the like) come again under the same uuid: they are counted."""
        where = "" if window is None else str(getattr(window, "index_list", window))
        self.seen[uuid, where] = self.seen.get((uuid, where), -1) + 1
        return f"{uuid}/{self.seen[uuid, where]}/{where}"

    def block(self, one: _Forward, slot: Slot, previous: Patch | None) -> Patch:
        """The replacement of one block; another patch in its slot goes on being called when it is computed."""
        first, last = slot == self.slots[0], slot == self.slots[-1]

        def patch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            tokens = args["img"]
            if first:
                self.enter(one, tokens)
            if one.left is not None:
                # With all that came: some models want their text back as well.
                return {**args, "img": self._with_text(one.left, tokens) if last else tokens}
            if slot == self.join and self.text_first is None:
                self.locate_text(one, tokens)
            out: dict[str, Any] = extra["original_block"](args) if previous is None else previous(args, extra)
            if self.text_first is None:
                one.before_join = out["img"]
            if last:
                self.leave(one, out["img"])
            return out

        return patch

    def _enter(self, one: _Forward, image: Tensor) -> None:
        if len(image) % len(one.keys):
            self.session.stop(note("batch_unknown", call=self.session.call, batch=len(image), conds=len(one.keys)))
        if self._steps_aside():
            return
        with self.lock:
            one.left = self._reused(one, image)
            self.forwards_reused += one.left is not None
        if one.left is None:
            # A copy: blocks of some models write into their input, and so does what VACE and S2V add between them.
            room = self.rooms.pop() if self.rooms else None
            one.entered = put_aside(image, room) if self.session.start.offload else image.clone()

    def _reused(self, one: _Forward, image: Tensor) -> Tensor | None:
        """What comes out of the stack by the plan, one cond after the other to hold few of them in float32."""
        if self.text_first is None:
            return None
        left = torch.empty_like(image)
        count = len(image) // len(one.keys)
        for n, key in enumerate(one.keys):
            part = slice(n * count, (n + 1) * count)
            residual = self.session.predict(key)
            if residual is None or residual.shape != image[part].shape or residual.device != image.device:
                return None
            left[part] = residual.add_(image[part])
        return left

    def _locate_text(self, one: _Forward, tokens: Tensor) -> None:
        """Which end of the joined tokens is the image: what control adds in between is small beside the other's."""
        assert one.before_join is not None
        count = one.before_join.shape[1]
        behind, ahead = (torch.dist(part, one.before_join) for part in (tokens[:, -count:], tokens[:, :count]))
        self.text_first = bool(behind <= ahead)
        one.before_join = None

    def _leave_computed(self, one: _Forward, tokens: Tensor) -> None:
        if one.entered is None:
            return
        count = one.entered.shape[1]
        image = tokens[:, -count:] if self.text_first else tokens[:, :count]
        residual = image - fetch(one.entered, image.device)
        if self.session.start.offload:
            self.rooms.append(one.entered)
        with self.lock:
            for key, part in zip(one.keys, residual.chunk(len(one.keys)), strict=True):
                self.session.observe(key, part)

    def _with_text(self, left: Tensor, tokens: Tensor) -> Tensor:
        """What comes out where the stack is reused; the model drops the text behind its last block."""
        count = left.shape[1]
        if tokens.shape[1] == count:
            return left
        joined = [tokens[:, :-count], left] if self.text_first else [left, tokens[:, count:]]
        return torch.cat(joined, dim=1)


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run as it is in a compiled model. What is loaded only by compiling something is not loaded here."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function
