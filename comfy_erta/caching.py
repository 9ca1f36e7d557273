"""Caching: follow a plan, or record a profile where there is none."""

import re
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from ..erta.notes import Note, note
from ..erta.plan import Plan
from ..erta.plan_file import PlanError, plan_from_json
from ..erta.planner import error_curve, solve
from ..erta.problem import Problem
from ..erta.profile import Measured, Profile, ProfileError, Table
from ..erta.replay import Replay
from ..erta.settings import Settings
from .identity import differences, measure_identity, model_digest
from .presets import preset_remarks
from .recording import Recording
from .report import Report
from .store import Store, StoreError
from .task import Context, OnReport, Start

RECORD, BUILT_IN = "record", "built-in plan"


class ProfileMismatch(ValueError):
    """A connected profile was measured on another model; the message names what differs and the remedy."""


@dataclass(frozen=True)
class Caching:
    """A task that follows the plan made from settings and a profile.

    profile: the connected one, or None to look in the store. carried: a plan's JSON from the workflow, used where no
    profile makes another one. without_profile: what happens when neither is there; RECORD renders in full and keeps a
    profile under a free name. offload: at blocks level, keep the cache in main memory.
    """

    settings: Settings
    store: Store
    on_report: OnReport
    profile: Profile | None = None
    carried: str = ""
    without_profile: str = RECORD
    scheduler: str = ""
    offload: bool = False

    def begin(self, context: Context) -> Start:
        """Find or make the plan. Raises ProfileMismatch, and UnknownResponse."""
        if self.settings.computes_all:
            return Start(finish=lambda report, samples: self.on_report(report))
        here = measure_identity(context, self.settings.level, self.scheduler)
        profile, notes = self._find_profile(here)
        problem = Problem(context.schedule, context.respond, profile, context.edges, context.latent_shape)
        plan, more = self._carried_plan(problem, here)
        notes += more
        if plan is None and profile is None and self.without_profile == RECORD and not self.settings.preset:
            return self._record(context, notes)
        if plan is None:
            notes += () if profile else (note("built_in"),)
            plan = replace(solve(problem, self.settings), model=model_digest(here))
        notes += preset_remarks(self.settings.preset, self.settings.preset_steps, here)
        return self._follow(problem, plan, notes + plan.notes)

    def _follow(self, problem: Problem, plan: Plan, notes: tuple[Note, ...]) -> Start:
        level = self.settings.level
        offload = self.offload and level == "blocks"
        observer = None if all(plan.compute) else Replay(plan, offload)
        notes += (note("offloaded"),) if observer and offload else ()
        return Start(observer, level, plan.sigmas, plan, notes, offload, partial(self._finish, problem))

    def _finish(self, problem: Problem, report: Report, samples: Tensor) -> None:
        """Report what other speeds would cost, so that the speed input can show it without another run."""
        if problem.source is not None and not self.settings.preset and not self.settings.threshold:
            report = replace(report, curve=error_curve(problem, self.settings))
        self.on_report(report)

    def _record(self, context: Context, notes: tuple[Note, ...]) -> Start:
        start = Recording(self.settings.level, 0, self._save, self.on_report, self.scheduler).begin(context)
        return replace(start, notes=(*notes, note("recording_first")))

    def _save(self, measured: Measured, tables: tuple[Table, ...]) -> tuple[Note, ...]:
        stem = f"{measured.model_class}-{model_digest(measured)[:8]}-{measured.sampler}-{measured.steps}".lower()
        name = self.store.unique_name(re.sub(r"[^a-z0-9_-]", "-", stem)[:56])
        try:
            self.store.save(name, Profile(measured, tables))
        except (StoreError, ProfileError) as error:  # the picture is rendered, and is worth more than the profile
            return (note("not_recorded", reason=error),)
        return (note("recorded", name=name),)

    def _find_profile(self, here: Measured) -> tuple[Profile | None, tuple[Note, ...]]:
        """The connected profile, which must fit, or else one of the store."""
        if self.profile is None:
            return self._stored_profile(here)
        refusals, remarks = differences(here, self.profile.measured)
        if refusals:
            raise ProfileMismatch("The connected profile does not fit. " + " ".join(refusals))
        return self.profile, tuple(remarks)

    def _stored_profile(self, here: Measured) -> tuple[Profile | None, tuple[Note, ...]]:
        """Of those that fit and can be read, the one with the fewest differences."""
        fitting = []
        for entry in self.store.headers():
            refusals, remarks = differences(here, entry.measured)
            if not refusals:
                fitting.append((len(remarks), entry.name, remarks))
        skipped: list[Note] = []
        for _, name, remarks in sorted(fitting):  # names are unique: remarks are never compared
            try:
                return self.store.load(name), (*skipped, note("profile_found", name=name), *remarks)
            except (ProfileError, StoreError) as error:
                skipped.append(note("profile_unreadable", name=name, reason=error))
        return None, tuple(skipped)

    def _carried_plan(self, problem: Problem, here: Measured) -> tuple[Plan | None, tuple[Note, ...]]:
        """The workflow's plan if it was made for just this run and from the profile at hand, if there is one."""
        if not self.carried.strip():
            return None, ()
        try:
            plan = plan_from_json(self.carried)
        except PlanError as error:
            return None, (note("carried_refused", reason=error),)
        wanted = (self.settings, model_digest(here), problem.digest if problem.source else plan.profile)
        fits = (plan.settings, plan.model, plan.profile) == wanted and _comes_by(problem, plan)
        return (plan, (note("carried"),)) if fits else (None, ())


def _comes_by(problem: Problem, plan: Plan) -> bool:
    """Whether the run calls its model at the plan's sigmas."""
    there = problem.on(np.array(plan.schedule)) if plan.schedule else problem
    sigmas = there.response.sigmas
    same_ends = np.allclose(there.schedule[[0, -1]], problem.schedule[[0, -1]], rtol=1e-5, atol=1e-7)
    return bool(same_ends and len(sigmas) == plan.calls and np.allclose(sigmas, plan.sigmas, rtol=1e-5, atol=1e-7))
