"""ERTA Cached Sampler, ERTA Cache and the Timestep Adjuster."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..comfy_erta.browser import Browser
from ..comfy_erta.caching import Caching, Missing
from ..comfy_erta.report import Report
from ..comfy_erta.run import attach, attached_task
from ..comfy_erta.store import default_store
from ..erta.planner import adjusted_schedule
from ..erta.profile import Profile
from ..erta.settings import require
from .inputs import CATEGORY, cache_inputs, ksampler_inputs
from .options import options_of
from .profiling import render
from .view import report_ui

# So newer ComfyUIs send the report again when the latent comes from their cache. An output node would run for nobody.
_SHOWN_AGAIN = {"has_intermediate_output": True} if hasattr(io.Schema, "has_intermediate_output") else {}
# What people type who look for a cache; a field with a factory, so the class has no such attribute.
_ALIASES = ["cache", "faster", "speed", "teacache", "easycache", "magcache", "wan"]
_FOUND_BY = {"search_aliases": _ALIASES} if "search_aliases" in {field.name for field in fields(io.Schema)} else {}


class ERTACachedSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTACachedSampler",
            display_name="ERTA Cached Sampler",
            category=CATEGORY,
            description="KSampler with one more knob: speed. The first render with a new model measures it by itself.",
            inputs=[*ksampler_inputs(), *cache_inputs()],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo, io.Hidden.dynprompt],
            not_idempotent=True,
            **_SHOWN_AGAIN,
            **_FOUND_BY,
        )

    @classmethod
    def execute(cls, model: Any, **inputs: Any) -> io.NodeOutput:
        reports: list[Report] = []
        browser = Browser(cls.hidden, bar=True)
        task = _caching(model, inputs, reports.append)
        _, *others = (made.id for made in ksampler_inputs())  # all but the model
        latent = render(attach(model, task, browser), {name: inputs[name] for name in others})
        for report in reports:
            browser.report(report)
        return io.NodeOutput(latent, ui=report_ui(reports))


class ERTACache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTACache",
            display_name="ERTA Cache (Model Patch)",
            category=CATEGORY,
            description="The same cache for any sampler node: put it last, right before the sampler or guider.",
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with, after LoRAs and shift."),
                *cache_inputs(),
            ],
            outputs=[io.Model.Output(display_name="patched model", tooltip="For any sampler or guider node.")],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo, io.Hidden.dynprompt],
            not_idempotent=True,
            **_FOUND_BY,
        )

    @classmethod
    def execute(cls, model: Any, **inputs: Any) -> io.NodeOutput:
        browser = Browser(cls.hidden)
        return io.NodeOutput(attach(model, _caching(model, inputs, browser.report), browser))


class ERTATimestepAdjuster(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTATimestepAdjuster",
            display_name="Timestep Adjuster",
            category=CATEGORY,
            description="The paper's timestep adjustment as a SIGMAS node, for SamplerCustom behind an ERTA Cache.",
            inputs=[
                io.Model.Input("model", tooltip="From ERTA Cache with a profile."),
                io.Sigmas.Input("sigmas", tooltip="From any scheduler node."),
            ],
            outputs=[io.Sigmas.Output(display_name="adjusted", tooltip="Shorter steps where the cache reuses.")],
        )

    @classmethod
    def execute(cls, model: Any, sigmas: torch.Tensor) -> io.NodeOutput:
        task = attached_task(model)
        if not isinstance(task, Caching):
            raise ValueError("Timestep Adjuster: the model has no ERTA Cache. Connect the output of ERTA Cache.")
        if not isinstance(task.profile, Profile):
            raise ValueError("Timestep Adjuster: the ERTA Cache has no profile. Connect one to its profile input.")
        if task.settings.timesteps:
            raise ValueError(
                "Timestep Adjuster: in mode paper the ERTA Cache adjusts the timesteps itself. Connect the sigmas to "
                "the sampler directly, or choose mode planned in ERTA Options."
            )
        moved = adjusted_schedule(sigmas.cpu().double().numpy(), task.profile, task.settings)
        return io.NodeOutput(torch.from_numpy(np.asarray(moved)).to(sigmas))


def _caching(model: Any, inputs: dict[str, Any], on_report: Any) -> Caching:
    """The task that ``cache_inputs`` ask for. Raises ValueError with an input's name, value and remedy."""
    profile, plan, options = inputs.get("profile"), inputs.get("plan", ""), options_of(inputs.get("options"))
    require(isinstance(plan, str), "plan", plan, "a text: a plan, or empty")
    fits = isinstance(profile, Profile | Missing | None)
    require(fits, "profile", profile, "connected to ERTA Profile or Load ERTA Profile")
    return Caching(
        settings=options.settings(inputs["speed"], model),
        store=default_store(),
        on_report=on_report,
        profile=profile,
        carried=plan,
        without_profile=options.values["without_profile"],
        scheduler=inputs.get("scheduler", ""),
        offload=options.values["offload"],
    )
