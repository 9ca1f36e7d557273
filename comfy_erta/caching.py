"""Caching: follow a plan, or record a profile where there is none."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from ..erta.joining import joined
from ..erta.meaning import CHANGED, good_point
from ..erta.notes import Note, note
from ..erta.plan import Plan, decided
from ..erta.plan_file import PlanError, plan_from_json
from ..erta.planner import MIN_CALLS, MOST_PLANNED, error_curve, solve
from ..erta.problem import Problem, coverage
from ..erta.profile import Measured, Profile, ProfileError, Table
from ..erta.profile_file import digest
from ..erta.replay import Replay
from ..erta.settings import Settings
from .identity import differences, measure_identity, model_digest
from .machines import several_machines
from .presets import preset_remarks
from .recording import Recording
from .report import Report
from .store import Store, StoreError
from .task import Context, OnReport, Start

RECORD, BUILT_IN = "record", "built-in plan"

# A stored profile that reaches less of a run is left alone, and a new one is recorded.
ENOUGH = 0.9

# So many stored profiles are looked at for one run, and joined if each reaches over a part of it.
MOST_PARTS = 8


class ProfileMismatch(ValueError):
    """A connected profile was measured on another model; the message names what differs and the remedy."""


@dataclass(frozen=True)
class Missing:
    """What stands for a profile that a workflow names and this machine does not have."""

    name: str


@dataclass(frozen=True)
class Caching:
    """A task that follows the plan made from settings and a profile.

    carried: a plan's JSON from the workflow, followed where it was made for just this run. profile: the connected one,
    which a carried plan must be made from, or None: the carried plan, else one from the store. without_profile: what
    happens when neither is there; RECORD renders in full and keeps a profile under a free name. store: None to look
    nowhere and keep nothing: the carried plan, else the built-in one. offload: at blocks level, keep the cache in main
    memory.

    Of a prompt that several machines render each one has its own profiles, so none is used: the same seed is to be the
    same picture on all of them.
    """

    settings: Settings
    store: Store | None
    on_report: OnReport
    profile: Profile | Missing | None = None
    carried: str = ""
    without_profile: str = RECORD
    scheduler: str = ""
    offload: bool = False

    def begin(self, context: Context) -> Start:
        """Find or make the plan. Raises ProfileMismatch, and UnknownResponse."""
        if self.settings.computes_all or len(context.schedule) < 2:
            return Start(finish=lambda report, samples: self.on_report(report))
        if self.store and several_machines():
            start = replace(self, store=None, profile=None).begin(context)
            return replace(start, notes=(note("several_machines"), *start.notes))
        here = measure_identity(context, self.settings.level, self.scheduler)
        profile, notes = self._connected_profile(here)
        problem = Problem(context.schedule, context.respond, profile, context.edges, context.latent_shape)
        carried, more = self._carried_plan(problem, here)
        notes += more
        if carried is None and profile is None and MIN_CALLS <= problem.calls <= MOST_PLANNED:
            profile, more = self._stored_profile(here, problem.response.sigmas)
            problem, notes = replace(problem, source=profile), notes + more
            if profile is None and self.store and self.without_profile == RECORD and not self.settings.preset:
                return self._record(context, problem, notes)
        plan = carried or self._made_plan(problem, here)
        notes += () if carried or problem.calls < MIN_CALLS or problem.profile else (note("built_in"),)
        notes += preset_remarks(self.settings.preset, self.settings.preset_steps, here)
        return self._follow(context, problem, plan, notes + plan.notes, here)

    def _made_plan(self, problem: Problem, here: Measured) -> Plan:
        return replace(solve(problem, self.settings), model=model_digest(here), guidance=here.guidance)

    def _follow(self, context: Context, problem: Problem, plan: Plan, notes: tuple[Note, ...], here: Measured) -> Start:
        level = self.settings.level
        offload = self.offload and level == "blocks"
        observer = None if all(plan.compute) else Replay(plan, offload)
        notes += (note("offloaded"),) if observer and offload else ()
        notes += of_parts(plan, context)
        finish = partial(self._finish, problem, plan, here, context.has_sound)
        return Start(observer, level, plan.sigmas, plan, notes, offload, finish)

    def _finish(
        self, problem: Problem, plan: Plan, here: Measured, has_sound: bool, report: Report, samples: Tensor
    ) -> None:
        """Report what other speeds would cost, so that the speed input can show it without another run."""
        if problem.source is None and plan.profile:  # a carried plan: is the profile that it was made from here?
            profile, _ = self._stored_profile(here, problem.response.sigmas)
            problem = replace(problem, source=profile if profile and digest(profile) == plan.profile else None)
        if problem.source is not None and not self.settings.preset and not self.settings.threshold:
            report = replace(report, curve=error_curve(problem, self.settings))
        only_sound = has_sound and len(plan.parts) == 2 and plan.parts[0].predicted_error[0] < CHANGED
        self.on_report(replace(report, notes=(*report.notes, *changed(report, only_sound))))

    def _record(self, context: Context, problem: Problem, notes: tuple[Note, ...]) -> Start:
        kept: list[Profile] = []

        def on_report(report: Report) -> None:
            curve = error_curve(replace(problem, source=kept[0]), self.settings) if kept else ()
            self.on_report(replace(report, curve=curve))

        save = partial(self._save, kept)
        start = Recording(self.settings.level, 0, save, on_report, self.scheduler).begin(context)
        return replace(start, notes=(*notes, note("recording_first")))

    def _save(self, kept: list[Profile], measured: Measured, tables: tuple[Table, ...]) -> tuple[Note, ...]:
        stem = f"{measured.model_class}-{model_digest(measured)[:8]}-{measured.sampler}-{measured.steps}".lower()
        name = self.store.unique_name(re.sub(r"[^a-z0-9_-]", "-", stem)[:56])
        # Another process may have measured the same. The name comes first: of two that see nothing of each other both
        # have the same one, so one profile is left.
        if self._stored_profile(measured, tables[0].sigmas)[0]:
            return (note("recorded_elsewhere"),)
        try:
            profile = Profile(measured, tables)
            self.store.save(name, profile)
        except (StoreError, ProfileError) as error:  # the picture is rendered, and is worth more than the profile
            return (note("not_recorded", reason=error),)
        kept.append(profile)
        return (note("recorded", name=name),)

    def _connected_profile(self, here: Measured) -> tuple[Profile | None, tuple[Note, ...]]:
        if isinstance(self.profile, Missing):
            return None, (note("profile_missing", name=self.profile.name),)
        if self.profile is None:
            return None, ()
        refusals, remarks = differences(here, self.profile.measured)
        if refusals:
            raise ProfileMismatch(
                f"The connected profile does not fit: it was made with {refusals[0]}. Disconnect it, or record a new "
                "one with ERTA Profile."
            )
        return self.profile, tuple(remarks)

    def _stored_profile(self, here: Measured, sigmas: np.ndarray) -> tuple[Profile | None, tuple[Note, ...]]:
        """The stored profile that reaches over most of the run, or several that do so together; none that leaves much.

        Of equals, the one with the fewest differences.
        """
        fitting = []
        for entry in self.store.headers() if self.store else ():
            refusals, remarks = differences(here, entry.measured)
            if not refusals:
                covered = round(coverage(np.array(entry.sigmas), sigmas), 1)
                fitting.append((-covered, len(remarks), entry.name, remarks))
        found, notes = None, ()
        for covered, _, name, remarks in sorted(fitting)[:MOST_PARTS]:  # names are unique: remarks are never compared
            if not covered:
                break
            try:
                profile = self.store.load(name)
            except (ProfileError, StoreError) as error:
                notes += (note("profile_unreadable", name=name, reason=error),)
                continue
            found = profile if found is None else joined(found, profile)
            notes += (note("profile_found", name=name), *remarks)
            if coverage(found.sigmas, sigmas) >= ENOUGH:
                return found, notes
        return None, tuple(one for one in notes if one.code == "profile_unreadable")

    def _carried_plan(self, problem: Problem, here: Measured) -> tuple[Plan | None, tuple[Note, ...]]:
        """The workflow's plan if it was made for just this run, and from the connected profile if there is one."""
        if not self.carried.strip() or problem.calls > MOST_PLANNED:
            return None, ()
        try:
            plan = plan_from_json(self.carried)
        except PlanError as error:
            return None, (note("carried_refused", reason=error),)
        others = self._belongs_to_others(plan, problem, here)
        if others:
            return None, (note("carried_other", differs=", ".join(others)),)
        error, plain = problem.prior_error(plan.compute, decided(plan)), self.settings.method(True, False)[0]
        if problem.amplifies(error, plan.compute, plain):
            return None, (note("carried_refused", reason="errors would grow in it. A new one is made"),)
        return plan, (note("carried"),)

    def _belongs_to_others(self, plan: Plan, problem: Problem, here: Measured) -> list[str]:
        """In what a plan is for another run than this one. Empty: it may be followed."""
        if not _close(plan.nominal, problem.schedule):
            return ["steps or scheduler"]
        sampled = problem.on(np.array(plan.schedule)) if plan.schedule else problem
        same = {
            "settings": plan.settings == self.settings,
            "model": plan.model == model_digest(here),
            "sampler": _close(plan.impulse, problem.response.signature)
            and _close(plan.sigmas, sampled.response.sigmas),
            "conditioning": _close(plan.edges, problem.edges) and plan.resets == tuple(sorted(problem.resets)),
            "guidance": plan.guidance == here.guidance,
            "profile": problem.source is None or plan.profile == problem.digest,
        }
        return [name for name, equal in same.items() if not equal]


