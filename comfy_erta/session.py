"""One sampling run under observation: born on the first line of OUTER_SAMPLE, gone in its ``finally``.

Nothing is kept on the model, in a MODEL output or in a module. The wrappers that act inside the run live in a clone of
the guider's options made for this run only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import comfy.model_patcher
import comfy.patcher_extension
import numpy as np
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..erta.plan import Plan
from ..erta.plan_file import plan_to_json
from ..erta.profile import Measured, Profile
from ..erta.response import ImpulseResponse, UnknownResponse
from .edges import conditioning_edges, guidance_edges
from .levels import Level, level_named
from .probing import sampler_response
from .report import Report

KEY = "ertacache"

# Other step caches, by a part of the names that they leave in the options or that their functions come from.
_OTHER_CACHES = ("easycache", "lazycache", "teacache", "magcache", "fbcache", "first_block", "wavespeed", "cachedit")
_OTHER_CACHES += ("cache_dit", "spectrum")


class Observer(Protocol):
    """What joins the adapter to the method: Recorder and Replay."""

    cache_bytes: int

    @property
    def notes(self) -> tuple[str, ...]: ...

    def predict(self, i: int, key: str) -> Tensor | None: ...

    def observe(self, i: int, key: str, feature: Tensor) -> Tensor: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Context:
    """The coming run, as a task sees it before the first model call."""

    guider: Any
    sampler: Any
    schedule: np.ndarray
    latent_shape: tuple[int, ...]
    edges: tuple[float, ...]

    @property
    def model(self) -> Any:
        return self.guider.model_patcher

    def respond(self, schedule: np.ndarray) -> ImpulseResponse:
        return sampler_response(self.sampler, schedule, self.model)


@dataclass(frozen=True)
class Start:
    """How a run is observed. observer None: everything is computed, only counted and timed.

    sigmas: expected at each model call. plan: what the observer follows, if it follows one. measured: what a recording
    is made on. notes: lines for the report. profile: what the plan was made from. offload: at blocks level, what is
    kept lies in main memory.
    """

    observer: Observer | None = None
    level: str = "output"
    sigmas: tuple[float, ...] = ()
    plan: Plan | None = None
    measured: Measured | None = None
    notes: tuple[str, ...] = ()
    profile: Profile | None = None
    offload: bool = False


class Task(Protocol):
    """What is done with a run. Frozen; shared by every run of the model it is attached to."""

    def begin(self, setting: Context) -> Start:
        """Decide about the coming run. UnknownResponse means: compute everything and say why."""

    def finish(self, start: Start, report: Report, samples: Tensor, setting: Context) -> None:
        """A run that was neither cancelled nor failed is over."""


class Watcher(Protocol):
    """Who looks on while a run goes by. Called on the sampling thread, so it must be quick."""

    def begin(self, start: Start) -> None: ...

    def evaluated(self, i: int, computed: bool) -> None: ...


class Stopwatch:
    """Times model calls. On a GPU by events that are only read after the run, so nothing waits while it goes on."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"
        self._laps: dict[str, list[tuple[Any, Any]]] = {"computed": [], "reused": []}

    def now(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, kind: str, started: Any) -> None:
        self._laps[kind].append((started, self.now()))

    def seconds(self, kind: str) -> float:
        """Sum over all laps of a kind; on a GPU this waits for the last of them."""
        if not self._events:
            return float(sum(b - a for a, b in self._laps[kind]))
        if self._laps[kind]:
            self._laps[kind][-1][1].synchronize()
        return float(sum(a.elapsed_time(b) for a, b in self._laps[kind])) / 1000.0

    def count(self, kind: str) -> int:
        return len(self._laps[kind])


