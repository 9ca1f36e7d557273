"""The pack's own ways to render: the default, the choices beside it, and each part of the method by itself."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..comfy_erta.caching import BUILT_IN, Caching
from ..comfy_erta.run import attach
from ..comfy_erta.store import Store
from ..erta.profile import Profile
from ..erta.settings import Settings
from .methods import ABLATION, OURS, Method, Place, Setting, single
from .recording import self_recorded

OnReport = Callable[[Any], None]

PLANNED, BUILTIN, SELF_RECORDED = "ERTA planned (default)", "ERTA built-in plan", "ERTA self-recorded"


@dataclass(frozen=True)
class Variant:
    """measured: uses the profile. chosen: settings beside the speed. self_recorded: of the profile only what the pack
    records by itself at a first run."""

    name: str
    measured: bool
    chosen: dict[str, Any] = field(default_factory=dict)
    family: str = ABLATION
    self_recorded: bool = False

    @property
    def settings(self) -> Settings:
        return Settings(**self.chosen)


PAPER = {"mode": "paper", "level": "blocks"}
VARIANTS = (
    Variant(PLANNED, True, {}, OURS),
    Variant(SELF_RECORDED, True, {}, OURS, self_recorded=True),
    Variant(BUILTIN, False, {}, OURS),
    Variant("paper mode", True, {**PAPER, "predictor": "affine", "timesteps": True}, OURS),
    Variant("paper: policy alone", True, {**PAPER, "predictor": "hold"}),
    Variant("paper: policy, affine", True, {**PAPER, "predictor": "affine"}),
    Variant("paper: policy, timesteps", True, {**PAPER, "predictor": "hold", "timesteps": True}),
    Variant("paper mode, output level", True, {"mode": "paper", "predictor": "affine", "timesteps": True}),
    Variant("paper: policy alone, output level", True, {"mode": "paper", "predictor": "hold"}),
    Variant("paper: policy, affine, output level", True, {"mode": "paper", "predictor": "affine"}),
    # Paper mode without a profile computes evenly.
    Variant("even, hold", False, {"mode": "paper", "predictor": "hold"}),
    Variant("even, line", False, {"mode": "paper", "predictor": "linear"}),
    Variant("planned, hold", True, {"predictor": "hold", "corrector": False}),
    Variant("planned, affine", True, {"predictor": "affine", "corrector": False}),
    Variant("planned, line", True, {"predictor": "linear", "corrector": False}),
    Variant("planned, fitted line", True, {"corrector": False}),
    Variant("planned, hold, corrector", True, {"predictor": "hold"}),
    Variant("planned, line, corrector", True, {"predictor": "linear"}),
    Variant("planned, without check", True, {"check": False}),
    Variant("planned, timesteps", True, {"timesteps": True}),
    Variant("built-in plan, hold", False, {"predictor": "hold", "corrector": False}),
    Variant("built-in plan, without corrector", False, {"corrector": False}),
)


def cached(
    model: Any,
    settings: Settings,
    profile: Profile | None,
    scheduler: str,
    on_report: OnReport = lambda report: None,
    offload: bool = False,
) -> Any:
    """A clone that follows the plan of settings: from the profile, or the built-in one where that is None."""
    nowhere = Path(tempfile.gettempdir()) / "ertacache-bench-keeps-no-profiles"
    task = Caching(settings, Store(nowhere), on_report, profile, without_profile=BUILT_IN, scheduler=scheduler)
    return attach(model, replace(task, offload=offload))


def _setting(variant: Variant, place: Place) -> Setting:
    settings = Settings(speed=place.speed, **variant.chosen)
    profile = place.calibration.profile(settings.level) if variant.measured else None
    profile = self_recorded(profile) if profile and variant.self_recorded else profile
    how = functools.partial(cached, settings=settings, profile=profile, scheduler=place.rig.config.scheduler)
    return Setting(f"speed {settings.speed:.4g}", how)


def ours() -> list[Method]:
    return [Method(variant.name, variant.family, single(functools.partial(_setting, variant))) for variant in VARIANTS]
