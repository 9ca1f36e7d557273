"""Inputs that several nodes share. What an input that is a setting offers, and its help, stands in erta/settings.py."""

import sys
from numbers import Integral, Real
from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..erta.settings import DECLARED, require

ProfileType, OptionsType = io.Custom("ERTA_PROFILE"), io.Custom("ERTA_OPTIONS")

CATEGORY = "ERTACache"


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
    """KSampler's own inputs with its limits and defaults."""
    return [
        io.Model.Input("model", tooltip="The model to sample with, after LoRAs and shift."),
        io.Int.Input(
            "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip="Seed of the noise."
        ),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Steps of a full render; speed saves the time."),
        io.Float.Input("cfg", default=8.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance scale."),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="Any of ComfyUI's samplers."),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="How the sigmas are spaced."),
        io.Conditioning.Input("positive", tooltip="What the picture should show."),
        io.Conditioning.Input("negative", tooltip="What it should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise, usually an empty one."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="1: from pure noise. Less keeps more of the latent.",
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


def options_input() -> Any:
    return OptionsType.Input(
        "options", optional=True, tooltip="From ERTA Options: paper mode, published lists and the like. Seldom needed."
    )


def cache_inputs() -> list[Any]:
    """The knob, what it may rest on, and the plan, which is the last of the node's widgets and out of sight."""
    plan = io.String.Input(
        "plan",
        default="",
        optional=True,
        socketless=True,
        tooltip="The last run's plan, so that a shared workflow renders the same. Fills itself.",
    )
    plan.extra_dict = {"hidden": True}  # front ends know it, the schema's own keywords do not
    return [
        setting_input("speed"),
        ProfileType.Input(
            "profile",
            optional=True,
            tooltip="From ERTA Profile or Load ERTA Profile. Unconnected, a stored profile that fits is used.",
        ),
        options_input(),
        plan,
    ]
