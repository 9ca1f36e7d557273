"""What is counted, not timed: reads by the host, operations and new tensors of a step, memory, graph breaks."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ..comfy_erta import blocks
from ..erta import offload, replay
from .full_model import Clip, FullModel
from .full_run import METHODS

_KEY = "full size"

# What makes the host wait for the device: a scalar is read, or a result's size depends on what is in it.
_READS = ("_local_scalar_dense", "nonzero", "equal.default", "masked_select", "_unique")


@dataclass
class Step:
    """Of one model call. reads: by name. made: new tensors, and their bytes. waits: of which CUDA itself warned."""

    computed: bool = False
    operations: int = 0
    made: int = 0
    made_bytes: int = 0
    reads: Counter[str] = field(default_factory=Counter)
    waits: int = 0


class Ledger(TorchDispatchMode):
    """Every operation while it is on: to which model call it belongs, and what memory it takes.

    Memory is that of storages that operations return, from when they appear until they die. What was there before, or
    is used up within an operation, does not count; nor does what lies on another device than the model.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0
        self.step: Step | None = None
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for tensor in inputs:
            self._follow(tensor, 0)
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        bytes_made = [self._follow(tensor, tensor.untyped_storage().nbytes()) for tensor in made]
        if self.step is not None:
            self._count(func, inputs, made, bytes_made)
        return result

    def _count(self, func: Any, inputs: list[Any], made: list[Any], bytes_made: list[int]) -> None:
        step, name = self.step, str(func)
        assert step is not None
        # A view is no work for the device.
        step.operations += any(bytes_made) or func._schema.is_mutable
        step.made += sum(size > 0 for size in bytes_made)
        step.made_bytes += sum(bytes_made)
        for read in _READS:
            step.reads[read] += read in name
        devices = {tensor.device for tensor in (*inputs, *made)}
        step.reads["copy between devices"] += "copy" in name and len(devices) > 1

    def _follow(self, tensor: torch.Tensor, size: int) -> int:
        """Bytes of the tensor's storage if it is new, and from now on part of ``live``; 0 if it is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return 0
        size = size if tensor.device.type == self.device.type else 0
        self._known[key] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)
        return size

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)


@dataclass
class Counted:
    method: str
    steps: list[dict[str, Any]]
    peak: int


def count(model: FullModel, method: str, clip: Clip, steps: int, wanted: int) -> Counted:
    """One run under the ledger. What ComfyUI and the sampler do outside of the model calls does not count as a step."""
    ledger = Ledger(model.device)
    found: list[Step] = []
    blocks = model.blocks

    def evaluate(executor: Any, *args: Any, **kwargs: Any) -> Any:
        step = ledger.step = Step()
        found.append(step)
        handle = blocks[-1].register_forward_hook(lambda *_: setattr(step, "computed", True))
        try:
            with _Waits(step, args[0].device):
                return executor(*args, **kwargs)
        finally:
            handle.remove()
            ledger.step = None

    watched = model.patcher.clone()
    # Registered first is outermost: what a method does at this place lies within.
    watched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _KEY, evaluate)
    patcher = METHODS[method](model, watched, steps, wanted, lambda report: None)
    with ledger, main_memory_apart(model.device):
        model.sample(patcher, clip, steps)
    return Counted(method, [{**asdict(step), "reads": dict(+step.reads)} for step in found], ledger.peak)


@contextmanager
def main_memory_apart(device: torch.device) -> Iterator[None]:
    """On a CPU, what is put aside counts as nothing and what is fetched as new, as it would on a GPU."""
    if device.type != "cpu":
        yield
        return
    rooms = set()

    def room(tensor: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():
            made = torch.empty(tensor.shape, dtype=tensor.dtype)
        rooms.add(made.untyped_storage()._cdata)
        return made

    def fetch(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        return tensor.clone() if tensor.untyped_storage()._cdata in rooms else tensor

    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(offload, "_room", room))
        for user in (replay, blocks):
            patched.enter_context(mock.patch.object(user, "fetch", fetch))
        yield


class _Waits:
    """Counts what CUDA warns of. Nothing on other devices."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._cuda = device.type == "cuda"
        self._caught = warnings.catch_warnings(record=True)
        self._heard: Any = None

    def __enter__(self) -> None:
        if self._cuda:
            self._heard = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def __exit__(self, *failure: Any) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(*failure)
            self._step.waits = sum("synchroniz" in str(warning.message) for warning in self._heard)


@dataclass
class Compiled:
    """What Dynamo did in two runs with the model compiled. first: whether the compile node came before the method's."""

    method: str
    breaks: int
    frames: int
    again: int
    first: bool
    why: list[str]


@contextmanager
def steady_counts() -> Iterator[None]:
    """A block in which what Dynamo compiles depends on nothing but the model and what is on it.

    ComfyUI finds the same memory free each time: its attention for the CPU asks before each call, and a frame is
    compiled anew for another result. And each size is compiled for as it is, never for sizes that may change.
    """

    def free(dev: Any = None, torch_free_too: bool = False) -> Any:
        return (2**33, 2**33) if torch_free_too else 2**33

    steady = mock.patch.object(comfy.model_management, "get_free_memory", free)
    with steady, torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        yield


def graph_breaks(model: FullModel, method: str, clip: Clip, steps: int, wanted: int, first: bool) -> Compiled:
    """Graph breaks and compiled frames of a run, and the frames that a second run compiles again.

    With the backend "eager", which stops after tracing: a break is where tracing stops, whatever compiles afterwards.
    """
    counters = torch._dynamo.utils.counters

    def compiled(patcher: Any) -> Any:
        set_torch_compile_wrapper(model=patcher, backend="eager", keys=["diffusion_model"])
        return patcher

    def cached(patcher: Any) -> Any:
        return METHODS[method](model, patcher, steps, wanted, lambda report: None)

    bare = model.patcher.clone()
    with steady_counts():
        # What is set up once in a process would be compiled for, in the first of all counts only.
        model.sample(compiled(bare.clone()), clip, steps)
        torch._dynamo.reset()
        counters.clear()
        patcher = cached(compiled(bare)) if first else compiled(cached(bare))
        model.sample(patcher, clip, steps)
        breaks, frames = sum(counters["graph_break"].values()), counters["frames"]["total"]
        why = [reason.split("\n")[0][:160] for reason in counters["graph_break"]]
        model.sample(patcher, clip, steps)
    again = counters["frames"]["total"] - frames
    torch._dynamo.reset()
    return Compiled(method, breaks, frames, again, first, why)
