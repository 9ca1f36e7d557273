"""Observer: what joins the method to whatever runs the model."""

from typing import Protocol

from torch import Tensor

from .notes import Note


class Observer(Protocol):
    """Sees the features of one sampling run, and predicts those that are reused.

    i: the model call, counted from 0. key: the stream of features; output level has one, blocks level one per cond.
    Of each stream of a model call ``predict`` is asked first. Where it returns None the feature is computed and handed
    to ``observe``. Nothing here waits for the device. Implemented by Recorder, Replay and PerturbedRun.
    """

    @property
    def cache_bytes(self) -> int:
        """Most bytes of features that were held at once."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """What did not go as planned, complete when the run is over."""

    def predict(self, i: int, key: str) -> Tensor | None:
        """The feature to use instead of computing one, float32 or wider; the caller may write to it. None: compute."""

    def observe(self, i: int, key: str, feature: Tensor) -> Tensor:
        """The feature to go on with: the computed one itself, or a corrected one of its shape. May keep the feature."""

    def close(self) -> None:
        """Let go of all features. Called once, however the run ended."""
