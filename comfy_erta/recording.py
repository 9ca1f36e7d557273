"""Recording: compute a run in full and turn its features into a profile's tables."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

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

    def begin(self, context: Context) -> Start:
        """Raises UnknownResponse where the sampler's model calls or the model's blocks are not known."""
        response = context.respond(context.schedule)
        recorder = Recorder(response.sigmas)
        finish = partial(self._finish, context, measure_identity(context, self.level, self.scheduler), recorder)
        # A run that records computes everything: nothing more is to lie on the GPU meanwhile.
        return Start(recorder, self.level, tuple(response.sigmas), offload=True, finish=finish)

    def _finish(
        self, context: Context, measured: Measured, recorder: Recorder, report: Report, samples: Tensor
    ) -> None:
        notes = (note("not_recorded_run"),)
        if report.complete:
            try:
                # In the model's own units, as the features are.
                latent = context.model.model.process_latent_in(samples.detach()).to("cpu").double()
                parts = latent.split(context.parts, dim=-1) if len(context.parts) > 1 else (latent,)
                tables = recorder.tables(self.run, *(float(part.square().mean().sqrt()) for part in parts))
                notes = self.on_tables(measured, tables)
                self.on_features(recorder.features)
            except IncompleteRecording as incomplete:
                notes = (note("not_recorded", reason=incomplete),)
        self.on_report(replace(report, notes=(*report.notes, *notes)))
