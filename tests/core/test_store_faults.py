"""When the disk is full, the folder read-only, two servers write at once or one is killed: the store stays readable,
nothing old is lost, and what is left behind is not listed and goes away."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from ertacache.comfy_erta.store import NameTaken, NotStored, Store, StoreError
from ertacache.erta.profile import ProfileError
from ertacache.erta.profile_file import to_bytes
from ertacache.tests.core.test_store import profile

ROOT = Path(__file__).resolve().parents[2]

# A process of its own with the pack, and two profiles to write in turn; the test says what it does with them.
CHILD = """
import os, sys, types
from pathlib import Path
package = types.ModuleType("ertacache")
package.__path__ = [sys.argv[1]]
sys.modules["ertacache"] = package
from ertacache.comfy_erta.store import Store
from ertacache.erta.profile_file import from_bytes
old, new = (from_bytes(Path(name).read_bytes()) for name in sys.argv[3:5])
store = Store(Path(sys.argv[2]))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    kept = Store(tmp_path / "store")
    kept.save("wan", profile(steps=2))
    return kept


@pytest.fixture
def start(store: Store, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """start(code) -> a process that runs it; killed with the test at the latest."""
    files = []
    for steps in (2, 3):
        files.append(tmp_path / f"{steps}.bin")
        files[-1].write_bytes(to_bytes(profile(steps)))
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-c", CHILD + code, str(ROOT), str(store.user_dir), *map(str, files)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def temporary_files(store: Store) -> list[Path]:
    return [path for path in store.user_dir.iterdir() if path.suffix == ".tmp"]


def check_whole(store: Store) -> None:
    """One of the two profiles, complete, and nothing else that is listed."""
    assert store.names() == ["wan"]
    assert store.load("wan").measured.steps in (2, 3)
    assert [entry.name for entry in store.headers()] == ["wan"]


# Full disks

STAGES: list[tuple[str, object, str]] = [
    ("folder", Path, "mkdir"),
    ("opening", Path, "open"),
    ("syncing", os, "fsync"),
    ("renaming", Path, "replace"),
]


@pytest.mark.parametrize(("owner", "failing"), [stage[1:] for stage in STAGES], ids=[stage[0] for stage in STAGES])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_fault_at_any_stage_is_reported_and_leaves_the_old_profile(
    store: Store, monkeypatch: pytest.MonkeyPatch, owner: object, failing: str, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(owner, failing, fail)
        with pytest.raises(StoreError, match=f"'wan' cannot be kept: {os.strerror(number)} .somewhere.; free space"):
            store.save("wan", profile(steps=3))
    assert store.load("wan").measured.steps == 2
    assert temporary_files(store) == []


@pytest.mark.parametrize("written", [0, 1, 8, 500, 1000])
def test_a_disk_that_fills_up_in_the_middle_of_a_write_leaves_the_old_profile(
    store: Store, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    really_open = Path.open

    def open_full(path: Path, mode: str = "r") -> object:
        file = really_open(path, mode)
        if mode != "xb":
            return file
        file.write(to_bytes(profile(steps=3))[:written])
        file.close()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(StoreError, match="No space left on device"):
            store.save("wan", profile(steps=3))
    check_whole(store)
    assert store.load("wan").measured.steps == 2
    assert temporary_files(store) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    """A file system of 8 KB, where the system lets one be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=8k", "tmpfs"]
    if mount is None or subprocess.run([mount, *options, str(disk)], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here: that takes root")
    try:
        small = Store(disk)
        small.save("wan", profile(steps=2))
        (disk / "filling").write_bytes(bytes(4096))
        with pytest.raises(StoreError, match=r"'wan' cannot be kept: No space left on device.*free space"):
            small.save("wan", profile(steps=3))
        check_whole(small)
        assert small.load("wan").measured.steps == 2
        assert temporary_files(small) == []
        (disk / "filling").unlink()
        small.save("wan", profile(steps=3))
        assert small.load("wan").measured.steps == 3
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Folders that cannot be written or read


def test_a_read_only_folder_is_reported_and_still_read(
    store: Store, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    """In a process that is not root, whom the system would let through."""
    store.user_dir.chmod(0o555)
    try:
        # From within: the folders above are closed to other users.
        process = start("""
os.chdir(store.user_dir)
store = Store(Path("."))
if os.getuid() == 0:
    os.setuid(65534)
assert store.load("wan").measured.steps == 2
try:
    store.save("wan", new)
except Exception as error:
    print(type(error).__name__, error)
assert store.load("wan").measured.steps == 2 and store.names() == ["wan"]
""")
        printed, errors = process.communicate(timeout=60)
    finally:
        store.user_dir.chmod(0o755)
    assert process.returncode == 0, errors
    assert printed.startswith(b"StoreError profile 'wan' cannot be kept: Permission denied"), printed
    assert temporary_files(store) == []


def test_a_file_where_the_folder_should_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    for folder in (tmp_path / "store", tmp_path / "store" / "below"):
        with pytest.raises(StoreError, match="cannot be kept"):
            Store(folder).save("wan", profile())
        assert Store(folder).names() == []
    assert (tmp_path / "store").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_reported_and_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(StoreError, match=f"'wan' cannot be read: {os.strerror(number)}"):
        store.load("wan")
    assert store.headers() == []


@pytest.mark.parametrize("make", [lambda path: os.mkfifo(path), lambda path: path.mkdir()], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_opened(store: Store, make: Callable[[Path], None]) -> None:
    """A pipe would never end."""
    make(store.user_dir / "odd.safetensors")
    assert store.names() == ["wan"]
    with pytest.raises(StoreError, match="no profile is called 'odd'"):
        store.load("odd")


# Whatever the system says of a folder or a file: the store goes on with the rest


NUMBERS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENOTCONN, errno.EMFILE, errno.ENOTDIR]


class Broken:
    """Makes the system refuse one kind of call for one folder and what is in it."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, number: int):
        self.patch, self.folder, self.number = patch, str(folder), number
        self.scandir = os.scandir

    def refuse(self, path: object) -> None:
        if str(path).startswith(self.folder):
            raise OSError(self.number, os.strerror(self.number), str(path))

    def method(self, owner: object, name: str) -> None:
        really = getattr(owner, name)

        def refused(path: object, *arguments: object, **named: object) -> object:
            self.refuse(path)
            return really(path, *arguments, **named)

        self.patch.setattr(owner, name, refused)

    def entries(self) -> None:
        """Each entry of the folder is there, and no more is known about it."""

        class Entry:
            def __init__(entry, real: os.DirEntry[str]):
                entry.name, entry.path, entry.real = real.name, real.path, real

            def stat(entry, **options: bool) -> os.stat_result:
                self.refuse(entry.path)
                return entry.real.stat(**options)

        @contextlib.contextmanager
        def scandir(folder: object) -> Iterator[Iterator[Entry]]:
            with self.scandir(str(folder)) as found:
                yield map(Entry, found)

        self.patch.setattr(os, "scandir", scandir)

    def reading(self) -> None:
        really = Path.open

        def opened(path: Path, mode: str = "r") -> object:
            file = really(path, mode)
            if "r" in mode and str(path).startswith(self.folder):
                file.close()
                file = mock.MagicMock()
                file.__enter__.return_value.read.side_effect = OSError(self.number, os.strerror(self.number))
            return file

        self.patch.setattr(Path, "open", opened)


BREAK: dict[str, Callable[[Broken], None]] = {
    "listing": lambda broken: broken.method(os, "scandir"),
    "asking about": lambda broken: broken.entries(),
    "opening": lambda broken: broken.method(Path, "open"),
    "reading": lambda broken: broken.reading(),
    "making": lambda broken: broken.method(Path, "mkdir"),
    "looking at": lambda broken: broken.method(Path, "lstat"),
    "resolving": lambda broken: broken.method(Path, "resolve"),
}


@pytest.fixture
def both(tmp_path: Path) -> Store:
    """A store of two folders with a profile in each."""
    mine, shipped = Store(tmp_path / "mine"), Store(tmp_path / "shipped")
    mine.save("mine", profile(steps=2))
    shipped.save("shipped", profile(steps=3))
    return Store(mine.user_dir, (shipped.user_dir,))


def use_all(store: Store) -> set[str]:
    """Everything that is asked of a store; names of what could be loaded. Only our own errors, and those where due."""
    names = store.names()
    assert {entry.name for entry in store.headers()} <= set(names)
    assert len(store.shown_names()) < 2000
    store.unique_name("new")
    loaded = set()
    for name in ("mine", "shipped", "new"):
        with contextlib.suppress(StoreError):
            assert store.load(name).measured.steps in (2, 3)
            loaded.add(name)
    for change in (
        lambda: store.save("new", profile()),
        lambda: store.save("newer", profile(), replace=False),
        lambda: store.rename("new", "renamed"),
        lambda: store.delete("renamed"),
    ):
        with contextlib.suppress(StoreError):
            change()
    assert loaded <= set(names)
    return loaded


@pytest.mark.parametrize("where", ["mine", "shipped"])
@pytest.mark.parametrize("kind", BREAK)
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_folder_that_the_system_does_not_give_out_stops_nothing(
    both: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str, kind: str, number: int
) -> None:
    (other,) = {"mine", "shipped"} - {where}
    with monkeypatch.context() as patch:
        BREAK[kind](Broken(patch, both.user_dir.parent / where, number))
        for _ in range(3):
            assert other in use_all(both)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(set(told)) <= 4 and all(len(one) < 2000 for one in told), told
    if kind in ("listing", "asking about", "opening", "reading"):
        assert any(where in one and os.strerror(number) in one for one in told), told
    assert {"mine", "shipped"} <= use_all(both), "it has come back"


def nothing(path: Path) -> None:
    """No such folder."""


def loop(path: Path) -> None:
    path.symlink_to(path)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "missing": nothing,
    "a file": lambda path: path.write_text("mine"),
    "a link to nowhere": lambda path: path.symlink_to(path.with_name("nowhere")),
    "a link to itself": loop,
    "a pipe": lambda path: os.mkfifo(path),
    "a folder of folders": lambda path: (path / "mine.safetensors").mkdir(parents=True),
    "a folder of pipes": lambda path: path.mkdir() or os.mkfifo(path / "mine.safetensors"),
    "a folder of loops": lambda path: path.mkdir() or loop(path / "mine.safetensors"),
    "a folder of links to nowhere": lambda path: path.mkdir() or (path / "mine.safetensors").symlink_to(path / "no"),
    "an empty file in it": lambda path: path.mkdir() or (path / "mine.safetensors").touch(),
}


@pytest.mark.parametrize("make", FOLDERS.values(), ids=FOLDERS.keys())
def test_whatever_is_in_the_folders_place_or_in_it_stops_nothing(
    both: Store, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    odd = tmp_path / "odd"
    make(odd)
    for store in (Store(odd, both.shipped_dirs), Store(both.shipped_dirs[0], (odd,))):
        with contextlib.suppress(ProfileError):  # of the empty file
            assert "shipped" in use_all(store)
        assert [entry.name for entry in store.headers()] == [name for name in store.names() if name != "mine"]


def test_a_folder_without_rights_stops_nothing(
    both: Store, tmp_path: Path, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    """In a process that is not root, whom the system would let through."""
    closed = tmp_path / "store" / "closed"
    both.user_dir.rename(closed)
    try:
        for mode in (0o000, 0o444, 0o311):
            closed.chmod(mode)
            process = start("""
os.chdir(store.user_dir)
store = Store(Path("closed"), (Path("."),))
if os.getuid() == 0:
    os.setuid(65534)
print(store.names(), [entry.name for entry in store.headers()], store.load("wan").measured.steps)
""")
            printed, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert printed == b"['wan'] ['wan'] 2\n", (oct(mode), printed)
            assert b"Permission denied" in errors, "said in the log"
    finally:
        closed.chmod(0o755)


# Work and words stay small


def many(folder: Path, count: int, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n:05}-{'x' * 50}.safetensors").write_bytes(data)


def test_an_unchanged_file_is_opened_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": opened.append(path.name) or really(path, mode))
    many(store.user_dir, 30, to_bytes(profile(steps=2)))
    (store.user_dir / "bad.safetensors").write_bytes(b"x")
    opened.clear()
    first = store.headers()
    assert len(first) == 31 and len(opened) == 32
    opened.clear()
    assert store.headers() == first and opened == []
    store.save("wan", profile(steps=3))
    opened.clear()
    (entry,) = [entry for entry in store.headers() if entry.name == "wan"]
    assert entry.measured.steps == 3 and entry.sigmas == (1.0, 0.5)
    assert opened == ["wan.safetensors"]


def test_a_first_look_reads_no_table(store: Store) -> None:
    path = store.user_dir / "wan.safetensors"
    path.write_bytes(path.read_bytes()[:-24] + bytes(24))
    assert [entry.name for entry in store.headers()] == ["wan"]


def test_another_file_of_the_same_time_and_size_is_looked_at_again(store: Store) -> None:
    """As one that is copied there with its time, or on a file system that counts in seconds."""
    for steps in (3, 4, 5, 6):
        time.sleep(0.01)
        store.save("wan", profile(steps=steps))
        os.utime(store.user_dir / "wan.safetensors", (1, 1))
        (entry,) = store.headers()
        assert entry.measured.steps == steps


def test_messages_name_some_profiles_and_how_many_more_there_are(store: Store) -> None:
    many(store.user_dir, 200, b"x")
    with pytest.raises(StoreError, match=r"no profile is called 'x'.*\(00000-x+, 00001-.* and 191 more\)") as caught:
        store.load("x")
    assert len(str(caught.value)) < 2000


def test_each_broken_file_is_said_once_and_no_line_is_long(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    many(store.user_dir, 300, b"\xff" * 100)
    for _ in range(3):
        assert [entry.name for entry in store.headers()] == ["wan"]
    (first,) = caplog.records
    assert len(first.getMessage()) < 2000 and "and 290 more" in first.getMessage()
    caplog.clear()
    (store.user_dir / "other.safetensors").write_bytes(b"x")
    store.headers()
    (second,) = caplog.records
    assert "other.safetensors" in second.getMessage() and "0000" not in second.getMessage()


# Names that are taken


def test_what_is_there_is_replaced_only_when_asked_to(store: Store) -> None:
    """Names that differ by case alone are one file on some systems."""
    store.save("Flux", profile(steps=2))
    for name in ("wan", "WAN", "Flux", "flux"):
        with pytest.raises(NameTaken, match="already"):
            store.save(name, profile(steps=3), replace=False)
    assert store.load("wan").measured.steps == 2
    store.save("new", profile(steps=3), replace=False)
    assert store.load("new").measured.steps == 3


def test_a_profile_is_renamed_but_not_over_another(store: Store) -> None:
    store.save("flux", profile(steps=3))
    (store.user_dir / "linked.safetensors").symlink_to(store.user_dir / "flux.safetensors")
    for name in ("flux", "Flux", "linked"):
        with pytest.raises(NameTaken, match="already"):
            store.rename("wan", name)
    store.rename("wan", "WAN")
    assert store.names() == ["WAN", "flux"]
    store.delete("WAN")
    assert store.names() == ["flux"]


def test_only_the_users_own_profiles_are_renamed_and_deleted(both: Store) -> None:
    (both.user_dir / "linked.safetensors").symlink_to(both.user_dir / "mine.safetensors")
    for name in ("shipped", "nothing", "linked"):
        for change in (both.delete, lambda name: both.rename(name, "new")):
            with pytest.raises(NotStored, match=repr(name)):
                change(name)
    for name in ("../shipped/shipped", "", ".."):
        for change in (both.delete, lambda name: both.rename(name, "new"), lambda name: both.rename("mine", name)):
            with pytest.raises(StoreError, match="profile name"):
                change(name)
    assert both.names() == ["mine", "shipped"]


# Several servers


def test_two_processes_that_write_one_profile_never_show_a_broken_one(
    store: Store, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    code = "for turn in range(60): store.save('wan', old if turn % 2 else new)"
    writers = [start(code), start(code)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        check_whole(store)
        seen += 1
    assert [writer.returncode for writer in writers] == [0, 0], writers[0].stderr
    assert seen > 1 and temporary_files(store) == []


# Kills


@pytest.mark.parametrize("at", ["open", "write", "flush", "fsync", "replace", "unlink"])
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_profile(
    store: Store, start: Callable[[str], subprocess.Popen[bytes]], at: str
) -> None:
    """The process kills itself as the system is asked to do this, and the moment after it was done."""
    process = start(f"""
import builtins, signal
at = {at!r}
def die(event, arguments):
    if event == at or (at == "open" and event == "open" and str(arguments[0]).endswith(".tmp")):
        os.kill(os.getpid(), signal.SIGKILL)
if at in ("open",):
    sys.addaudithook(die)
elif at in ("fsync",):
    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
elif at in ("replace", "unlink"):
    setattr(Path, at, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
else:
    really = Path.open
    class File:
        def __init__(self, file):
            self.file = file
        def __enter__(self):
            return self
        def __exit__(self, *error):
            self.file.close()
        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            if at == "write":
                os.kill(os.getpid(), signal.SIGKILL)
            self.file.write(data[len(data) // 2 :])
        def flush(self):
            os.kill(os.getpid(), signal.SIGKILL)
    Path.open = lambda path, mode: File(really(path, mode)) if mode == "xb" else really(path, mode)
store.save("wan", new)
""")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    check_whole(store)
    assert store.load("wan").measured.steps == (3 if at == "unlink" else 2)
    store.save("wan", profile(steps=3))
    assert store.load("wan").measured.steps == 3


def test_kills_at_random_moments_leave_a_whole_profile(
    store: Store, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    for delay in (0.0, 0.003, 0.011, 0.023, 0.041):
        process = start("print('ready', flush=True)\nwhile True: store.save('wan', new); store.save('wan', old)")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        check_whole(store)


def test_what_a_killed_server_left_is_swept_up_when_it_is_old(store: Store) -> None:
    left = [store.user_dir / f".{digit * 32}.tmp" for digit in "abc"]
    others = [store.user_dir / name for name in ("notes.tmp", f"{'a' * 32}.tmp", f".{'g' * 32}.tmp", ".old.tmp")]
    long_ago = time.time() - 7200
    for path in (*left, *others):
        path.write_bytes(b"half a profile")
        os.utime(path, (long_ago, long_ago))
    os.utime(left[0])
    store.save("wan", profile(steps=3))
    assert [path.exists() for path in left] == [True, False, False], "one may be another server's, at work"
    assert all(path.exists() for path in others), "those are not ours"
    assert store.names() == ["wan"]
