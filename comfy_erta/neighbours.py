"""What others on the same model do while a run goes on, noticed by what happens and not by their names."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP

from .blocks import Patch, Slot, blocks_in, with_patches
from .describing import few_values, kept_by, plain_attributes
from .memory_graph import opens_memory_graph
from .session import KEY

# So many entries of a list or an object are looked at.
_MOST = 32

# Options in which functions of guidance stand, one or a list of them.
_GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
_GUIDANCE += ("sampler_calc_cond_batch_function",)


Clock = tuple[float, float]  # of a model call: sigma, and the model's timestep


class Memory:
    """Whether guidance remembers earlier model calls, or switches by what it sees there.

    It is then not what a reused model call takes it for, as that runs no guidance. What its functions and the guider
    keep is looked at before the first two model calls and before each computed one. What goes with sigma is a clock.

    doubt: the first call has changed something. That may set up what stays, so the next one is to be computed.
    """

    def __init__(self, guider: Any) -> None:
        self.guider, self.doubt = guider, False
        self.looks = 0
        self.options = guider.model_options  # each model call comes with a copy
        self.sampling, self.timestep = guider.model_patcher.get_model_object("model_sampling"), 0.0
        self.clock: Clock | None = None  # of the computed call since the last look
        self.last: tuple[Clock | None, dict[str, Any]] = (None, {})
        # The guider's numbers after the last computed call, and those of them that were set in it: wrappers around it
        # lend the guider others.
        self.numbers: dict[str, Any] = {}
        self.set: set[str] = set()

    def begin(self, timestep: torch.Tensor, options: dict[str, Any]) -> None:
        """A model call is about to be computed, with these model options: guidance may keep things there too."""
        self.options, self.numbers = options, dict(_numbers(self.guider))
        self.timestep = float(self.sampling.timestep(timestep).reshape(-1)[0])

    def computed(self, sigma: float) -> None:
        """It was computed, at sigma."""
        before, self.numbers = self.numbers, dict(_numbers(self.guider))
        self.clock = sigma, self.timestep
        self.set = {name for name in self.numbers if self.numbers[name] != before.get(name)}

    def changed(self, reused: bool) -> str:
        """Before a model call: the name of what the last computed one has changed; "" for nothing."""
        if (reused and self.looks > 1 and not self.doubt) or (self.looks and self.clock is None):
            return ""
        first, self.looks = not self.looks, self.looks + 1
        (before, old), (now, kept) = self.last, (self.clock, self.numbers | dict(_kept(self.guider, self.options)))
        self.last, self.clock = (now, kept), None
        moved = [name for name in kept if not first and _moved(old.get(name), kept[name], before, now)]
        moved = [name for name in moved if name in self.set or name not in self.numbers]
        self.doubt = before is None and bool(moved)
        return moved[0] if moved and not self.doubt else ""


def _moved(old: Any, new: Any, before: Clock | None, now: Clock | None) -> bool:
    """Whether a value has changed, and not as a clock does: in proportion to sigma, or by what the timestep changed."""
    if old == new or not (isinstance(new, float) and now):
        return bool(old != new)
    if not isinstance(old, float) or before is None:
        return not math.isclose(new, now[0], rel_tol=1e-4)
    by_timestep = math.isclose(abs(new - old), abs(now[1] - before[1]), rel_tol=1e-3)
    return not by_timestep and not math.isclose(new, old * now[0] / before[0], rel_tol=1e-4)


def _numbers(guider: Any) -> Iterator[tuple[str, float]]:
    for name, value in plain_attributes(guider).items():
        if isinstance(value, int | float):
            yield f"{name} of {type(guider).__name__}", _finite(value)


def _kept(guider: Any, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What tells apart the tensors that a guider keeps, and the tensors and numbers of the functions of guidance.

    options: the model options of the last computed call. Of them the model's own are left out: it may count its steps.
    """
    for name, value in plain_attributes(guider).items():
        if not isinstance(value, int | float):
            yield from _shown(f"{name} of {type(guider).__name__}", value)
    for name, value in options.items():
        if isinstance(value, dict) and name != "transformer_options":
            yield from _shown(f"{name} in the model's options", value)
    for option in _GUIDANCE:
        functions = guider.model_options.get(option, ())
        for n, function in enumerate(functions if isinstance(functions, list | tuple) else [functions]):
            owner = getattr(function, "__qualname__", type(function).__name__).split(".")[0]
            for name, value in kept_by(function):
                yield from _shown(f"{name} of {owner}" + f" {n + 1}" * (n > 0), value)


