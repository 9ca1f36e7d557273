"""The store: named profiles in a user's folder, on top of those that the pack ships.

Names come from workflows, which anybody may have written. A name is only ever one file's name in these folders.
"""

import contextlib
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..erta.profile import Measured, Profile, ProfileError
from ..erta.profile_file import MAX_BYTES, from_bytes, read_header, to_bytes

SUFFIX = ".safetensors"
MAX_NAME = 64

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}")
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_ABANDONED = 3600.0  # seconds after which a temporary file is what a killed server left: writing one takes moments
_SHIPPED = Path(__file__).parent.parent / "profiles"


class StoreError(ValueError):
    """A name or file that the store does not take, or the system does not let one read or write.

    The message says which, why, and what to do.
    """


def check_name(name: object) -> str:
    """The name itself, if it can name a profile on every system. Raises StoreError naming the rule."""
    shown = repr(name)[: MAX_NAME + 2]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StoreError(f"profile name {shown}: use 1 to {MAX_NAME} of the characters A-Z a-z 0-9 . _ -, no folders")
    if name.startswith(".") or name.endswith("."):
        raise StoreError(f"profile name {shown}: it must not start or end with a dot")
    if name.split(".")[0].lower() in _DEVICES:
        raise StoreError(f"profile name {shown}: Windows keeps this name for a device, choose another")
    return name


@dataclass(frozen=True)
class Store:
    """Profiles by name. user_dir: written to, made when needed. shipped_dirs: read-only, behind the user's own."""

    user_dir: Path
    shipped_dirs: tuple[Path, ...] = ()

    def save(self, name: str, profile: Profile) -> Path:
        """Write a profile, over one of the same name if there is one, and return its path.

        The old file stays whole until the new one is complete, whatever happens. Raises StoreError for the name, a
        symbolic link in the way, or where nothing can be written, ProfileError for a profile that is too large.
        """
        data = to_bytes(profile)
        with _faults(f"profile {name!r} cannot be kept", "free space there, or make it writable"):
            self.user_dir.mkdir(parents=True, exist_ok=True)
            target = _inside(self.user_dir, name)
            _write(target.with_name(f".{uuid.uuid4().hex}.tmp"), target, data)
            self._sweep()
        return target

    def load(self, name: str) -> Profile:
        """The profile of this name, the user's own before a shipped one.

        Raises StoreError for a bad name, no such profile, a symbolic link, or where it cannot be read, ProfileError
        for a file that is no valid profile.
        """
        path = self._find(name)
        try:
            with _faults(f"profile {name!r} cannot be read", "make it readable"), path.open("rb") as file:
                return from_bytes(file.read(MAX_BYTES + 1))
        except ProfileError as error:
            raise ProfileError(f"{path.name}: {error}") from None

    def names(self) -> list[str]:
        """Names of all profiles, sorted; each once. What ``load`` would refuse by its name or as a link is left out."""
        return sorted(name for name in self._present() if self._is_there(name))

    def headers(self) -> list[tuple[str, Measured]]:
        """Name and origin of every profile, without reading the tables. One warning lists the unreadable files."""
        readable, unreadable = [], []
        for name in self.names():
            try:
                with self._find(name).open("rb") as file:
                    readable.append((name, read_header(file)))
            except (ProfileError, StoreError, OSError) as error:
                unreadable.append(f"{name}{SUFFIX}: {error}")
        if unreadable:
            logging.getLogger("ertacache").warning("profiles left out: %s", "; ".join(unreadable))
        return readable

    def unique_name(self, stem: str) -> str:
        """stem, or stem-2, stem-3 ... where that is taken, by whatever case. Raises StoreError for a bad stem."""
        taken = {name.lower() for name in self._present()}
        name, number = check_name(stem), 1
        while name.lower() in taken:
            number += 1
            ending = f"-{number}"
            name = stem[: MAX_NAME - len(ending)] + ending
        return name

    def _sweep(self) -> None:
        """Remove what killed servers left behind long ago; another server may be writing right now."""
        for path in filter(lambda path: _TEMPORARY.fullmatch(path.name), self.user_dir.iterdir()):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _ABANDONED:
                    path.unlink()

    def _folders(self) -> tuple[Path, ...]:
        return (self.user_dir, *self.shipped_dirs)

    def _present(self) -> set[str]:
        return {path.name[: -len(SUFFIX)] for folder in self._folders() for path in folder.glob(f"*{SUFFIX}")}

    def _is_there(self, name: str) -> bool:
        try:
            return self._path(name) is not None
        except StoreError:
            return False

    def _path(self, name: str) -> Path | None:
        paths = (_inside(folder, name) for folder in self._folders())
        return next((path for path in paths if path.is_file()), None)

    def _find(self, name: str) -> Path:
        if path := self._path(name):
            return path
        known = ", ".join(self.names()) or "none yet"
        raise StoreError(
            f"no profile is called {name!r}: choose one of these ({known}), or record it with ERTA Profile"
        )


def default_store() -> Store:
    """The store of the running ComfyUI: its user folder, and what the pack ships."""
    import folder_paths

    return Store(Path(folder_paths.get_user_directory()) / "default" / "ertacache", (_SHIPPED,))


@contextlib.contextmanager
def _faults(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StoreError(f"{what}: {error.strerror or error}{where}; {remedy}, and run again") from error


def _write(temporary: Path, target: Path, data: bytes) -> None:
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        # What cannot be removed now is swept up later, and must not hide why.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _inside(folder: Path, name: str) -> Path:
    """The name's path in a folder, never elsewhere and never through a symbolic link."""
    path = folder / f"{check_name(name)}{SUFFIX}"
    if path.is_symlink() or path.resolve().parent != folder.resolve():
        raise StoreError(f"{path} is a symbolic link: put the file itself there, or choose another name")
    return path
