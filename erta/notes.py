"""Notes: what a report says about a run, as records that a front end can colour, count and translate.

The texts stand in locales/en/main.json under ``ertacache.notes``, by code; the other languages beside it. Whoever shows
a note chooses by `Note.level` and `Note.code`, never by words.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

INFO, WARNING = "info", "warning"

# Codes of notes that say that the run did not go as asked. All others are for information.
WARNINGS = frozenset({"carried_refused", "profile_unreadable", "profile_equal_sigmas", "not_recorded", "cache_unfit"})
WARNINGS |= {"not_recorded_run", "computed_all", "other_caches", "too_many_calls", "other_sigma", "lost"}
WARNINGS |= {"sound_may_change", "sound_may_change_unless", "lost_part"}
WARNINGS |= {"may_change", "may_change_unless", "profile_beyond", "profile_missing", "profile_not_kept"}
WARNINGS |= {"unknown_answer", "answered_elsewhere", "guidance_remembers", "memory_graph", "batch_unknown"}


@dataclass(frozen=True)
class Note:
    """One fact about a run.

    level: "info", or "warning" where the run did not go as asked. code: which fact. text: English, without a full stop
    at the end. values: what stands in the braces of the text, as text.
    """

    level: str
    code: str
    text: str
    values: Mapping[str, str] = field(default_factory=dict)


def note(code: str, **values: object) -> Note:
    """The note of a code with its values filled in. Raises KeyError for an unknown code or a missing value."""
    filled = {name: str(value) for name, value in values.items()}
    return Note(WARNING if code in WARNINGS else INFO, code, texts()[code].format_map(filled), filled)


@cache
def texts() -> Mapping[str, str]:
    """The English texts by code."""
    file = Path(__file__).parent.parent / "locales" / "en" / "main.json"
    found: Mapping[str, str] = json.loads(file.read_text(encoding="utf-8"))["ertacache"]["notes"]
    return found
