"""A profile from several full runs, and one cached run that shows how the model answers to errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..erta.perturbed_run import PerturbedRun
from ..erta.planner import MIN_CALLS, solve
from ..erta.problem import Problem
from ..erta.profile import Measured, Profile, Table
from ..erta.settings import Settings
from .report import Report
from .session import Context, Start, attach
from .tasks import OnReport, Recording

Features = dict[str, dict[int, Tensor]]

_NOTHING = "Nothing was sampled: give steps and a denoise above 0."
_REMEDY = "Choose a sampler whose model calls do not depend on the model's outputs, such as euler, and 2 steps or more."

# Errors everywhere in the run, and of the kind that planned runs make: every other model call, on a line. Those of held
# features are answered otherwise, and what was predicted from that was up to 10 times too high with some prompts.
_REHEARSED = Settings(speed=2.0, mode="paper", predictor="linear")


@dataclass(frozen=True)
class Perturbing:
    """A cached run of what was recorded last, to measure how the model answers to errors.

    on_tables gets the run's tables with what was measured.
    """

    features: Features
    tables: tuple[Table, ...]
    on_tables: Callable[[tuple[Table, ...]], None]
    on_report: OnReport

    def begin(self, setting: Context) -> Start:
        plan = solve(Problem(setting.schedule, setting.respond, None, setting.edges), _REHEARSED)
        perturbed = PerturbedRun(plan, setting.respond(setting.schedule), self.features)
        return Start(perturbed, "output", plan.sigmas, plan=plan)

    def finish(self, start: Start, report: Report, samples: Tensor, setting: Context) -> None:
        note = "answer to errors not measured: the run did not go as foreseen"
        if report.complete and isinstance(start.observer, PerturbedRun):
            self.on_tables(start.observer.measured(self.tables))
            note = "answer to errors measured"
        self.on_report(replace(report, notes=(*report.notes, note)))


class ProfileIncomplete(RuntimeError):
    """Not every run could be recorded; the message says why."""


def measure_profile(
    model: Any, render: Callable[[Any, int], None], runs: int, level: str, scheduler: str, on_report: OnReport
) -> Profile:
    """Record ``runs`` full runs; at output level the first is followed by a cached run of the same, half as long.

    render(model, run) renders run 0, 1, ... with the model it is given; a perturbed run renders run 0 once more. Raises
    ProfileIncomplete.
    """
    measured: list[Measured] = []
    tables: list[tuple[Table, ...]] = []
    reports: list[Report] = []

    def keep(what: Measured, found: tuple[Table, ...]) -> str:
        measured.append(what)
        tables.append(found)
        return "" if len(tables) < runs else f"{runs} run{'s'[: runs > 1]} recorded"

    def report(found: Report) -> None:
        reports.append(found)
        on_report(found)

    for run in range(runs):
        features: list[Features] = []
        render(attach(model, Recording(level, run, keep, report, scheduler, features.append)), run)
        if len(tables) <= run:
            why = f"{'; '.join(reports[-1].notes)}. {_REMEDY}" if reports else _NOTHING
            raise ProfileIncomplete(f"{run} of {runs} runs were measured. {why}")
        if run == 0 and level == "output" and tables[0][0].sigmas.size >= MIN_CALLS:
            measured: list[tuple[Table, ...]] = []
            render(attach(model, Perturbing(features.pop(), tables[0], measured.append, report)), run)
            tables[0] = measured[0] if measured else tables[0]
    return Profile(measured[0], tuple(table for found in tables for table in found))
