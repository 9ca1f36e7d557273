"""The store: named profiles in a user's folder, on top of those that the pack ships.

Names come from workflows, which anybody may have written. A name is only ever one file's name in these folders.
"""

import contextlib
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..erta.profile import Measured, Profile, ProfileError
from ..erta.profile_file import MAX_BYTES, from_bytes, read_head, to_bytes

SUFFIX = ".safetensors"
MAX_NAME = 64

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}")
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_ABANDONED = 3600.0  # seconds after which a temporary file is what a killed server left: writing one takes moments
_SHIPPED = Path(__file__).parent.parent / "profiles"
_REMEMBERED = 2**13  # files whose head is kept in memory, a few KB each
_NAMED = 10  # a message names that many, and of the others only how many they are
_LONGEST = 180  # characters of each


class StoreError(ValueError):
    """A name or file that the store does not take, or the system does not let one read or write.

    The message says which, why, and what to do.
    """


class NotStored(StoreError):
    """There is no profile of that name."""


class NameTaken(StoreError):
    """There is a profile of that name already."""


def check_name(name: object) -> str:
    """The name itself, if it can name a profile on every system. Raises StoreError naming the rule."""
    if rule := _broken_rule(name):
        raise StoreError(f"profile name {repr(name)[: MAX_NAME + 2]}: {rule}")
    return str(name)


