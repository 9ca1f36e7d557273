"""Following a schedule that was decided elsewhere, by the pack's own machinery: for rivals, and for our ablations.

So what differs between a rival and us in a result is the rule, not how well either is programmed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..comfy_erta.report import Report
from ..comfy_erta.run import attach
from ..comfy_erta.task import Context, Start
from ..erta.plan import Plan
from ..erta.replay import Replay
from ..erta.schedules import Schedule, histories
from ..erta.settings import Settings

Weights = Callable[[tuple[int, ...], int], tuple[float, ...]]
"""(history, i) -> weights of the newest computed features. ``history``: the computed model calls before i. Both newest
first."""


def hold(history: tuple[int, ...], i: int) -> tuple[float, ...]:
    """The newest computed feature as it is."""
    return (1.0,)


def follow(model: Any, compute: Schedule, level: str, weights: Weights = hold) -> Any:
    """A clone that computes where ``compute`` says so and reuses what ``weights`` makes of the features of a level.

    level: "blocks" is the residual of the block stack per cond, "output" the derivative after guidance.
    """
    known = histories(compute)
    coefficients = tuple(() if compute[i] else weights(known[i], i) for i in range(len(compute)))
    return attach(model, Following(compute, coefficients, level))


@dataclass(frozen=True)
class Following:
    """A task of the pack's session: follow one fixed schedule."""

    compute: Schedule
    coefficients: tuple[tuple[float, ...], ...]
    level: str
    _sigmas: dict[bytes, tuple[float, ...]] = field(default_factory=dict, compare=False)

    def begin(self, context: Context) -> Start:
        schedule = context.schedule.tobytes()
        if schedule not in self._sigmas:  # probed once, so that no rival's time pays for it at every run
            self._sigmas[schedule] = tuple(context.respond(context.schedule).sigmas)
        sigmas = self._sigmas[schedule]
        if len(sigmas) != len(self.compute):
            raise ValueError(f"a schedule of {len(self.compute)} model calls for a run of {len(sigmas)}")
        nothing = (0.0,) * len(sigmas)
        plan = Plan(
            Settings(level=self.level),
            sigmas,
            self.compute,
            self.coefficients,
            nothing,
            nothing,
            residual_limits=nothing,
        )
        return Start(Replay(plan), self.level, sigmas, plan, finish=self._finish)

    def _finish(self, report: Report, samples: Tensor) -> None:
        self.on_report(report)

    @staticmethod
    def on_report(report: Report) -> None:
        """Raises RuntimeError where the run was not the one that the schedule is for."""
        if not report.complete:
            raise RuntimeError(f"the run left its schedule: {'; '.join(note.text for note in report.notes)}")
