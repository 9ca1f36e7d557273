"""What a run cost and what was decided, measured: for the node, as data and as text."""

from dataclasses import asdict, dataclass
from typing import Any

from ..erta.candidate import Point
from ..erta.meaning import meaning
from ..erta.notes import Note


@dataclass(frozen=True)
class Report:
    """calls: model calls of the sampler, computed + reused. steps: of the run. seconds: the whole run;
    seconds_computed and seconds_reused: its model calls of each kind. cache_bytes: most that was held at once.
    complete: the run went as planned. predicted_error: (median, worst) expected relative error of the final latent over
    the profile's runs, () where nothing was measured. plan: its JSON. compute: "1" computed, "0" reused. sigmas: of
    each model call. curve: the error at other speeds, () without a profile."""

    calls: int
    steps: int
    computed: int
    reused: int
    seconds: float
    seconds_computed: float
    seconds_reused: float
    cache_bytes: int
    notes: tuple[Note, ...] = ()
    complete: bool = True
    predicted_error: tuple[float, ...] = ()
    plan: str = ""
    compute: str = ""
    sigmas: tuple[float, ...] = ()
    curve: tuple[Point, ...] = ()

    @property
    def speed_up(self) -> float:
        """The run's time had every model call cost what the computed ones did, over what it took; 1 if unknown."""
        if not self.computed or not self.reused or self.seconds <= 0.0:
            return 1.0
        saved = self.reused * self.seconds_computed / self.computed - self.seconds_reused
        return max((self.seconds + saved) / self.seconds, 1.0)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; for the node's UI output. Each note is a record of its level, code, text and values."""
        return {**asdict(self), "speed_up": round(self.speed_up, 3), "text": self.as_text()}

    def as_text(self) -> str:
        """Lines in plain words: the counts, the times, the predicted error, and each note's text."""
        unit = "steps" if self.calls == self.steps else "model calls"
        lines = [f"{self.computed} of {self.calls} {unit} computed, {self.reused} reused"]
        if self.reused:
            computed, reused = self.seconds_computed / max(self.computed, 1), self.seconds_reused / self.reused
            each = f"{1000.0 * computed:.3g} ms computed, {1000.0 * reused:.3g} ms reused"
            lines.append(f"{self.seconds:.1f} s, {self.speed_up:.2f}x faster than computing all ({each} each)")
            lines.append(f"cache {_amount(self.cache_bytes)}")
        if self.predicted_error:
            median, worst = self.predicted_error
            lines.append(f"{meaning(median)}: predicted error {median:.2%}, worst recorded run {worst:.2%}")
        return "\n".join([*lines, *(note.text for note in self.notes)])


def _amount(size: int) -> str:
    value, unit = (size / 2**10, "KB") if size < 1e5 else (size / 2**20, "MB")
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
