"""Settings: what an artist asks for. Every default, range and help text of a setting stands here and nowhere else.

The nodes' inputs read the fields' metadata: ``help``; ``options`` of a choice; ``low``, ``high``, ``step`` and
``round`` of a number; ``least`` and ``most`` where a plan may hold more than a node offers.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from .predictors import PREDICTORS, Affine, FittedLine, Hold, Predictor

AUTO = "auto"
PLANNED, PAPER = "planned", "paper"
OUTPUT, BLOCKS = "output", "blocks"


def _setting(default: Any, text: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class Settings:
    """How a run is to be planned. Raises ValueError with the setting's name, value and range.

    preset, preset_steps: a published list of computed steps and the number of steps it is for, () for none.
    """

    speed: float = _setting(
        2.0,
        "How much faster than computing every step. 1 changes nothing, 2 computes half of the steps.",
        **{"low": 1.0, "high": 10.0, "step": 0.05, "round": 0.01, "most": 100.0},
    )
    mode: str = _setting(
        PLANNED,
        "planned: the best plan for this speed. paper: ERTACache as published, for comparison.",
        options=(PLANNED, PAPER),
    )
    level: str = _setting(
        OUTPUT,
        "output: reuses the model's output after guidance, any model. blocks: transformer blocks, some models.",
        options=(OUTPUT, BLOCKS),
    )
    predictor: str = _setting(
        AUTO,
        "How a reused step is made from the computed ones. auto: a fitted line; in paper mode affine.",
        options=(AUTO, *(name for name, predictor in PREDICTORS.items() if predictor.selectable)),
    )
    corrector: bool = _setting(
        True, "At each computed step correct the error of the reused ones before it (planned, output level)."
    )
    check: bool = _setting(
        True, "Computes more steps in a run that is unlike the measured ones (mode planned, level output)."
    )
    timesteps: bool = _setting(False, "The paper's timestep adjustment.")
    threshold: float = _setting(
        0.0,
        "Paper mode: the published lambda (0.08 for Wan2.1 1.3B). 0 finds it from the speed.",
        **{"low": 0.0, "high": 10.0, "step": 0.01, "round": 0.0001, "most": 1000.0},
    )
    protect_start: int = _setting(
        1, "Steps at the start that are always computed.", low=1, high=100, least=0, most=1000
    )
    protect_end: int = _setting(0, "Steps at the end that are always computed.", low=0, high=100, most=1000)
    preset: tuple[int, ...] = _setting(
        (), "A published list of steps to compute instead of a plan. Speed then has no effect."
    )
    preset_steps: int = 0

    def __post_init__(self) -> None:
        for name, declared in DECLARED.items():
            _check(name, getattr(self, name), declared)
        steps = type(self.preset_steps) is int and 0 <= self.preset_steps <= 1000
        require(steps, "preset_steps", self.preset_steps, "a whole number from 0 to 1000")
        fits = isinstance(self.preset, tuple) and len(self.preset) <= 1000
        fits = fits and all(type(step) is int and 0 <= step < self.preset_steps for step in self.preset)
        require(fits, "preset", self.preset, "whole numbers below preset_steps")

    def method(self, measured: bool, noisy: bool) -> tuple[type[Predictor], bool]:
        """(predictor, whether errors are corrected) for a run with or without a profile.

        noisy: the sampler's fresh noise bends the trajectory so that a line has nothing to go by.
        """
        # At blocks level the sampler does not know what would have been predicted at a computed call.
        corrector = self.corrector and self.planned and self.level == OUTPUT
        if self.predictor != AUTO:
            chosen = PREDICTORS[self.predictor]
            return (Hold if chosen.needs_profile and not measured else chosen), corrector
        if not self.planned:
            return (Affine if measured else Hold), False
        return (Hold if noisy else FittedLine), corrector

    @property
    def computes_all(self) -> bool:
        """Speed 1 and nothing else that would reuse: the run is left alone."""
        return self.speed <= 1.0 and not self.threshold and not self.preset

    @property
    def checks(self) -> bool:
        """Whether residuals at computed calls are compared with what the profile lets expect."""
        return self.check and self.planned and self.level == OUTPUT

    @property
    def planned(self) -> bool:
        """Planned mode, not paper mode."""
        return self.mode == PLANNED


# The settings that are checked by what is declared with them, by name.
DECLARED: Mapping[str, Field[Any]] = MappingProxyType({f.name: f for f in fields(Settings) if f.metadata})


def _check(name: str, value: Any, declared: Field[Any]) -> None:
    limits = declared.metadata
    if "options" in limits:
        require(value in limits["options"], name, value, f"one of {', '.join(limits['options'])}")
    elif "low" in limits:
        low, high = limits.get("least", limits["low"]), limits["most"]
        whole = isinstance(declared.default, int)
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        kind = "a whole number" if whole else "a number"
        require(number and low <= value <= high, name, value, f"{kind} from {low:g} to {high:g}")
    elif isinstance(declared.default, bool):
        require(isinstance(value, bool), name, value, "true or false")


def require(holds: bool, name: str, value: object, remedy: str) -> None:
    """Raise ValueError with an input's name, its value and what it must be, unless that holds."""
    if not holds:
        raise ValueError(f"{name} is {str(value)[:40]!r}; it must be {remedy}")