@dataclass
class Session:
    """The mutable state of one run: which model call it is at, and whether it still goes as expected."""

    start: Start
    stopwatch: Stopwatch
    watcher: Watcher | None
    level: Level
    call: int = -1
    mismatch: str = ""
    reused_now: bool = False
    # Of the model call going on, at blocks level: forwards, the reused ones, how often each cond and window came.
    forwards: int = 0
    forwards_reused: int = 0
    seen: dict[tuple[Any, str], int] = field(default_factory=dict)

    @property
    def observing(self) -> bool:
        return self.start.observer is not None and not self.mismatch

    @property
    def expects_reuse(self) -> bool:
        plan = self.start.plan
        return plan is not None and self.call < plan.calls and not plan.compute[self.call]

    def predict(self, key: str) -> Tensor | None:
        if self.start.observer is None or self.mismatch:
            return None
        return self.start.observer.predict(self.call, key)

    def observe(self, key: str, feature: Tensor) -> Tensor:
        if self.start.observer is None or self.mismatch:
            return feature
        return self.start.observer.observe(self.call, key, feature)

    def check(self, timestep: Tensor) -> None:
        """Before a model call is computed: is it the one that was foreseen? One scalar read; a forward follows."""
        if self.start.observer is None or self.mismatch:
            return
        expected = self.start.sigmas
        if self.call >= len(expected):
            self.mismatch = f"the sampler evaluated more often than the {len(expected)} times it was probed to"
            return
        sigma = float(timestep.reshape(-1)[0])
        if abs(sigma - expected[self.call]) > 1e-4 * expected[self.call] + 1e-7:
            self.mismatch = (
                f"model call {self.call} came at sigma {sigma:.5g} instead of {expected[self.call]:.5g}: "
                "all computed from there"
            )

    def predict_noise(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """PREDICT_NOISE wrapper: one call per model call of the sampler, whatever the level."""
        self.call += 1
        self.reused_now = False
        started = self.stopwatch.now()
        result: Tensor = self.level.evaluate(self, executor, *args, **kwargs)
        self.stopwatch.lap("reused" if self.reused_now else "computed", started)
        if self.watcher is not None:
            self.watcher.evaluated(self.call, not self.reused_now)
        return result


def attach(model: Any, task: Task, watcher: Watcher | None = None) -> Any:
    """A clone of a ModelPatcher whose sampling runs the task observes. A second application replaces the first."""
    clone = model.clone()

    def outer_sample(
        executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        return _observe_run(task, watcher, executor, noise, latent_image, sampler, sigmas, *args, **kwargs)

    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    clone.set_attachments(KEY, task)
    return clone


def attached_task(model: Any) -> Task | None:
    task: Task | None = model.get_attachment(KEY)
    return task


def _observe_run(
    task: Task,
    watcher: Watcher | None,
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    guider = executor.class_obj
    setting = _setting(guider, sampler, sigmas, noise)
    start = _begin(task, setting)
    stopwatch = Stopwatch(guider.model_patcher.load_device)
    session = Session(start, stopwatch, watcher, level_named(start.level))
    if watcher is not None:
        watcher.begin(start)
    options = guider.model_options
    try:
        guider.model_options = comfy.model_patcher.create_model_options_clone(options)
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.PREDICT_NOISE, KEY, session.predict_noise, guider.model_options, is_model_options=True
        )
        if start.observer is not None:
            session.level.prepare(session, guider)
        if start.plan is not None and start.plan.schedule:
            sigmas = torch.tensor(start.plan.schedule, dtype=sigmas.dtype, device=sigmas.device)
        began = time.perf_counter()
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        report = _report(session, time.perf_counter() - began)
        task.finish(start, report, samples, setting)
        return samples
    finally:
        guider.model_options = options
        if start.observer is not None:
            start.observer.close()


def _setting(guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor) -> Context:
    schedule = sigmas.detach().to("cpu", torch.float64).numpy()
    sampling = guider.model_patcher.get_model_object("model_sampling")
    declared = conditioning_edges(guider.conds, sampling, schedule)
    edges = tuple(sorted({*declared, *guidance_edges(guider.model_options, schedule)}))
    return Context(guider, sampler, schedule, tuple(noise.shape), edges)


def _begin(task: Task, setting: Context) -> Start:
    others = other_caches(setting.guider.model_options)
    if others:
        # Theirs would fill in model calls that ours takes for computed, and keeps or records as such.
        both = f"{', '.join(others)} is on this model too, and two caches spoil each other. Remove one of them"
        return Start(notes=(f"everything computed: {both}",))
    try:
        return task.begin(setting)
    except UnknownResponse as unknown:
        return Start(notes=(f"everything computed: {unknown}",))


def other_caches(model_options: dict[str, Any]) -> tuple[str, ...]:
    """Names of the step caches of others that a run would meet, as they are found in its options."""
    options = model_options.get("transformer_options", {})
    around = model_options.get("model_function_wrapper")
    origin = f"{getattr(around, '__module__', '')}.{getattr(around, '__qualname__', type(around).__qualname__)}"
    names = [origin, *options, *(key for kind in options.get("wrappers", {}).values() for key in kind)]
    found = {known for known in _OTHER_CACHES for name in names if known in str(name).lower().replace("-", "")}
    return tuple(sorted(found))


def _report(session: Session, seconds: float) -> Report:
    start, watch = session.start, session.stopwatch
    surprises: Sequence[str] = (session.mismatch,) if session.mismatch else ()
    return Report(
        calls=session.call + 1,
        computed=watch.count("computed"),
        reused=watch.count("reused"),
        seconds=seconds,
        seconds_computed=watch.seconds("computed"),
        seconds_reused=watch.seconds("reused"),
        cache_bytes=0 if start.observer is None else start.observer.cache_bytes,
        notes=(*start.notes, *surprises, *(() if start.observer is None else start.observer.notes)),
        complete=not session.mismatch,
        **_planned(start.plan),
    )


def _planned(plan: Plan | None) -> dict[str, Any]:
    if plan is None:
        return {}
    return {
        "predicted_error": plan.predicted_error,
        "plan": plan_to_json(plan),
        "compute": "".join("1" if computed else "0" for computed in plan.compute),
        "sigmas": plan.sigmas,
    }
