"""When the disk is full, the folder read-only, two servers write at once or one is killed: the store stays readable,
nothing old is lost, and what is left behind is not listed and goes away."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ertacache.comfy_erta.store import Store, StoreError
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
