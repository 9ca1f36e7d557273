"""How the pack is built: who imports whom, what never occurs, how long anything may be. Read from the syntax trees."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ertacache.erta import notes

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("erta", "comfy_erta", "nodes")
LONGEST_FUNCTION, LONGEST_FILE, LONGEST_OF_DEMO = 60, 400, 600
MOST_LINES = 7000  # of the pack's Python; a feature that nobody needs goes away

# Top-level modules of ComfyUI itself.
COMFY = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfyui_version", "execution", "folder_paths"}
COMFY |= {"latent_preview", "node_helpers", "nodes", "server"}


def sources(*folders: str) -> list[Path]:
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert found
    return found


def shipped() -> list[Path]:
    """What runs inside a user's ComfyUI."""
    return [ROOT / "__init__.py", *sources(*LAYERS)]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, also those inside functions; relative ones with the pack's folders in front.

    ``from ..erta.plan import Plan`` in nodes/ is ("./erta/plan", "Plan"), ``import comfy.utils`` ("comfy.utils", "").
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                module = "./" + "/".join([*above, *filter(None, module.split("."))])
            yield from ((module, alias.name) for alias in node.names)


def names(path: Path) -> Iterator[str]:
    """Every dotted name that is written in a file, as ``torch.load``."""
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Attribute, ast.Name)):
            yield ast.unparse(node)


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_reading_of_imports_sees_relative_and_nested_ones() -> None:
    """Otherwise the tests below could not fail."""
    found = {(short(path), module, name) for path in shipped() for module, name in imports(path)}
    assert ("nodes/sampling.py", "./erta/planner", "adjusted_schedule") in found
    assert ("erta/plan_file.py", "./erta/schedules", "as_text") in found
    assert ("__init__.py", "./nodes", "comfy_entrypoint") in found
    assert any(module == "folder_paths" for _, module, _ in found), "imported inside a function of comfy_erta/store.py"


def test_erta_imports_nothing_of_comfyui_nor_of_the_layers_above() -> None:
    allowed = {"torch", "numpy", "safetensors", "einops"}
    for path in sources("erta"):
        for module, name in imports(path):
            top = module.split(".")[0]
            assert top not in COMFY, f"{short(path)} imports {module}"
            if module.startswith("./"):
                assert module.split("/")[1] == "erta", f"{short(path)} imports {module}.{name}"
            elif top in {"scipy", "pandas", "matplotlib", "PIL"}:
                assert top in allowed, f"{short(path)} imports {top}, which ComfyUI need not have"


def modules() -> dict[str, set[str]]:
    """Of every module of the pack those of the pack that it imports, also for types alone or inside a function."""
    known = {short(path).removesuffix(".py"): path for path in sources(*LAYERS)}
    found = {}
    for name, path in known.items():
        targets = {
            f"{module}/{imported}" if f"{module[2:]}/{imported}" in known else module
            for module, imported in imports(path)
        }
        found[name] = {target[2:] for target in targets if target.startswith("./")} & set(known)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, in the order of the imports; [] where there is no such circle."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        found = next((c for target in sorted(graph[name]) if (c := visit(target, [*way, name]))), [])
        done.add(name)
        return found

    return next((c for name in graph if (c := visit(name, []))), [])


def test_no_module_imports_one_that_imports_it() -> None:
    graph = modules()
    assert "erta/problem" in graph["erta/planner"], "otherwise this could not fail"
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"], "otherwise this could not fail"
    assert not circle(graph)


def test_every_public_function_and_class_of_erta_has_a_docstring() -> None:
    kinds = (ast.FunctionDef, ast.ClassDef)
    for path in sources("erta"):
        assert ast.get_docstring(tree(path)), short(path)
        bare = [n.name for n in tree(path).body if isinstance(n, kinds) and not ast.get_docstring(n)]
        assert not [name for name in bare if not name.startswith("_")], short(path)


def test_comfy_erta_never_imports_the_nodes() -> None:
    for path in sources("comfy_erta"):
        for module, name in imports(path):
            assert not module.startswith("./nodes"), f"{short(path)} imports {module}.{name}"
            assert not (module == "." and name == "nodes"), short(path)


def test_shipped_code_never_imports_demo_bench_or_tests() -> None:
    for path in shipped():
        for module, _ in imports(path):
            assert module.split("/")[1:2] not in (["demo"], ["bench"], ["tests"]), f"{short(path)} imports {module}"
            assert module.split(".")[0] not in ("demo", "bench", "tests", "ertacache"), f"{short(path)}: {module}"


