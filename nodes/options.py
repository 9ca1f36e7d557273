"""ERTA Options: what experts may choose, in one place for all nodes that take it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..comfy_erta.blocks import known_blocks
from ..comfy_erta.caching import BUILT_IN, RECORD
from ..comfy_erta.presets import preset_names, preset_steps
from ..erta.settings import AUTO, BLOCKS, OUTPUT, PAPER, Settings, require
from .inputs import CATEGORY, OptionsType, setting_input

NONE = "none"


def option_inputs() -> list[Any]:
    """The one declaration: names, defaults, ranges and help. A prompt may leave any of them out."""
    made = [
        setting_input("mode"),
        io.Combo.Input(
            "without_profile",
            options=[RECORD, BUILT_IN],
            default=RECORD,
            tooltip="When no profile fits. record: render once in full and keep one. "
            "built-in plan: fast at once, no predicted error.",
        ),
        setting_input("level", (AUTO, OUTPUT, BLOCKS), default=AUTO),
        setting_input("predictor"),
        setting_input("check"),
        setting_input("protect_start"),
        setting_input("protect_end"),
        setting_input("threshold"),
        setting_input("preset", (NONE, *preset_names()), default=NONE),
        io.Boolean.Input(
            "offload",
            default=False,
            tooltip="Level blocks: keep the cache in main memory instead of on the GPU.",
        ),
    ]
    for one in made:
        one.optional = True
    return made


@dataclass(frozen=True)
class Options:
    """The values of ERTA Options by name, checked."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, **chosen: Any) -> "Options":
        """With the defaults of what is not chosen. Raises ValueError with an input's name, value and remedy."""
        declared = {made.id: made for made in option_inputs()}
        values = {**{name: made.default for name, made in declared.items()}, **chosen}
        for name in ("without_profile", "level"):
            options = declared[name].options
            require(values[name] in options, name, values[name], f"one of {', '.join(options)}")
        require(isinstance(values["offload"], bool), "offload", values["offload"], "true or false")
        made = cls(values)
        made.settings(1.0)
        return made

    def settings(self, speed: Any, model: Any = None) -> Settings:
        """What is asked of a run on a model. Raises ValueError for a value that is none of a setting."""
        values, paper = self.values, self.values["mode"] == PAPER
        level = values["level"]
        if level == AUTO:
            blocks = paper and model is not None and known_blocks(model.model.diffusion_model)
            level = BLOCKS if blocks else OUTPUT
        steps, published_for = preset_steps(values["preset"])
        return Settings(
            speed=speed,
            level=level,
            timesteps=paper,
            threshold=values["threshold"] if paper else 0.0,
            preset=steps,
            preset_steps=published_for,
            **{name: values[name] for name in ("mode", "predictor", "check", "protect_start", "protect_end")},
        )


def options_of(value: Any) -> Options:
    """What a node's options input holds; the defaults where nothing is connected. Raises ValueError."""
    require(isinstance(value, Options | None), "options", value, "connected to ERTA Options")
    return value or Options.of()


class ERTAOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTAOptions",
            display_name="ERTA Options",
            category=CATEGORY,
            description="What experts may choose for ERTA Cached Sampler, ERTA Cache and ERTA Profile. Seldom needed.",
            inputs=option_inputs(),
            outputs=[OptionsType.Output(display_name="options", tooltip="For the options input of those nodes.")],
        )

    @classmethod
    def validate_inputs(cls, preset: str = NONE) -> bool | str:
        return True  # a workflow may name a preset of another version; preset_steps says so in its own words

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(Options.of(**inputs))
