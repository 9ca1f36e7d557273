"""The browser for tests and pictures: a Chromium that is installed already, driven by Playwright."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
# No sandbox: it can't be had in most containers. The others keep the browser from calling home.
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """The path of the first Chromium there is."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def what_is_missing() -> str:
    """What to install before `launch` can work, "" if nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "no playwright: pip install -r demo/requirements-dev.txt"
    return "" if find() else f"no {NAMES[0]} on the PATH: apt install chromium (Debian), or install Google Chrome"


def launch(playwright: Any) -> Any:
    """Start it, headless. Raises RuntimeError where something is missing."""
    if reason := what_is_missing():
        raise RuntimeError(reason)
    return playwright.chromium.launch(executable_path=find(), args=list(OPTIONS))
