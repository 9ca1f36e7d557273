"""Published lists of computed steps, shipped in ``profiles/presets.json`` with where they come from."""

from __future__ import annotations

import json
from pathlib import Path

_FILE = Path(__file__).resolve().parent.parent / "profiles" / "presets.json"


def preset_names() -> list[str]:
    return [entry["name"] for entry in json.loads(_FILE.read_text(encoding="utf-8"))["presets"]]


def preset_steps(name: str) -> tuple[tuple[int, ...], int]:
    """(computed steps, step count they are for); ((), 0) for "none". Raises ValueError for an unknown name."""
    if name == "none":
        return (), 0
    for entry in json.loads(_FILE.read_text(encoding="utf-8"))["presets"]:
        if entry["name"] == name:
            return tuple(entry["compute"]), entry["steps"]
    raise ValueError(f"preset {name[:64]!r} does not ship with this version; choose one of {', '.join(preset_names())}")
