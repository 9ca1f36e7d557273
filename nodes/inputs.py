"""Inputs that several nodes share, and how they become settings.

What an input that is a setting offers, and its help, stands in erta/settings.py; the other inputs are declared here.
"""

import sys
from numbers import Integral, Real
from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..comfy_erta.blocks import known_blocks
from ..comfy_erta.caching import BUILT_IN, RECORD, Missing
from ..comfy_erta.presets import preset_names, preset_steps
from ..erta.profile import Profile
from ..erta.settings import AUTO, BLOCKS, DECLARED, OUTPUT, PAPER, Settings, require

ProfileType = io.Custom("ERTA_PROFILE")

CATEGORY = "ERTACache"
ON, OFF, NONE = "on", "off", "none"


def advanced(made: Any) -> Any:
    """Mark an input as advanced; the keyword for it is newer than the oldest ComfyUI that this runs on."""
    if made.extra_dict is None:
        made.extra_dict = {}
    made.extra_dict["advanced"] = True
    return made


def setting_input(name: str, options: tuple[str, ...] = (), **changed: Any) -> Any:
    """The input of a setting as erta/settings.py declares it. options: those of the node, where it offers others."""
    declared = DECLARED[name]
    limits, default = declared.metadata, changed.pop("default", declared.default)
    options = options or limits.get("options", ())
    common = {"tooltip": limits["help"], **changed}
    if options:
        return io.Combo.Input(name, options=list(options), default=default, **common)
    if isinstance(default, bool):
        return io.Boolean.Input(name, default=default, **common)
    numbers = {"default": default, "min": limits["low"], "max": limits["high"]}
    if isinstance(default, int):
        return io.Int.Input(name, **numbers, **common)
    return io.Float.Input(name, **numbers, step=limits["step"], round=limits["round"], **common)


def ksampler_inputs() -> list[Any]:
    """KSampler's own inputs with its limits."""
    return [
        io.Model.Input("model", tooltip="The model to sample with, after LoRAs and shift."),
        io.Int.Input(
            "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip="Seed of the noise."
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


def check_values(declared: list[Any], values: dict[str, Any]) -> None:
    """Refuse numbers that ComfyUI lets through: NaN, and whatever comes by a link. Raises ValueError."""
    for made in declared:
        value = values.get(made.id)
        if isinstance(made, io.Int.Input):
            good = isinstance(value, Integral) and made.min <= value <= made.max
            require(good, made.id, value, f"a whole number from {made.min} to {made.max}")
        elif isinstance(made, io.Float.Input):
            require(
                isinstance(value, Real) and abs(value) <= sys.float_info.max,
                made.id,
                value,
                "a number, and a finite one",
            )


def cache_inputs() -> list[Any]:
    """The knob, the mode, the profile, and what experts may override."""
    return [
        setting_input("speed"),
        setting_input("mode"),
        ProfileType.Input(
            "profile",
            optional=True,
            tooltip="From ERTA Profile or Load ERTA Profile. Without one, a fitting stored profile is looked for.",
        ),
        *map(advanced, _advanced_inputs()),
    ]


def _advanced_inputs() -> list[Any]:
    simple = ("threshold", "protect_start", "protect_end", "longest_gap")
    return [
        io.Combo.Input(
            "without_profile",
            options=[RECORD, BUILT_IN],
            default=RECORD,
            optional=True,
            tooltip="No profile fits: render once in full and keep one, or be fast at once without a prediction.",
        ),
        setting_input("level", (AUTO, OUTPUT, BLOCKS), default=AUTO, optional=True),
        setting_input("predictor", optional=True),
        setting_input("corrector", optional=True),
        setting_input("timesteps", (AUTO, ON, OFF), default=AUTO, optional=True),
        *(setting_input(name, optional=True) for name in simple),
        setting_input("preset", (NONE, *preset_names()), default=NONE, optional=True),
        io.String.Input(
            "plan",
            default="",
            multiline=True,
            optional=True,
            socketless=True,
            tooltip="The last run's plan, so that a shared workflow renders the same. Fills itself; may be cleared.",
        ),
        setting_input("check", optional=True),
        io.Boolean.Input(
            "offload",
            default=False,
            optional=True,
            tooltip="Level blocks: keep the cache in main memory instead of on the GPU.",
        ),
    ]


def plan_place() -> int:
    """Where the plan stands among a node's widget values, from the end: all inputs behind it are widgets."""
    names = [made.id for made in _advanced_inputs()]
    return names.index("plan") - len(names)


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The values of ``cache_inputs``; optional ones that a prompt leaves out have their declared default.

    Raises ValueError for values that are none of a setting; `Settings` checks the others.
    """
    declared = {made.id: made for made in _advanced_inputs()}
    filled = {**{name: made.default for name, made in declared.items()}, **values}
    for name in ("without_profile", "timesteps"):
        options = declared[name].options
        require(filled[name] in options, name, filled[name], f"one of {', '.join(options)}")
    require(isinstance(filled["plan"], str), "plan", filled["plan"], "a text: a plan, or empty")
    profile = filled.get("profile")
    measured = isinstance(profile, Profile | Missing | None)
    require(measured, "profile", profile, "connected to ERTA Profile or Load ERTA Profile")
    return filled


def settings_from(model: Any, values: dict[str, Any]) -> Settings:
    """The settings that the inputs of ``cache_inputs`` express, all of them there."""
    mode, level, timesteps = values["mode"], values["level"], values["timesteps"]
    if level == AUTO:
        level = BLOCKS if mode == PAPER and known_blocks(model.model.diffusion_model) else OUTPUT
    steps, published_for = preset_steps(values["preset"])
    resolved = {
        "level": level,
        "timesteps": mode == PAPER if timesteps == AUTO else timesteps == ON,
        "threshold": values["threshold"] if mode == PAPER else 0.0,
        "preset": steps,
    }
    return Settings(**{name: resolved.get(name, values[name]) for name in DECLARED}, preset_steps=published_for)