def test_no_model_code_and_no_private_name_of_comfyui_is_imported() -> None:
    """Private imports keep other packs from loading in the next version (docs/compatibility/traps.md, T20)."""
    for path in shipped():
        for module, name in imports(path):
            if module.split(".")[0] not in COMFY:
                continue
            assert not f"{module}.{name}".startswith("comfy.ldm"), f"{short(path)} imports {module}"
            private = [part for part in (*module.split("."), name) if part.startswith("_") and part != "__version__"]
            assert not private, f"{short(path)} imports {module}.{name}"
        for name in names(path):
            assert not name.startswith("comfy.ldm"), f"{short(path)} uses {name}"
            parts = name.split(".")
            if parts[0] in COMFY and parts[0] != "nodes":
                assert not any(part.startswith("_") for part in parts[1:]), f"{short(path)} uses {name}"


FORBIDDEN_MODULES = {"pickle", "subprocess", "socket", "urllib", "http", "requests", "aiohttp", "ctypes", "shelve"}
FORBIDDEN_MODULES |= {"marshal", "runpy", "multiprocessing"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system", "os.popen"}
FORBIDDEN_CALLS |= {"np.load", "numpy.load", "torch.hub", "print", "input"}


def test_no_shipped_code_runs_text_unpickles_starts_programs_or_talks_to_a_network() -> None:
    for path in shipped():
        for module, name in imports(path):
            assert module.split(".")[0] not in FORBIDDEN_MODULES, f"{short(path)} imports {module}"
            assert f"{module}.{name}" not in FORBIDDEN_CALLS, f"{short(path)} imports {module}.{name}"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in FORBIDDEN_CALLS, f"{short(path)}:{node.lineno} calls {called}"


def test_no_shipped_code_draws_from_a_global_random_state() -> None:
    """No reused output has noise of its own (docs/compatibility/traps.md, T7)."""
    drawing = ("torch.rand", "torch.manual_seed", "torch.normal", "np.random", "numpy.random", "random.")
    for path in shipped():
        for name in names(path):
            keeps = name in ("torch.random", "torch.random.fork_rng")  # restores the state it finds
            assert keeps or not name.startswith(drawing), f"{short(path)} uses {name}"


def test_no_module_holds_mutable_state() -> None:
    """Modules hold constants only, named in capitals (docs/compatibility/traps.md, T15)."""
    for path in shipped():
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Dict, ast.List, ast.Set)):
                for target in node.targets:
                    name = ast.unparse(target)
                    assert name.isupper() or name == "__all__", f"{short(path)}: {name}"
        assert not [n for n in ast.walk(tree(path)) if isinstance(n, ast.Global)], short(path)


def test_no_broad_except_but_the_one_around_foreign_samplers() -> None:
    broad = []
    for path in shipped():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                if caught in ("", "Exception", "BaseException"):
                    broad.append(short(path))
    assert broad in ([], ["comfy_erta/probing.py"])


@pytest.mark.parametrize("path", [*shipped(), *sources("demo")], ids=short)
def test_no_function_and_no_file_is_too_long(path: Path) -> None:
    """A node's declaration, a function that is one return statement, is data and may be as long as it is."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    most = LONGEST_FILE if path in shipped() else LONGEST_OF_DEMO
    assert lines <= most, f"{short(path)} has {lines} lines"
    long = [
        f"{node.name} in {short(path)}: {length(node)} lines"
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and length(node) > LONGEST_FUNCTION
        and not isinstance(node.body[0], ast.Return)
    ]
    assert not long


def test_nine_of_ten_functions_fit_on_a_screen() -> None:
    functions = (node for path in shipped() for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))
    lengths = sorted(map(length, functions))
    assert lengths[int(0.9 * len(lengths))] <= 17


def test_the_pack_does_not_grow() -> None:
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in shipped()) <= MOST_LINES


def test_every_note_has_a_text_and_every_text_a_note() -> None:
    """And a note gets the values that its text has in braces."""
    known = notes.texts()
    used: set[str] = set()
    for path in shipped():
        used |= {n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "note"
                and isinstance(node.args[0], ast.Constant)
            ):
                values = {keyword.arg for keyword in node.keywords}
                wanted = set(re.findall(r"\{(\w+)\}", known[str(node.args[0].value)]))
                assert wanted == values, f"{short(path)}:{node.lineno}"
    assert set(known) <= used
    assert set(known) >= notes.WARNINGS
