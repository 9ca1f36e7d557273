"""Recording: compute a run in full and turn its features into a profile's tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from ..erta.notes import Note, note
from ..erta.profile import Measured, Table
from ..erta.recorder import IncompleteRecording, Recorder
from .identity import measure_identity
from .report import Report
from .task import Context, OnReport, Start


@dataclass(frozen=True)
class Recording:
    """A task that lets everything be computed and measures it.

    run: its number in the profile. on_tables gets what a run that went as planned has measured, and returns notes for
    the report. on_features gets the recorded features themselves, to be let go soon.
    """

    level: str
    run: int
    on_tables: Callable[[Measured, tuple[Table, ...]], tuple[Note, ...]]
    on_report: OnReport
    scheduler: str = ""
    on_features: Callable[[dict[str, dict[int, Tensor]]], None] = lambda features: None

    def begin(self, context: Context) -> RecordingStart:
        """Raises UnknownResponse where the sampler's model calls or the model's blocks are not known."""
        response = context.respond(context.schedule)
        return RecordingStart(
            observer=Recorder(response.sigmas),
            level=self.level,
            sigmas=tuple(response.sigmas),
            # A run that records computes everything: nothing more is to lie on the GPU meanwhile.
            offload=True,
            on_report=self.on_report,
            task=self,
            context=context,
            measured=measure_identity(context, self.level, self.scheduler),
        )


@dataclass(frozen=True, kw_only=True)
class RecordingStart(Start):
    """One recorded run. measured: what it is made on."""

    observer: Recorder
    task: Recording
    context: Context
    measured: Measured

    def finish(self, report: Report, samples: Tensor) -> None:
        """Make the tables and hand them over; the report says what became of them."""
        self.on_report(replace(report, notes=(*report.notes, *self._hand_over(report, samples))))

    def _hand_over(self, report: Report, samples: Tensor) -> tuple[Note, ...]:
        if not report.complete:
            return (note("not_recorded_run"),)
        try:
            tables = self.observer.tables(self.task.run, latent_rms(self.context, samples))
        except IncompleteRecording as incomplete:
            return (note("not_recorded", reason=incomplete),)
        notes = self.task.on_tables(self.measured, tables)
        self.task.on_features(self.observer.features())
        return notes


def latent_rms(context: Context, samples: Tensor) -> float:
    """Root mean square of the final latent in the model's own units, in which the features are."""
    inner = context.model.model.process_latent_in(samples.detach())
    return float(inner.to("cpu").double().square().mean().sqrt())
