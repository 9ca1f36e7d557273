"""One run at full size, watched: what each step took, in the model, in its blocks, and outside of either."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode

from ..comfy_erta.measuring import measure_profile
from ..comfy_erta.recording import Recording
from ..comfy_erta.report import Report
from ..comfy_erta.run import attach
from ..demo.tiny_wan.nodes import ERTADemoCopyForEasyCache
from ..erta.profile import Profile
from ..erta.recorder import Recorder
from ..erta.schedules import Schedule, even
from ..erta.settings import Settings
from .full_model import SCHEDULER, Clip, FullModel
from .ours import cached

FULL, OUTPUT, BLOCKS, EASYCACHE = "full", "output", "blocks", "EasyCache"
OFFLOADED = "blocks offloaded"
RECORD, RECORD_BLOCKS = "record", "record blocks"

# A profile says which steps to compute, and that needs no large latent: it is recorded on this one, in a second.
SMALL = Clip(5, 64, 64)

_KEY = "full size"


class Clock:
    """Marks in time. On a GPU events that are read when all is over, so that looking on makes nothing wait."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"

    def mark(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, one: Any, other: Any) -> float:
        """Seconds."""
        if not self._events:
            return float(other - one)
        other.synchronize()
        return float(one.elapsed_time(other)) / 1000.0


@dataclass
class Watched:
    """What a run took. seconds: all of it. first: until the end of step 0, set-up included. steps: of step 1 and on.
    models, stacks: of every step the seconds within the model and within its blocks; no blocks are a reused step. peak:
    bytes on the GPU at most, None on a CPU. cache_bytes: of the pack. notes: of its report."""

    method: str
    wanted: int
    seconds: float
    first: float
    steps: list[float]
    models: list[float]
    stacks: list[float]
    peak: int | None
    cache_bytes: int = 0
    notes: list[str] = field(default_factory=list)


def run(model: FullModel, method: str, clip: Clip, steps: int, wanted: int) -> Watched:
    """Sample once. wanted: model calls to compute, for those methods that reuse."""
    reports: list[Report] = []
    watch = _Watch(model)
    watched = model.patcher.clone()
    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _KEY, watch.apply_model)
    patcher = METHODS[method](model, watched, steps, wanted, reports.append)
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with watch:
        model.sample(patcher, clip, steps, watch.step)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    first, *others = watch.laps()
    return Watched(
        method=method,
        wanted=wanted,
        seconds=seconds,
        first=first,
        steps=others,
        models=watch.within("model"),
        stacks=watch.within("blocks"),
        peak=torch.cuda.max_memory_allocated() if cuda else None,
        cache_bytes=reports[-1].cache_bytes if reports else 0,
        notes=[note.text for note in reports[-1].notes] if reports else [],
    )


class _Watch:
    """Hooks on the first and the last block, a wrapper around the model, and the sampler's callback."""

    def __init__(self, model: FullModel) -> None:
        self._clock = Clock(model.device)
        self._blocks = model.blocks
        self._handles: list[Any] = []
        self._ends: list[Any] = []
        self._laps: list[list[tuple[str, Any, Any]]] = [[]]
        self._entered: Any = None

    def __enter__(self) -> None:
        self._handles = [
            self._blocks[0].register_forward_pre_hook(lambda *_: self._enter()),
            self._blocks[-1].register_forward_hook(lambda *_: self._leave()),
        ]
        self._ends.append(self._clock.mark())

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self) -> None:
        self._entered = self._clock.mark()

    def _leave(self) -> None:
        self._laps[-1].append(("blocks", self._entered, self._clock.mark()))

    def apply_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        entered = self._clock.mark()
        result = executor(*args, **kwargs)
        self._laps[-1].append(("model", entered, self._clock.mark()))
        return result

    def step(self, *_: Any) -> None:
        """Called by the sampler when a step's model call is there."""
        self._ends.append(self._clock.mark())
        self._laps.append([])

    def laps(self) -> list[float]:
        return [self._clock.between(a, b) for a, b in zip(self._ends, self._ends[1:], strict=False)]

    def within(self, what: str) -> list[float]:
        """Seconds of each step."""
        return [sum(self._clock.between(a, b) for name, a, b in step if name == what) for step in self._laps[:-1]]


# The methods: (model, patcher, steps, wanted, on_report) -> patcher.


def _full(model: FullModel, patcher: Any, steps: int, wanted: int, on_report: Any) -> Any:
    return patcher


def _ours(level: str, offload: bool = False) -> Any:
    """Planned from a profile, with two terms: of few steps the planner would choose to hold, which costs less."""

    def patch(model: FullModel, patcher: Any, steps: int, wanted: int, on_report: Any) -> Any:
        settings = Settings(speed=steps / wanted, level=level, predictor="linear")
        return cached(patcher, settings, profile_of(model, level, steps), SCHEDULER, on_report, offload)

    return patch


def _recording(level: str) -> Any:
    def patch(model: FullModel, patcher: Any, steps: int, wanted: int, on_report: Any) -> Any:
        return attach(patcher, Recording(level, 0, lambda measured, tables: (), on_report, SCHEDULER))

    return patch


def _easycache(model: FullModel, patcher: Any, steps: int, wanted: int, on_report: Any) -> Any:
    return forced_easycache(patcher, easycache_schedule(steps, wanted))


METHODS: dict[str, Callable[..., Any]] = {
    FULL: _full,
    OUTPUT: _ours("output"),
    BLOCKS: _ours("blocks"),
    OFFLOADED: _ours("blocks", offload=True),
    EASYCACHE: _easycache,
    RECORD: _recording("output"),
    RECORD_BLOCKS: _recording("blocks"),
}


def profile_of(model: FullModel, level: str, steps: int) -> Profile:
    """Recorded on the model itself, once per level and number of steps."""
    key = (level, steps)
    if key not in model.profiles:

        def render(patcher: Any, n: int) -> None:
            model.sample(patcher, SMALL, steps)

        model.profiles[key] = measure_profile(model.patcher, render, 1, level, SCHEDULER, lambda report: None)
    return model.profiles[key]


def easycache_schedule(steps: int, wanted: int) -> Schedule:
    """Evenly spread. EasyCache needs two computed steps before it can judge a third."""
    later = even(steps - 1, wanted - 1)
    return (True, *later)


def forced_easycache(patcher: Any, compute: Schedule) -> Any:
    """ComfyUI's EasyCache, doing all its work, with a threshold that makes its own rule come out as ``compute`` says.

    Of random weights its rates of change mean nothing, and finding a threshold for each budget would take many runs.
    """
    model = EasyCacheNode.execute(ERTADemoCopyForEasyCache.execute(patcher).result[0], 0.0, 0.0, 1.0, False).result[0]
    call = -1

    def steer(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal call
        call += 1
        options = args[2] if len(args) > 2 else kwargs["model_options"]
        holder = options["transformer_options"]["easycache"]
        holder.reuse_threshold = float("-inf") if compute[call % len(compute)] else float("inf")
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _KEY, steer)
    return model


def table_seconds(elements: int, streams: int, calls: int) -> tuple[float, int]:
    """What a recorder needs at the end of a run for its tables: seconds, and bytes of the features that it holds."""
    sigmas = torch.linspace(1.0, 0.02, calls, dtype=torch.float64).numpy()
    recorder = Recorder(sigmas)
    for stream in range(streams):
        for i in range(calls):
            recorder.observe(i, str(stream), torch.randn(elements))
    began = time.perf_counter()
    recorder.tables(0, 1.0)
    return time.perf_counter() - began, recorder.cache_bytes
