"""JSON from strangers: one object, no key twice, no NaN or infinity."""

import json
from typing import Any, NoReturn


def read_object(text: str | bytes) -> dict[str, Any]:
    """The object in a JSON text (bytes: UTF-8). Raises ValueError with the reason for anything else."""
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        parsed = json.loads(decoded, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("it is no JSON object")
    return parsed


def is_number(value: object) -> bool:
    """Whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
