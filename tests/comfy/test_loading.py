"""The ground that the other tests here stand on: ComfyUI and the pack are what they should be in this process."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType


def test_nodes_is_comfyuis_and_it_runs_on_the_chosen_device(comfy: ModuleType, comfy_path: Path):
    assert Path(importlib.import_module("nodes").__file__ or "").parent == comfy_path
    management = importlib.import_module("comfy.model_management")
    assert management.get_torch_device().type == os.environ.get("ERTA_TEST_DEVICE", "cpu")


def test_comfyui_has_its_folders_in_a_temporary_place(comfy: ModuleType, comfy_path: Path):
    folder_paths = importlib.import_module("folder_paths")
    for folder in (folder_paths.get_user_directory(), folder_paths.get_output_directory()):
        assert comfy_path not in Path(folder).parents


def test_the_pack_is_loaded_once_under_one_name(comfy_pack: ModuleType):
    assert hasattr(comfy_pack, "comfy_entrypoint")
    assert importlib.import_module("ertacache") is comfy_pack
    assert "erta" not in sys.modules, "import ertacache.erta, not erta: a second copy would have classes of its own"


LOAD = """
import importlib.util, pathlib, sys
root = pathlib.Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("any name", root / "__init__.py", submodule_search_locations=[str(root)])
module = importlib.util.module_from_spec(spec)
sys.modules["any name"] = module
spec.loader.exec_module(module)
"""


def load_in(folder: Path) -> subprocess.CompletedProcess[str]:
    """Load the pack as ComfyUI does, in a process that has this folder to import from."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-P", "-c", LOAD, str(root)]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


def test_on_an_old_comfyui_one_line_says_which_version_is_needed(tmp_path: Path):
    """One from before comfy_api, as far as the pack looks."""
    (tmp_path / "folder_paths.py").touch()
    done = load_in(tmp_path)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: ERTACache needs ComfyUI 0.3.75 or newer (its comfy_api.latest is missing): update ComfyUI."
    )


def test_without_comfyui_there_is_nothing_to_load_and_nothing_is_said(tmp_path: Path):
    done = load_in(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
