"""ComfyUI in this process, and the pack in it under the name that every import of the bench uses.

The only module of the bench that may be imported before ComfyUI is there.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> ModuleType:
    """ComfyUI in this process and the pack loaded as ComfyUI does it. Afterwards ``import ertacache.bench.rig`` works.

    On a GPU if torch sees one, else on the CPU. Model folders named in ComfyUI's own extra_model_paths.yaml are known.
    """
    from demo.comfyui import import_comfy

    comfy_path = import_comfy(cpu=not torch.cuda.is_available(), disable_api_nodes=True)
    spec = importlib.util.spec_from_file_location(
        "ertacache", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["ertacache"] = pack
    spec.loader.exec_module(pack)
    _read_model_folders(comfy_path / "extra_model_paths.yaml")
    return pack


def _read_model_folders(file: Path) -> None:
    if file.is_file():
        from utils.extra_config import load_extra_path_config

        load_extra_path_config(str(file))
