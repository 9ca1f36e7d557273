"""docs/compatibility/traps.md names tests: each must be there, and each test of a trap must be named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "compatibility" / "traps.md"


def named() -> set[tuple[Path, str]]:
    found = re.findall(r"`([\w/]+\.py)::(\w+)`", TABLE.read_text(encoding="utf-8"))
    return {(ROOT / file if "/" in file else Path(__file__).with_name(file), test) for file, test in found}


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_each_test_that_the_table_names_exists():
    missing = sorted(f"{path.name}::{test}" for path, test in named() if test not in functions_in(path))
    assert not missing


def test_each_trap_has_a_row_with_a_test():
    rows = re.findall(r"^\| (T\d+) \|.*::test_", TABLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == [f"T{number}" for number in range(1, 25)]


def test_each_test_of_a_trap_is_named_in_its_row():
    rows = dict(re.findall(r"^\| T(\d+) \|(.*)$", TABLE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    left_out = [
        f"{path.name}::{test}"
        for path in Path(__file__).parent.glob("test_traps_*.py")
        for test in sorted(functions_in(path))
        if (number := re.match(r"test_t(\d\d)_", test)) and f"::{test}`" not in rows[str(int(number[1]))]
    ]
    assert left_out == []