def changed(report: Report, only_sound: bool = False) -> tuple[Note, ...]:
    """A note where the predicted error says that the picture, or only its sound, may be another one, with a speed that
    keeps it."""
    error = report.predicted_error[0] if report.predicted_error else 0.0
    if error < CHANGED:
        return ()
    good = good_point(report.curve)
    if good is None:
        return (note("sound_may_change" if only_sound else "may_change", error=f"{error:.0%}"),)
    code = "sound_may_change_unless" if only_sound else "may_change_unless"
    return (note(code, error=f"{error:.0%}", speed=f"{good.speed:g}", kept=f"{good.median:.1%}"),)


def of_parts(plan: Plan, context: Context) -> tuple[Note, ...]:
    """The predicted error of each part of a nested latent; the report's is that of the worst."""
    errors = [f"{part.predicted_error[0]:.2%}" for part in plan.parts]
    if len(errors) != len(context.parts):  # not nested, or the profile tells no parts apart
        return ()
    if context.has_sound:
        return (note("picture_and_sound", picture=errors[0], sound=errors[1]),)
    return (note("parts", errors=", ".join(errors)),)


def _close(one: Sequence[float], other: Sequence[float] | np.ndarray) -> bool:
    """Equal up to float32's rounding."""
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=1e-5, atol=1e-7))
