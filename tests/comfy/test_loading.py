"""The ground that the other tests here stand on: ComfyUI and the pack are what they should be in this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType


def test_nodes_is_comfyuis_and_it_runs_on_the_cpu(comfy: ModuleType, comfy_path: Path):
    assert Path(importlib.import_module("nodes").__file__ or "").parent == comfy_path
    management = importlib.import_module("comfy.model_management")
    assert management.get_torch_device().type == "cpu"


def test_comfyui_has_its_folders_in_a_temporary_place(comfy: ModuleType, comfy_path: Path):
    folder_paths = importlib.import_module("folder_paths")
    for folder in (folder_paths.get_user_directory(), folder_paths.get_output_directory()):
        assert comfy_path not in Path(folder).parents


def test_the_pack_is_loaded_once_under_one_name(comfy_pack: ModuleType):
    assert hasattr(comfy_pack, "comfy_entrypoint")
    assert importlib.import_module("ertacache") is comfy_pack
    assert "erta" not in sys.modules, "import ertacache.erta, not erta: a second copy would have classes of its own"
