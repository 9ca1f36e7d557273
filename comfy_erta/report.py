"""What a run cost and what was decided, measured: for the node, as data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..erta.planner import Point


@dataclass(frozen=True)
class Report:
    """model calls: calls of the sampler, computed + reused. seconds: the whole run; seconds_computed and
    seconds_reused: the model calls of each kind. cache_bytes: most that was held at once. complete: the run went as
    foreseen. notes: lines in an artist's words. predicted_error: (median, worst) relative error of the latent that the
    profile lets expect, () where nothing was measured. plan: its JSON. compute: "1" computed, "0" reused. curve: what
    other speeds come to, () without a profile."""

    calls: int
    computed: int
    reused: int
    seconds: float
    seconds_computed: float
    seconds_reused: float
    cache_bytes: int
    notes: tuple[str, ...] = ()
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
        """JSON-able; for the node's UI output."""
        return {**asdict(self), "speed_up": round(self.speed_up, 3), "text": self.as_text()}

    def as_text(self) -> str:
        lines = [f"{self.computed} of {self.calls} model calls computed, {self.reused} reused"]
        if self.reused:
            each = f"{_milliseconds(self.seconds_computed, self.computed)} computed"
            each += f", {_milliseconds(self.seconds_reused, self.reused)} reused"
            lines.append(f"{self.seconds:.1f} s, {self.speed_up:.2f}x faster than computing all ({each} each)")
            lines.append(f"cache {_amount(self.cache_bytes)}")
        if self.predicted_error:
            median, worst = self.predicted_error
            lines.append(f"predicted error {median:.2%} of the latent, worst recorded run {worst:.2%}")
        return "\n".join([*lines, *self.notes])


def _milliseconds(seconds: float, count: int) -> str:
    return f"{1000.0 * seconds / max(count, 1):.3g} ms"


def _amount(size: int) -> str:
    value, unit = (size / 2**10, "KB") if size < 1e5 else (size / 2**20, "MB")
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
