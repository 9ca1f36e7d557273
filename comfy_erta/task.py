"""What is done with a sampling run: a Task looks at the coming run and says how it is observed and finished."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..erta.notes import Note
from ..erta.observer import Observer
from ..erta.plan import Plan
from ..erta.response import ImpulseResponse
from .probing import sampler_response
from .report import Report

OnReport = Callable[[Report], None]


@dataclass(frozen=True)
class Context:
    """The coming run, before its first model call.

    guider, sampler: ComfyUI's. schedule: (N + 1,) float64, the nominal sigmas. latent_shapes: of each part of a nested
    latent, such as picture and sound, or of the one latent. edges: sigmas at which conditioning or guidance starts or
    ends.
    """

    guider: Any
    sampler: Any
    schedule: np.ndarray
    latent_shapes: tuple[tuple[int, ...], ...]
    edges: tuple[float, ...]
    _responses: dict[bytes, ImpulseResponse] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def model(self) -> Any:
        """The guider's ModelPatcher."""
        return self.guider.model_patcher

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of the picture, which comes first."""
        return self.latent_shapes[0]

    @property
    def parts(self) -> tuple[int, ...]:
        """Elements of each part of a nested latent, per sample: ComfyUI samples them packed behind each other."""
        return tuple(prod(shape[1:]) for shape in self.latent_shapes)

    @property
    def has_sound(self) -> bool:
        """Whether the latent is nested, a video (B, C, T, H, W) and its sound (B, C, ...)."""
        return [len(shape) == 5 for shape in self.latent_shapes] == [True, False]

    def respond(self, schedule: np.ndarray) -> ImpulseResponse:
        """The sampler's impulse response on a schedule, probed once. Raises UnknownResponse."""
        key = np.asarray(schedule, dtype=np.float64).tobytes()
        if key not in self._responses:
            self._responses[key] = sampler_response(self.sampler, schedule, self.model, self.guider)
        return self._responses[key]


@dataclass(frozen=True)
class Start:
    """How one run is observed and finished. All state of the run that its task needs is bound in here.

    observer: None where everything is computed, counted and timed, and nothing else. level: "output" or "blocks".
    sigmas: expected at each model call. plan: what the observer follows, if it follows one. notes: for the report.
    offload: at blocks level, what is kept lies in main memory. finish: called with the report and the final latent when
    the run is over, unless it was cancelled or failed.
    """

    observer: Observer | None = None
    level: str = "output"
    sigmas: tuple[float, ...] = ()
    plan: Plan | None = None
    notes: tuple[Note, ...] = ()
    offload: bool = False
    finish: Callable[[Report, Tensor], None] = lambda report, samples: None


class Task(Protocol):
    """What is done with a run. Frozen; shared by every run of the model it is attached to."""

    @property
    def on_report(self) -> OnReport:
        """Gets the report of a run for which ``begin`` could return nothing."""

    def begin(self, context: Context) -> Start:
        """Decide about the coming run. UnknownResponse means: compute everything and say why."""


class Watcher(Protocol):
    """Follows a run while it goes on. Called on the sampling thread, so it must be quick."""

    def begin(self, start: Start) -> None:
        """Before the first model call."""

    def refused(self, words: str) -> None:
        """The run is not begun, and why."""

    def called(self, i: int, computed: bool) -> None:
        """After model call i."""

    def paced(self, callback: Any) -> Any:
        """The run's callback of a step (step, denoised, x, steps), or one that calls it with other counts."""
