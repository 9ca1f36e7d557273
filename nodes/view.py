"""What the nodes hand to the browser: JSON-able, every value a list as ComfyUI joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..comfy_erta.report import Report
from ..erta.plan import Wish
from ..erta.planner import euler_response, make_plan
from ..erta.profile import Profile

_SPEEDS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)


def report_ui(reports: Sequence[Report]) -> dict[str, list[Any]]:
    return {"erta": [r.as_dict() for r in reports], "text": [r.as_text() for r in reports]}


def profile_ui(profile: Profile, name: str, reports: Sequence[Report]) -> dict[str, list[Any]]:
    """The profile in short, and the error to expect at each speed (the curve that one turns the knob on)."""
    curve = [{"speed": speed, **_expected(profile, speed)} for speed in _SPEEDS]
    measured = profile.measured
    runs = f"{profile.runs} run{'s' if profile.runs > 1 else ''}"
    lines = [
        f"profile {name}: {measured.model_class}, {runs} of {measured.steps} steps",
        f"{measured.sampler} {measured.scheduler}, guidance {measured.guidance}, {measured.level} level",
        *(f"{c['speed']:g}x: predicted error {c['median']:.2%}, worst {c['worst']:.2%}" for c in curve if c["median"]),
        *([] if any(t.answered for t in profile.tables) else ["how errors grow was not measured: on the high side"]),
        *(note for report in reports for note in report.notes),
    ]
    content = {"name": name, "measured": asdict(measured), "curve": curve, "digest": profile.digest()}
    return {"erta": [content], "text": ["\n".join(lines)]}


def _expected(profile: Profile, speed: float) -> dict[str, Any]:
    """Planned as for Euler on the recorded sigmas; a sampler of another kind differs in the details."""
    falling = np.unique(profile.sigmas)[::-1]
    plan = make_plan(np.append(falling, 0.0), euler_response, profile, Wish(speed=speed))
    median, worst = plan.predicted_error or (0.0, 0.0)
    return {"computed": plan.computed, "of": plan.evaluations, "median": median, "worst": worst}
