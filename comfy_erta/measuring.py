"""ERTA Profile's measurement: several full runs, and one cached run that shows the model's response to errors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..erta.notes import Note, note
from ..erta.perturbed_run import PerturbedRun
from ..erta.planner import MIN_CALLS, solve
from ..erta.problem import Problem
from ..erta.profile import Measured, Profile, Table
from ..erta.profile_file import most_tables
from ..erta.settings import Settings
from .recording import Recording
from .report import Report
from .run import attach
from .task import Context, OnReport, Start, Watcher

Features = dict[str, dict[int, Tensor]]

_NOTHING = "Nothing was sampled: give steps and a denoise above 0."
_REMEDY = (
    "Choose a sampler whose model calls do not depend on the model's output, such as euler, and use 2 steps or more."
)

# Errors everywhere in the run, and of the kind that planned runs make: every other model call, by linear extrapolation.
# The response to errors of held features differs: errors predicted from it were up to 10 times too high.
_PERTURBED = Settings(speed=2.0, mode="paper", predictor="linear")


class ProfileIncomplete(RuntimeError):
    """Not every run could be recorded; the message says why."""


@dataclass(frozen=True)
class Fitting(Recording):
    """A recording of one of ``runs`` that is not begun where the profile's file could not hold them all."""

    runs: int = 1

    def begin(self, context: Context) -> Start:
        """Raises UnknownResponse as a recording does, and ProfileIncomplete before the first model call."""
        start = super().begin(context)
        check_fits(self.runs, len(start.sigmas), len(context.parts) if self.level == "output" else 1)
        return start


def check_fits(runs: int, calls: int, streams: int = 1) -> None:
    """Raise ProfileIncomplete where a file does not hold ``runs`` of so many model calls and streams."""
    most = most_tables(calls) // streams
    if runs > most:
        each = f"{calls} model calls" + (f" of {streams} streams" if streams > 1 else "")
        remedy = f"Set runs to {most}, or take fewer steps." if most else "Take fewer steps."
        raise ProfileIncomplete(f"runs is {runs}, but at {each} a profile holds at most {most}. {remedy}")


@dataclass(frozen=True)
class Perturbing:
    """A task: repeat the run that was recorded last with some model calls reused, and measure the error response.

    features, tables: of that run; features are let go on the way. on_tables gets the tables with what was measured.
    """

    features: Features
    tables: tuple[Table, ...]
    on_tables: Callable[[tuple[Table, ...]], None]
    on_report: OnReport

    def begin(self, context: Context) -> Start:
        """Raises UnknownResponse."""
        problem = Problem(context.schedule, context.respond, None, context.edges, context.latent_shape)
        plan = solve(problem, _PERTURBED)
        perturbed = PerturbedRun(plan, problem.response, self.features)
        return Start(perturbed, sigmas=plan.sigmas, plan=plan, finish=partial(self._finish, perturbed))

    def _finish(self, perturbed: PerturbedRun, report: Report, samples: Tensor) -> None:
        if report.complete:
            self.on_tables(perturbed.with_error_response(self.tables))
        result = note("error_response_measured" if report.complete else "error_response_failed")
        self.on_report(replace(report, notes=(*report.notes, result)))


def perturbs(level: str, calls: int) -> bool:
    """Whether the response to errors is measured after the first run."""
    return level == "output" and calls >= MIN_CALLS


def measure_profile(
    model: Any,
    render: Callable[[Any, int], None],
    runs: int,
    level: str,
    scheduler: str,
    on_report: OnReport,
    watcher: Watcher | None = None,
) -> Profile:
    """Record ``runs`` full runs; at output level a perturbed run follows the first, which costs half of one.

    render(model, run) renders run 0, 1, ... with a model; run 0 once more for the perturbed run. Raises
    ProfileIncomplete: before anything is rendered where so many runs fit no file, at blocks level after the first run.
    """
    measured: list[Measured] = []
    tables: list[tuple[Table, ...]] = []
    reports: list[Report] = []

    def keep(what: Measured, found: tuple[Table, ...]) -> tuple[Note, ...]:
        measured.append(what)
        tables.append(found)
        return () if len(tables) < runs else (note("runs_recorded", runs=runs),)

    def report(found: Report) -> None:
        reports.append(found)
        on_report(found)

    for run in range(runs):
        features: list[Features] = []
        render(attach(model, Fitting(level, run, keep, report, scheduler, features.append, runs), watcher), run)
        if len(tables) <= run:
            reason = f"{'; '.join(one.text for one in reports[-1].notes)}. {_REMEDY}" if reports else _NOTHING
            raise ProfileIncomplete(f"{run} of {runs} runs were measured. {reason}")
        check_fits(runs, tables[run][0].sigmas.size, len(tables[run]))
        if run == 0 and perturbs(level, tables[0][0].sigmas.size):
            with_response: list[tuple[Table, ...]] = []
            render(attach(model, Perturbing(features.pop(), tables[0], with_response.append, report), watcher), run)
            tables[0] = with_response[0] if with_response else tables[0]
    return Profile(measured[0], tuple(table for found in tables for table in found))
