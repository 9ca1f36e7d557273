"""Inputs that several nodes share, and how they become settings."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..comfy_erta.blocks import has_blocks
from ..comfy_erta.caching import BUILT_IN, RECORD
from ..comfy_erta.presets import preset_names, preset_steps
from ..erta.plan import MODES, PREDICTORS, Settings

ProfileType = io.Custom("ERTA_PROFILE")

CATEGORY = "ERTACache"
AUTO, ON, OFF = "auto", "on", "off"


def advanced(given: Any) -> Any:
    """Mark an input as advanced; the keyword for it is newer than the oldest ComfyUI that this runs on."""
    if given.extra_dict is None:
        given.extra_dict = {}
    given.extra_dict["advanced"] = True
    return given


def ksampler_inputs() -> list[Any]:
    """KSampler's own inputs with its defaults and limits."""
    return [
        io.Model.Input("model", tooltip="The model to sample with, after LoRAs and shift."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Seed of the noise.",
        ),
        io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Steps of the full run that is sped up."),
        io.Float.Input("cfg", default=6.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale."),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="Any of ComfyUI's samplers."),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="How the sigmas are spaced."),
        io.Conditioning.Input("positive", tooltip="What the picture should show."),
        io.Conditioning.Input("negative", tooltip="What it should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise, usually an empty one."),
        io.Float.Input(
            "denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="1: from pure noise. Less keeps the latent."
        ),
    ]


def cache_inputs() -> list[Any]:
    """The knob, the mode, the profile, and what experts may override."""
    return [
        io.Float.Input(
            "speed",
            default=2.0,
            min=1.0,
            max=10.0,
            step=0.05,
            round=0.01,
            tooltip="How much faster than computing every step. 1 changes nothing, 2 computes half of the steps.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=MODES[0],
            tooltip="planned: the best plan for this speed. paper: ERTACache as published, for comparison.",
        ),
        ProfileType.Input(
            "profile",
            optional=True,
            tooltip="From ERTA Profile or Load ERTA Profile. Without one, a fitting stored profile is looked for.",
        ),
        *map(advanced, _advanced_inputs()),
    ]


def _advanced_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "without_profile",
            options=[RECORD, BUILT_IN],
            default=RECORD,
            optional=True,
            tooltip="No profile fits: render once in full and keep one, or be fast at once without a prediction.",
        ),
        io.Combo.Input(
            "level",
            options=[AUTO, "output", "blocks"],
            default=AUTO,
            optional=True,
            tooltip="output: reuse after guidance, tiny cache, any model. blocks: the transformer's, some models.",
        ),
        io.Combo.Input(
            "predictor",
            options=list(PREDICTORS),
            default=AUTO,
            optional=True,
            tooltip="How a reused step is made from the computed ones. auto: a fitted line; in paper mode affine.",
        ),
        io.Boolean.Input(
            "corrector",
            default=True,
            optional=True,
            tooltip="At each computed step make up for the error of the reused ones before it (planned, output level).",
        ),
        io.Combo.Input(
            "timesteps",
            options=[AUTO, ON, OFF],
            default=AUTO,
            optional=True,
            tooltip="The paper's timestep adjustment. auto: on in paper mode, off when planned.",
        ),
        io.Float.Input(
            "threshold",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.01,
            round=0.0001,
            optional=True,
            tooltip="Paper mode: the published lambda (0.08 for Wan2.1 1.3B). 0 finds it from the speed.",
        ),
        io.Int.Input(
            "protect_start", default=1, min=1, max=100, optional=True, tooltip="Steps at the start that are computed."
        ),
        io.Int.Input(
            "protect_end", default=0, min=0, max=100, optional=True, tooltip="Steps at the end that are computed."
        ),
        io.Int.Input(
            "longest_interval",
            default=0,
            min=0,
            max=100,
            optional=True,
            tooltip="Most steps from one computed step to the next. 0: twice the mean.",
        ),
        io.Combo.Input(
            "preset",
            options=["none", *preset_names()],
            default="none",
            optional=True,
            tooltip="A published list of steps to compute instead of a plan from a profile.",
        ),
        io.String.Input(
            "plan",
            default="",
            multiline=True,
            optional=True,
            socketless=True,
            tooltip="The last run's plan, so that a shared workflow renders the same. Fills itself; may be cleared.",
        ),
        io.Boolean.Input(
            "check",
            default=True,
            optional=True,
            tooltip="Compute more steps in a run that turns out unlike the profiled ones (planned, output level).",
        ),
        io.Boolean.Input(
            "offload",
            default=False,
            optional=True,
            tooltip="Level blocks: keep the cache in main memory instead of on the GPU.",
        ),
    ]


def plan_place() -> int:
    """Where the plan stands among a node's widget values, from the end: all inputs behind it are widgets."""
    names = [given.id for given in _advanced_inputs()]
    return names.index("plan") - len(names)


def settings_from(model: Any, values: dict[str, Any]) -> Settings:
    """The settings that the inputs of ``cache_inputs`` express; values may lack the optional ones."""
    mode = values["mode"]
    level = values.get("level", AUTO)
    if level == AUTO:
        level = "blocks" if mode == "paper" and has_blocks(model) else "output"
    timesteps = values.get("timesteps", AUTO)
    steps, published_for = preset_steps(values.get("preset", "none"))
    return Settings(
        speed=values["speed"],
        mode=mode,
        level=level,
        predictor=values.get("predictor", AUTO),
        corrector=values.get("corrector", True),
        check=values.get("check", True),
        timesteps=mode == "paper" if timesteps == AUTO else timesteps == ON,
        threshold=values.get("threshold", 0.0) if mode == "paper" else 0.0,
        protect_start=values.get("protect_start", 1),
        protect_end=values.get("protect_end", 0),
        longest_gap=values.get("longest_interval", 0),
        preset=steps,
        preset_steps=published_for,
    )
