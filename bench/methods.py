"""What is compared: a method proposes settings for a budget of model calls, the tuner tries them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from .calibration import Calibration
from .rig import Rig

OURS, ABLATION, RIVAL = "ours", "ablation", "rival"


@dataclass(frozen=True)
class Setting:
    """One way to render. label: names it among the method's settings, and is printed. patch: ModelPatcher -> clone
    with the method on it, or one for each stage. steps, sampler: 0 and "" for the config's."""

    label: str
    patch: Callable[[Any], Any] = lambda model: model
    steps: int = 0
    sampler: str = ""


@dataclass(frozen=True)
class Trial:
    """A setting tried on the tuning prompts: mean model calls, median PSNR in dB."""

    setting: Setting
    calls: float
    psnr: float


@dataclass(frozen=True)
class Place:
    """Where a method is to work: the rig, what was measured on its model, and the model calls it may spend. stage: the
    one that is meant, None for the whole run."""

    rig: Rig
    calibration: Calibration
    budget: int
    stage: int | None = None

    @property
    def steps(self) -> int:
        return self.rig.steps if self.stage is None else len(self.rig.stages[self.stage])

    @property
    def speed(self) -> float:
        return self.steps / self.budget

    def parts(self) -> tuple[Place, ...]:
        """A place for each stage with its share of the budget, or just this one where the run has one stage."""
        if len(self.rig.stages) == 1:
            return (self,)
        ends = [round(self.budget * stage.stop / self.steps) for stage in self.rig.stages]
        budgets = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        return tuple(
            replace(self, calibration=self.calibration.of_stage(n), budget=budget, stage=n)
            for n, budget in enumerate(budgets)
        )


Proposals = Generator[Setting, Trial, None]
"""Yields settings and is sent the trial of each, so that a search can go on from it."""


@dataclass(frozen=True)
class Method:
    """family: ours (a choice a user has), ablation (of ours), rival. propose: of a single setting nothing is tuned, and
    none means that the method cannot do the budget. effort: about how many settings it tries, for the time left.
    whole: it is asked for the run as a whole, whatever stages that has.
    """

    name: str
    family: str
    propose: Callable[[Place], Proposals]
    tuned: bool = False
    effort: int = 0
    notes: str = ""
    whole: bool = False


def single(make: Callable[[Place], Setting | None]) -> Callable[[Place], Proposals]:
    """A proposal of one setting, or of none."""

    def propose(place: Place) -> Proposals:
        setting = make(place)
        if setting is not None:
            yield setting

    return propose
