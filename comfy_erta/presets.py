"""Published lists of computed steps, shipped in ``profiles/presets.json`` with where they come from."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ..erta.notes import Note, note
from ..erta.profile import Measured

_FILE = Path(__file__).resolve().parent.parent / "profiles" / "presets.json"

# LoRAs, control branches and quantised copies change the count a little; the next model is 15 % away.
_SAME_SIZE = 0.1


def preset_names() -> list[str]:
    """All names, in the order in which they are offered."""
    return [entry["name"] for entry in _entries()]


def preset_steps(name: object) -> tuple[tuple[int, ...], int]:
    """(computed steps, step count they are for); ((), 0) for "none". Raises ValueError for an unknown name."""
    if name == "none":
        return (), 0
    for entry in _entries():
        if entry["name"] == name:
            return tuple(entry["compute"]), entry["steps"]
    known = ", ".join(("none", *preset_names()))
    raise ValueError(f"preset {str(name)[:64]!r} does not ship with this version; choose one of {known}")


def preset_remarks(compute: tuple[int, ...], steps: int, here: Measured) -> tuple[Note, ...]:
    """What to say of a list of steps on this model: nothing where it was published for it, or for no model."""
    same = [entry for entry in _entries() if (tuple(entry["compute"]), entry["steps"]) == (compute, steps)]
    size = here.parameters / 1e9
    sizes = [entry["billion_parameters"] for entry in same if entry["model_class"] == here.model_class]
    if not same or any(abs(size - published) <= _SAME_SIZE * published for published in sizes):
        return ()
    models = " and ".join(sorted({entry["model"] for entry in same}))
    return (note("preset_other_model", models=models, model_class=here.model_class, size=f"{size:.3g}"),)


@cache
def _entries() -> list[dict[str, Any]]:
    return json.loads(_FILE.read_text(encoding="utf-8"))["presets"]
