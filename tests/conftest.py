"""Fixtures for the three kinds of tests, and how they import the pack.

- `tests/core`: the method alone, on plain tensors. No ComfyUI.
- `tests/comfy`: the adapter and the nodes, with a real ComfyUI imported into the test process.
- `tests/server`: a real ComfyUI server.

The repository's root is a Python package (ComfyUI wants that) whose folder may be called anything, even
"ComfyUI-ERTACache", which is no Python name. And it must not be on `sys.path`, where its `nodes/` would hide ComfyUI's
`nodes.py`. So the pack is loaded from its path under one fixed name, as ComfyUI itself does, and every test imports
from there whatever the folder is called:

    from ertacache.erta.plan import Plan
    from ertacache.demo.workflows import ui_to_api

One name also means one copy of each class in the process. The root `__init__.py` itself is only executed by the
`comfy_pack` fixture, which needs ComfyUI; until then `ertacache` is an empty package that knows its folder.
For the same reason pytest runs with `--import-mode=importlib` and as `python -P -m pytest` or `pytest`: neither adds a
folder to `sys.path`. (pytest imports the root `__init__.py` too, under a name made from the folder; the guard in that
file makes it a no-op.)
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Tensors here are tiny: threads would only wait for each other, for minutes where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
PACK = "ertacache"
DEVICE = os.environ.get("ERTA_TEST_DEVICE", "cpu")


def _register_pack() -> ModuleType:
    """Make `ertacache.*` importable without executing the root `__init__.py`."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    return module


_pack = _register_pack()


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """The ComfyUI that the tests run in; $COMFYUI_PATH chooses another."""
    from ertacache.demo.comfyui import locate

    return locate()


@pytest.fixture(scope="session")
def comfy(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """ComfyUI imported into this process, with its folders in a temporary place.

    On the CPU; with ERTA_TEST_DEVICE=cuda on the GPU.

    Returns the package `comfy`; afterwards `import nodes`, `import comfy.samplers` and so on give ComfyUI's.
    """
    from ertacache.demo.comfyui import import_comfy

    base = tmp_path_factory.mktemp("comfy-base")
    for folder in ("models", "custom_nodes", "input", "output", "temp", "user"):
        (base / folder).mkdir()
    import_comfy(cpu=DEVICE == "cpu", base_directory=str(base), disable_api_nodes=True)
    importlib.import_module("comfy.model_management")
    found = Path(importlib.import_module("nodes").__file__ or "")
    assert found == comfy_path / "nodes.py", f"`import nodes` gives {found}: keep the repository off sys.path"
    return importlib.import_module("comfy")


@pytest.fixture(scope="session")
def comfy_pack(comfy: ModuleType) -> ModuleType:
    """The pack as ComfyUI loads it: its root `__init__.py` executed where ComfyUI can be imported."""
    assert _pack.__spec__ is not None and _pack.__spec__.loader is not None
    _pack.__spec__.loader.exec_module(_pack)
    return _pack


@pytest.fixture(scope="session")
def server() -> Iterator[object]:
    """A running ComfyServer, one for the whole session; `server.client` talks to it."""
    from ertacache.demo.server import ComfyServer

    with ComfyServer() as running:
        yield running
