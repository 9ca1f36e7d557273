"""What is worth keeping between two runs of the bench: files named by a digest of all they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


class Kept:
    """Files of one folder. digest: of what all of them depend on; other digests' files are left alone."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder
        self.digest = digest

    def _path(self, name: str, ending: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:80]
        return self.folder / f"{safe}-{digest_of(name, self.digest)[:16]}.{ending}"

    def bytes(self, name: str, make: Callable[[], bytes], fresh: bool = False) -> bytes:
        path = self._path(name, "bin")
        if fresh or not path.is_file():
            write(path, make())
        return path.read_bytes()

    def json(self, name: str, make: Callable[[], Any], fresh: bool = False) -> Any:
        path = self._path(name, "json")
        if fresh or not path.is_file():
            write(path, json.dumps(make(), indent=1).encode())
        return json.loads(path.read_text(encoding="utf-8"))

    def has_json(self, name: str) -> bool:
        return self._path(name, "json").is_file()

    def tensor(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        data = self.bytes(name, lambda: safetensors.torch.save({"tensor": make().contiguous()}))
        return safetensors.torch.load(data)["tensor"]


def write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def digest_of(*content: Any) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def digest_of_files(files: Iterable[Path]) -> str:
    """Of the files' contents, in the order of their names."""
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.name.encode())
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()