def _shown(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Numbers in lists are logs; what is in the objects of others is looked at one level deep."""
    if isinstance(value, torch.Tensor):
        yield name, _finite(float(value)) if value.numel() == 1 else (tuple(value.shape), few_values(value))
    elif isinstance(value, int | float):
        yield name, _finite(value)
    else:
        inside = enumerate(value) if isinstance(value, list | tuple) else _inside(value)
        numbers = () if isinstance(value, list | tuple) else (int, float)
        for key, entry in islice(inside, _MOST):
            if isinstance(entry, (torch.Tensor, *numbers)):
                yield from _shown(f"{key} in {name}", entry)


def _finite(number: float) -> float:
    """One number for all that can't be compared or is too large."""
    return float(number) if abs(number) < 1e300 else math.inf


def _inside(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    own = not isinstance(value, torch.nn.Module) and not type(value).__module__.startswith("comfy")
    return list(getattr(value, "__dict__", {}).items()) if own else ()


class Forwards:
    """Counts how often the diffusion model and its last block run in a model call.

    A call that should have been computed and in which they did not run was answered by somebody else. The counting
    lies inside of all that is around the model by then; it keeps no tensor.
    """

    def __init__(self, guider: Any) -> None:
        self.forwards = self.blocks = 0
        self.most, self.share = 0, 0.0  # the most forwards in a model call so far, the most blocks in a forward
        model = guider.model_patcher.model.diffusion_model
        slots = blocks_in(model)
        options = guider.model_options.setdefault("transformer_options", {})
        # Traced by torch.compile a count would be compiled anew as it grows, and in a memory graph nothing of ours is
        # to run: then it is kept farther outside.
        traced = _compiles(guider) or opens_memory_graph(model)
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
        if torch.compiler.is_compiling():  # by a way that is not known
            return executor(*args, **kwargs)
        self.forwards += 1
        slot = self.slot
        if slot is None:
            return executor(*args, **kwargs)

        def counted(value: Any) -> Any:
            found = isinstance(value, dict) and "uuids" in value
            return with_patches(value, [slot], self._counting) if found else value

        return executor(*map(counted, args), **{name: counted(value) for name, value in kwargs.items()})

    def _counting(self, slot: Slot, previous: Patch | None) -> Patch:
        """The replacement of a block that counts when the block itself runs; another patch in its slot goes on."""

        def patch(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            def original(given: dict[str, Any]) -> Any:
                self.blocks += 1
                return extra["original_block"](given)

            return original(args) if previous is None else previous(args, {**extra, "original_block": original})

        return patch


def _compiles(guider: Any) -> bool:
    """Whether torch.compile is at work on the model or a part of it, now or as soon as it runs.

    That it is loaded says nothing: ComfyUI itself loads it.
    """
    wrappers = guider.model_options.get("transformer_options", {}).get("wrappers", {})
    if any("compile" in str(key) for kind in wrappers.values() for key in kind):
        return True
    patcher = guider.model_patcher
    parts = [*patcher.object_patches.values(), *patcher.model.modules()]
    held = (getattr(part, "__dict__", {}).get(name) for part in parts for name in ("forward", "_compiled_call_impl"))
    return any(hasattr(one, "_torchdynamo_orig_callable") for one in (*patcher.object_patches.values(), *held))
