"""What the nodes hand to the browser: JSON-able, every value a list as ComfyUI joins them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..comfy_erta.report import Report
from ..erta.candidate import Point
from ..erta.notes import Note, note
from ..erta.planner import distances, error_curve, euler_response
from ..erta.problem import Problem
from ..erta.profile import Profile, ProfileError
from ..erta.profile_file import digest
from ..erta.settings import Settings

_MAP = 48  # cells to a side: more cannot be distinguished on a node


def report_ui(reports: Sequence[Report]) -> dict[str, list[Any]]:
    """Each run's report, as data and as text."""
    return {"erta": [r.as_dict() for r in reports], "text": [r.as_text() for r in reports]}


def profile_ui(
    profile: Profile, name: str, reports: Sequence[Report], about: Sequence[Note] = ()
) -> dict[str, list[Any]]:
    """The profile in short, the predicted error at each speed, and notes about it and its runs, as data and as text."""
    known = _digest(profile)
    curve = [asdict(point) for point in _curve(profile)] if known else []
    measured = profile.measured
    count = len({table.run for table in profile.tables})
    unmeasured = () if any(table.has_error_response for table in profile.tables) else (note("no_error_response"),)
    notes = [*about, *unmeasured, *(one for report in reports for one in report.notes)]
    lines = [
        f"profile {name}: {measured.model_class}, {count} run{'s'[: count > 1]} of {measured.steps} steps",
        f"{measured.sampler} {measured.scheduler}, guidance {measured.guidance}, {measured.level} level",
        *(f"{c['speed']:g}x: predicted error {c['median']:.2%}, worst {c['worst']:.2%}" for c in curve if c["median"]),
        *(one.text for one in notes),
    ]
    content = {"name": name, "measured": asdict(measured), "digest": known, "curve": curve}
    content |= {"sigmas": profile.sigmas.round(4).tolist(), "map": _map(profile), "notes": [asdict(n) for n in notes]}
    return {"erta": [content], "text": ["\n".join(lines)]}


def _digest(profile: Profile) -> str:
    """ "" of a profile that no file may hold: nothing can be planned from it."""
    try:
        return digest(profile)
    except ProfileError:
        return ""


def _curve(profile: Profile) -> tuple[Point, ...]:
    """Planned as for Euler on the recorded sigmas; a sampler of another kind differs in the details."""
    falling = np.unique(profile.sigmas)[::-1]
    return error_curve(Problem(np.append(falling, 0.0), euler_response, profile), Settings())


def _map(profile: Profile) -> list[list[float]]:
    """Mean relative L1 distance of each pair of model calls, of at most _MAP of them."""
    relative = distances(profile)
    shown = np.linspace(0, len(relative) - 1, min(len(relative), _MAP)).round().astype(int)
    return np.minimum(relative, 10.0).round(4)[np.ix_(shown, shown)].tolist()
