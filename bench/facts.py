"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import comfyui_version
import torch

from .rig import Rig


def machine(rig: Rig) -> dict[str, Any]:
    return {
        "device": rig.device,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
    }


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
