"""What can be done with a sampling run: record it, or follow a plan."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..erta.plan import Plan
from ..erta.plan_file import PlanError, plan_from_json
from ..erta.planner import Point, error_curve, solve
from ..erta.problem import Problem
from ..erta.profile import Measured, Profile, ProfileError, Table
from ..erta.profile_file import digest
from ..erta.recorder import IncompleteRecording, Recorder
from ..erta.replay import Replay
from ..erta.settings import Settings
from .identity import describe, differences
from .levels import block_slots
from .presets import preset_remarks
from .report import Report
from .session import Context, Start
from .store import Store, StoreError

RECORD, BUILT_IN = "record", "built-in plan"

OnReport = Callable[[Report], None]


class ProfileMismatch(ValueError):
    """A connected profile was measured on another model; the message names what differs and the remedy."""


@dataclass(frozen=True)
class Recording:
    """Let everything be computed and measure it.

    on_tables gets what a run that went as foreseen has measured, and returns a line for the report, or "" for none;
    on_features the recorded features themselves, to be let go soon.
    """

    level: str
    run: int
    on_tables: Callable[[Measured, tuple[Table, ...]], str]
    on_report: OnReport
    scheduler: str = ""
    on_features: Callable[[dict[str, dict[int, Tensor]]], None] = lambda features: None

    def begin(self, setting: Context) -> Start:
        response = setting.respond(setting.schedule)
        measured = measure_identity(setting, self.level, self.scheduler)
        recorder, sigmas = Recorder(response.sigmas), tuple(response.sigmas)
        # A run that records is full as it is: nothing more is to lie on the GPU meanwhile.
        return Start(recorder, self.level, sigmas, measured=measured, offload=True)

    def finish(self, start: Start, report: Report, samples: Tensor, setting: Context) -> None:
        note = "nothing recorded: the run did not go as foreseen"
        if report.complete and start.measured is not None and isinstance(start.observer, Recorder):
            try:
                tables = start.observer.tables(self.run, latent_rms(setting, samples))
                note = self.on_tables(start.measured, tables)
                self.on_features(start.observer.features())
            except IncompleteRecording as incomplete:
                note = f"nothing recorded: {incomplete}"
        self.on_report(replace(report, notes=(*report.notes, *filter(None, [note]))))


@dataclass(frozen=True)
class Caching:
    """Follow the plan that settings and a profile give.

    profile: the connected one, or None to look in the store. carried: a plan's JSON from the workflow, used where no
    profile says otherwise. without_profile: what happens when neither is there; RECORD renders in full and keeps a
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

    def begin(self, setting: Context) -> Start:
        if self.settings.computes_all:
            return Start()
        here = measure_identity(setting, self.settings.level, self.scheduler)
        profile, notes = self._find_profile(here)
        plan, told = self._carried_plan(setting, here, profile)
        notes = (*notes, *told)
        if plan is None and profile is None and self.without_profile == RECORD and not self.settings.preset:
            first = "no profile fits this model yet: rendered in full and recorded, the next render is fast"
            start = self._recording().begin(setting)
            return replace(start, notes=(*notes, first))
        if plan is None:
            if profile is None:
                notes = (*notes, "built-in plan: nothing was measured, so no error is predicted")
            plan = solve(Problem(setting.schedule, setting.respond, profile, setting.edges), self.settings)
            plan = replace(plan, model=model_digest(here))
        notes = (*notes, *preset_remarks(self.settings.preset, self.settings.preset_steps, here))
        offload = self.offload and self.settings.level == "blocks"
        observer = None if all(plan.compute) else Replay(plan, offload)
        notes = (*notes, *plan.notes, *(("the cache is kept in main memory",) if observer and offload else ()))
        return Start(observer, self.settings.level, plan.sigmas, plan, notes=notes, profile=profile, offload=offload)

    def finish(self, start: Start, report: Report, samples: Tensor, setting: Context) -> None:
        if start.measured is not None:
            self._recording().finish(start, report, samples, setting)
        else:
            self.on_report(replace(report, curve=self._curve(start, setting)))

    def _curve(self, start: Start, setting: Context) -> tuple[Point, ...]:
        """For the knob, which then tells what it comes to without another run."""
        if start.profile is None or self.settings.preset or self.settings.threshold:
            return ()
        return error_curve(Problem(setting.schedule, setting.respond, start.profile, setting.edges), self.settings)

    def _recording(self) -> Recording:
        return Recording(self.settings.level, 0, self._save, self.on_report, self.scheduler)

    def _save(self, measured: Measured, tables: tuple[Table, ...]) -> str:
        profile = Profile(measured, tables)
        stem = f"{measured.model_class}-{model_digest(measured)[:8]}-{measured.sampler}-{measured.steps}".lower()
        name = self.store.unique_name(re.sub(r"[^a-z0-9_-]", "-", stem)[:56])
        try:
            self.store.save(name, profile)
        except (StoreError, ProfileError) as error:  # the picture is rendered, and is worth more than the profile
            return f"nothing recorded: {error}"
        return f"profile kept as {name}"

    def _find_profile(self, here: Measured) -> tuple[Profile | None, tuple[str, ...]]:
        """The connected profile, which must fit, or the closest of the store that does."""
        if self.profile is not None:
            refusals, remarks = differences(here, self.profile.measured)
            if refusals:
                raise ProfileMismatch("The connected profile does not fit. " + " ".join(refusals))
            return self.profile, tuple(remarks)
        fitting = []
        for name, measured in self.store.headers():
            refusals, remarks = differences(here, measured)
            if not refusals:
                fitting.append((len(remarks), name, tuple(remarks)))
        if not fitting:
            return None, ()
        _, name, found = min(fitting)
        return self.store.load(name), (f"profile {name}", *found)

    def _carried_plan(
        self, setting: Context, here: Measured, profile: Profile | None
    ) -> tuple[Plan | None, tuple[str, ...]]:
        """The workflow's plan if it was made for just this run and no profile at hand says something newer."""
        if not self.carried.strip():
            return None, ()
        try:
            plan = plan_from_json(self.carried)
        except PlanError as error:
            return None, (f"the workflow's plan is not used: {error}",)
        if profile is not None and plan.profile != digest(profile):
            return None, ()
        if plan.settings != self.settings or plan.model != model_digest(here):
            return None, ()
        schedule = np.array(plan.schedule) if plan.schedule else setting.schedule
        sigmas = setting.respond(schedule).sigmas
        same_ends = np.allclose(schedule[[0, -1]], setting.schedule[[0, -1]], rtol=1e-5, atol=1e-7)
        fits = same_ends and len(sigmas) == plan.calls and np.allclose(sigmas, plan.sigmas, rtol=1e-5, atol=1e-7)
        return (plan, ("plan carried by the workflow",)) if fits else (None, ())


def measure_identity(setting: Context, level: str, scheduler: str) -> Measured:
    """What this run is measured on. Raises UnknownResponse where the level does not exist for this model."""
    if level == "blocks":
        block_slots(setting.model)
    guidance = getattr(setting.guider, "cfg", None)
    return describe(
        setting.model,
        sampler=sampler_name(setting.sampler),
        scheduler=scheduler,
        steps=len(setting.schedule) - 1,
        guidance=float(guidance) if isinstance(guidance, (int, float)) else None,
        latent_shape=setting.latent_shape,
        level=level,
    )


def sampler_name(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", None)
    return str(getattr(function, "__name__", type(sampler).__name__)).removeprefix("sample_")


def model_digest(measured: Measured) -> str:
    """One hex digest for all that makes a model another one: what ``differences`` refuses on."""
    refused = ("model_class", "parameters", "weights", "loras", "level")
    content = {name: value for name, value in asdict(measured).items() if name in refused}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def latent_rms(setting: Context, samples: Tensor) -> float:
    """Root mean square of the final latent in the model's own units, in which the features are."""
    inner = setting.model.model.process_latent_in(samples.detach())
    return float(inner.to("cpu").double().square().mean().sqrt())