def _broken_rule(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"use 1 to {MAX_NAME} of the characters A-Z a-z 0-9 . _ -, no folders"
    if name.startswith(".") or name.endswith("."):
        return "it must not start or end with a dot"
    return "Windows keeps this name for a device, choose another" if name.split(".")[0].lower() in _DEVICES else ""


@dataclass(frozen=True)
class Entry:
    """What the first look at a profile shows. sigmas: of the first recorded run's model calls."""

    name: str
    measured: Measured
    sigmas: tuple[float, ...]


@dataclass(frozen=True)
class Store:
    """Profiles by name. user_dir: written to, made when needed. shipped_dirs: read-only, behind the user's own.

    What cannot be read, a folder or a file, is left out and said once in the log: a dead disk stops nothing.
    """

    user_dir: Path
    shipped_dirs: tuple[Path, ...] = ()

    def save(self, name: str, profile: Profile, replace: bool = True) -> Path:
        """Write a profile, over one of the same name if there is one, and return its path.

        The old file stays whole until the new one is complete, whatever happens. Raises StoreError for the name, a
        symbolic link in the way, or where nothing can be written, NameTaken where it must not ``replace``, ProfileError
        for a profile that no file may hold.
        """
        data = to_bytes(profile)
        target = self._path(name) if replace else self._free_path(name)
        with _faults(f"profile {name!r} cannot be kept", "free space there, or make it writable"):
            if target.is_symlink():
                raise StoreError(_link(target))
            self.user_dir.mkdir(parents=True, exist_ok=True)
            _write(target.with_name(f".{uuid.uuid4().hex}.tmp"), target, data)
        self._sweep()
        return target

    def load(self, name: str) -> Profile:
        """The profile of this name, the user's own before a shipped one.

        Raises StoreError for a bad name, a symbolic link, or where it cannot be read, NotStored where there is none,
        ProfileError for a file that is no valid profile.
        """
        path = self._find(name)
        try:
            with _faults(f"profile {name!r} cannot be read", "make it readable"), path.open("rb") as file:
                return from_bytes(file.read(MAX_BYTES + 1))
        except ProfileError as error:
            raise ProfileError(f"{path.name}: {error}") from None

    def rename(self, name: str, new: str) -> None:
        """Raises NotStored unless it is the user's own, NameTaken, or StoreError as ``save`` does."""
        path, target = self._own(name), self._free_path(new, name)
        with _faults(f"profile {name!r} cannot be renamed", "make its folder writable"):
            path.rename(target)

    def delete(self, name: str) -> None:
        """Raises NotStored unless it is the user's own, StoreError where the system does not let it go."""
        path = self._own(name)
        with _faults(f"profile {name!r} cannot be deleted", "make its folder writable"):
            path.unlink()

    def names(self) -> list[str]:
        """Names of all profiles, sorted; each once. What ``load`` would refuse by its name or as a link is left out."""
        return [name for name, _, _ in self._listed()]

    def shown_names(self) -> str:
        """The first names, for a message, and how many more there are; "" where there is none."""
        return _shown(self.names())

    def headers(self) -> list[Entry]:
        """The first look at every profile, without its tables; a file that has not changed is not read again."""
        entries, problems = [], []
        for name, path, info in self._listed():
            try:
                head = _first_look(path, info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size)
            except OSError as error:
                head = _reason(error)
            if isinstance(head, str):
                problems.append((path, info.st_mtime_ns, head))
            else:
                entries.append(Entry(name, *head))
        _warn(problems)
        return entries

    def unique_name(self, stem: str) -> str:
        """stem, or stem-2, stem-3 ... where that is taken, by whatever case. Raises StoreError for a bad stem."""
        taken = {name.lower() for folder in (self.user_dir, *self.shipped_dirs) for name in _scan(folder)}
        name, number = check_name(stem), 1
        while name.lower() in taken:
            number += 1
            ending = f"-{number}"
            name = stem[: MAX_NAME - len(ending)] + ending
        return name

    def _sweep(self) -> None:
        """Remove what killed servers left behind long ago; another server may be writing right now."""
        for entry in filter(lambda entry: _TEMPORARY.fullmatch(entry.name), _entries(self.user_dir)):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED:
                    Path(entry.path).unlink()

    def _path(self, name: str) -> Path:
        return self.user_dir / f"{check_name(name)}{SUFFIX}"

    def _free_path(self, name: str, moved: str = "") -> Path:
        """Where a profile of a new name goes. Names that differ by case alone are one file on some systems."""
        path = self._path(name)
        if name.lower() in {known.lower() for known in _scan(self.user_dir) if known != moved}:
            raise NameTaken(f"there is a profile {name!r} already: choose another name, or delete that one first")
        return path

    def _own(self, name: str) -> Path:
        path, info = Store(self.user_dir)._files().get(check_name(name), ("", None))
        if info is None or not stat.S_ISREG(info.st_mode):
            raise NotStored(f"none of your own profiles is called {name!r}: those that ship with the pack stay")
        return Path(path)

    def _files(self) -> dict[str, tuple[str, os.stat_result]]:
        """Path of files and links by name, the user's own before shipped ones."""
        found, problems = {}, []
        for folder in (*reversed(self.shipped_dirs), self.user_dir):
            for name, entry in _scan(folder).items():
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError as error:
                    problems.append((entry.path, 0, _reason(error)))
                else:
                    if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                        found[name] = entry.path, info
        _warn(problems)
        return found

    def _listed(self) -> list[tuple[str, str, os.stat_result]]:
        return sorted((name, *found) for name, found in self._files().items() if stat.S_ISREG(found[1].st_mode))

    def _find(self, name: str) -> Path:
        path, info = self._files().get(check_name(name), ("", None))
        if info is None:
            known = f"choose one of these ({self.shown_names() or 'none yet'}), or record it with ERTA Profile"
            raise NotStored(f"no profile is called {name!r}: {known}")
        if stat.S_ISLNK(info.st_mode):
            raise StoreError(_link(path))
        return Path(path)


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


def _link(path: Path | str) -> str:
    return f"{path} is a symbolic link: put the file itself there, or choose another name"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing where it is not there or cannot be read."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except FileNotFoundError:
        return []
    except OSError as error:
        _warn([(str(folder), 0, _reason(error))])
        return []


def _scan(folder: Path) -> dict[str, os.DirEntry[str]]:
    """What a folder holds under names of profiles, whatever it is."""
    found = {entry.name.removesuffix(SUFFIX): entry for entry in _entries(folder) if entry.name.endswith(SUFFIX)}
    return {name: entry for name, entry in found.items() if not _broken_rule(name)}


@lru_cache(maxsize=_REMEMBERED)
def _first_look(path: str, *stamp: int) -> tuple[Measured, tuple[float, ...]] | str:
    """What `read_head` finds, or why it finds nothing; remembered while the file is the one of the stamp.

    Raises OSError, which is not remembered: a share that is gone may come back.
    """
    try:
        with Path(path).open("rb") as file:
            return read_head(file)
    except ProfileError as error:
        return str(error)


@lru_cache(maxsize=_REMEMBERED)
def _news(*about: object) -> Iterator[bool]:
    """Gives True once for each thing it is asked about, then nothing."""
    return iter([True])


def _warn(problems: Iterable[tuple[str, int, str]]) -> None:
    """One warning of those of (path, time of its change, reason) that no warning has named yet."""
    news = [f"{path[-_LONGEST // 2 :]!r}: {why}" for path, changed, why in problems if any(_news(path, changed, why))]
    if news:
        logging.getLogger("ertacache").warning("profiles left out: %s", _shown(news))


def _shown(texts: Sequence[str]) -> str:
    """The first of them, shortened, and how many more there are: 2 KB at most."""
    first = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..." for text in texts[:_NAMED]]
    return ", ".join(first) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")
