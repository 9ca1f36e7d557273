"""Session: the mutable state of one sampling run, and what its level asks of it.

A level (output.py, blocks.py) is where features are read and put back. Its ``call_model`` is one model call:
(x, timestep, ...) -> (denoised, whether it was reused).
"""

from dataclasses import dataclass

from torch import Tensor

from ..erta.notes import Note, note
from ..erta.observer import Observer
from .task import Start

KEY = "ertacache"  # of all wrappers and attachments


@dataclass
class Session:
    """Which model call a run is at, and whether it still goes as planned.

    call: counted from 0, -1 before the first. mismatch: why it does not go as planned; all is computed from there.
    parts: sizes of what is packed into the latent's last dimension, one where it is not nested.
    """

    start: Start
    parts: tuple[int, ...]
    call: int = -1
    mismatch: Note | None = None

    @property
    def observer(self) -> Observer | None:
        """Who gets the features; None where nobody does, or not any more."""
        return None if self.mismatch else self.start.observer

    @property
    def expects_reuse(self) -> bool:
        """Whether the plan reuses the current model call."""
        plan = self.start.plan
        return plan is not None and self.call < plan.calls and not plan.compute[self.call]

    def predict(self, key: str) -> Tensor | None:
        """The current call's feature of a stream, or None where it is to be computed."""
        return None if self.observer is None else self.observer.predict(self.call, key)

    def observe(self, key: str, feature: Tensor) -> Tensor:
        """Hand over the current call's computed feature of a stream, and get the one to go on with."""
        return feature if self.observer is None else self.observer.observe(self.call, key, feature)

    def stop(self, reason: Note) -> None:
        """Compute all from here, and observe nothing more. Of several reasons the first is kept."""
        self.mismatch = self.mismatch or reason

    def check(self, timestep: Tensor) -> None:
        """Before a model call is computed: is it the expected one? Reads one scalar; a forward follows anyway."""
        if self.observer is None:
            return
        expected = self.start.sigmas
        if self.call >= len(expected):
            return self.stop(note("too_many_calls", calls=len(expected)))
        sigma, planned = float(timestep.reshape(-1)[0]), expected[self.call]
        if abs(sigma - planned) > 1e-4 * planned + 1e-7:
            self.stop(note("other_sigma", call=self.call, sigma=f"{sigma:.5g}", expected=f"{planned:.5g}"))
