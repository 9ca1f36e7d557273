"""The store: hostile names, whole files, and what is found under which name."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ertacache.comfy_erta.store import Store, StoreError, check_name
from ertacache.erta.profile import Measured, Profile, ProfileError, Table
from ertacache.erta.profile_file import MAX_BYTES, digest, to_bytes

ROOT = Path(__file__).resolve().parents[2]

MEASURED = Measured(
    model_class="WAN21",
    parameters=1,
    weights="0" * 64,
    loras="",
    sampling="ModelSamplingDiscreteFlow+CONST",
    shift=8.0,
    sampler="euler",
    scheduler="simple",
    steps=2,
    guidance=None,
    latent_shape=(1, 16, 1, 8, 8),
    level="output",
    pack_version="0.1.0",
    comfy_version="0.3.75",
)


def profile(steps: int = 2) -> Profile:
    features = np.array([[1.0, 2.0], [0.0, 1.0]])
    table = Table(
        run=0,
        stream=0,
        elements=2,
        latent_rms=1.0,
        sigmas=np.array([1.0, 0.5]),
        gram=features @ features.T,
        l1=np.array([[0.0, 1.0], [1.0, 0.0]]),
        norm1=np.array([1.5, 0.5]),
        mean=np.array([1.5, 0.5]),
    )
    return Profile(replace(MEASURED, steps=steps), (table,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    return Store(tmp_path / "user" / "ertacache", (shipped,))


def put(folder: Path, name: str, steps: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(to_bytes(profile(steps)))


@pytest.mark.parametrize("name", ["a", "Wan2.1_T2V-1.3B.euler", "x" * 64, "-", "_", "com", "com10", "console", "a..b"])
def test_good_names_pass(name: str) -> None:
    assert check_name(name) == name


HOSTILE_NAMES = {
    "parent": ("../secret", "no folders"),
    "absolute": ("/etc/passwd", "no folders"),
    "backslash": ("..\\secret", "no folders"),
    "drive": ("C:secret", "characters"),
    "home": ("~", "characters"),
    "NUL byte": ("a\0b", "characters"),
    "line break at the end": ("a\n", "characters"),
    "empty": ("", "1 to 64"),
    "too long": ("x" * 65, "1 to 64"),
    "letters of another script": ("\uff57an", "characters"),
    "number": (7, "characters"),
    "list": (["a"], "characters"),
    "dots only": ("..", "dot"),
    "leading dot": (".hidden", "dot"),
    "trailing dot": ("a.", "dot"),
    "device": ("CON", "device"),
    "device with extension": ("nul.tar.gz", "device"),
    "numbered device": ("Com1", "device"),
    "printer": ("lpt9.x", "device"),
}


@pytest.mark.parametrize(("name", "rule"), HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_hostile_names_are_refused_everywhere(store: Store, name: str, rule: str) -> None:
    for use in (check_name, store.load, store.unique_name, lambda name: store.save(name, profile())):
        with pytest.raises(StoreError, match=rule):
            use(name)


def test_saved_profile_is_loaded_and_nothing_else_is_left(store: Store) -> None:
    path = store.save("wan", profile())
    assert path == (store.user_dir / "wan.safetensors") == store.user_dir / "wan.safetensors"
    assert digest(store.load("wan")) == digest(profile())
    assert list(store.user_dir.iterdir()) == [path]


def test_missing_profile_is_named_with_those_that_exist(store: Store) -> None:
    with pytest.raises(StoreError, match=r"'wan'.*none yet"):
        store.load("wan")
    store.save("flux", profile())
    with pytest.raises(StoreError, match=r"'wan'.*\(flux\)"):
        store.load("wan")


def test_own_profile_hides_the_shipped_one_of_that_name(store: Store) -> None:
    put(store.shipped_dirs[0], "wan", steps=50)
    put(store.shipped_dirs[0], "flux", steps=30)
    assert store.load("wan").measured.steps == 50
    store.save("wan", profile(steps=20))
    assert store.load("wan").measured.steps == 20
    assert [(entry.name, entry.measured.steps) for entry in store.headers()] == [("flux", 30), ("wan", 20)]


def test_names_leave_out_what_is_no_profile_file(store: Store) -> None:
    put(store.user_dir, "b")
    put(store.user_dir, "A")
    put(store.user_dir, ".hidden")
    put(store.user_dir, "two words")
    (store.user_dir / "notes.txt").write_text("x")
    (store.user_dir / "folder.safetensors").mkdir()
    assert store.names() == ["A", "b"]


def test_unreadable_files_are_skipped_with_one_warning(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    put(store.user_dir, "good")
    (store.user_dir / "bad.safetensors").write_bytes(b"x")
    (store.user_dir / "worse.safetensors").write_bytes(bytes(MAX_BYTES + 1))
    with caplog.at_level(logging.WARNING, "ertacache"):
        assert [entry.name for entry in store.headers()] == ["good"]
    assert len(caplog.records) == 1
    assert "bad.safetensors': profile field 'header'" in caplog.text
    assert "worse.safetensors': profile field 'header'" in caplog.text


def test_load_error_names_the_file(store: Store) -> None:
    store.save("wan", profile())
    (store.user_dir / "wan.safetensors").write_bytes(to_bytes(profile())[:-1])
    with pytest.raises(ProfileError, match=r"^wan\.safetensors: profile field 'file'"):
        store.load("wan")


def test_of_an_oversized_file_no_more_is_read_than_it_takes_to_refuse_it(store: Store) -> None:
    store.user_dir.mkdir(parents=True)
    with (store.user_dir / "wan.safetensors").open("wb") as file:
        file.truncate(2**40)  # sparse: reading it would fail for lack of memory
    with pytest.raises(ProfileError, match=rf"wan\.safetensors: .*at most {MAX_BYTES} bytes"):
        store.load("wan")


def test_unique_name_counts_up_and_ignores_case(store: Store) -> None:
    assert store.unique_name("wan") == "wan"
    put(store.user_dir, "Wan")
    put(store.shipped_dirs[0], "wan-2")
    assert store.unique_name("wan") == "wan-3"
    long = "x" * 64
    put(store.user_dir, long)
    assert check_name(store.unique_name(long)) == "x" * 62 + "-2"


# Symbolic links


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    put(tmp_path, "secret", steps=9)
    return tmp_path / "secret.safetensors"


def test_link_is_neither_read_nor_listed_nor_written_through(store: Store, secret: Path) -> None:
    store.user_dir.mkdir(parents=True)
    (store.user_dir / "wan.safetensors").symlink_to(secret)
    before = secret.read_bytes()
    for use in (store.load, lambda name: store.save(name, profile())):
        with pytest.raises(StoreError, match="symbolic link"):
            use("wan")
    assert secret.read_bytes() == before
    assert store.names() == []
    assert store.unique_name("wan") == "wan-2"


def test_link_in_the_shipped_folder_is_not_followed(store: Store, secret: Path) -> None:
    (store.shipped_dirs[0] / "wan.safetensors").symlink_to(secret)
    with pytest.raises(StoreError, match="symbolic link"):
        store.load("wan")


def test_user_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (tmp_path / "user").symlink_to(elsewhere)
    store = Store(tmp_path / "user")
    store.save("wan", profile())
    assert digest(store.load("wan")) == digest(profile())


# Whole files


@pytest.mark.parametrize(("owner", "failing"), [(os, "fsync"), (Path, "replace")])
def test_failed_save_leaves_the_old_file_and_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch, owner: object, failing: str
) -> None:
    path = store.save("wan", profile(steps=2))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(owner, failing, fail)
        with pytest.raises(StoreError, match="disk full"):
            store.save("wan", profile(steps=3))
    assert store.load("wan").measured.steps == 2
    assert list(store.user_dir.iterdir()) == [path]


def test_kill_in_the_middle_of_a_save_leaves_the_old_file(store: Store) -> None:
    store.save("wan", profile(steps=2))
    script = """
import os, sys, types
pack = types.ModuleType("ertacache")
pack.__path__ = [sys.argv[1]]
sys.modules["ertacache"] = pack
from pathlib import Path
from ertacache.comfy_erta.store import Store
store = Store(Path(sys.argv[2]))
os.fsync = lambda file: os._exit(9)
store.save("wan", store.load("wan"))
"""
    ended = subprocess.run([sys.executable, "-I", "-c", script, str(ROOT), str(store.user_dir)], timeout=60)
    assert ended.returncode == 9
    assert store.load("wan").measured.steps == 2
    assert store.names() == ["wan"]
    store.save("wan", profile(steps=3))
    assert store.load("wan").measured.steps == 3


def test_two_writers_at_once_never_show_a_broken_file(store: Store) -> None:
    store.save("wan", profile(steps=2))

    def write(steps: int) -> None:
        for _ in range(20):
            store.save("wan", profile(steps))

    writers = [threading.Thread(target=write, args=(steps,)) for steps in (2, 3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert store.load("wan").measured.steps in (2, 3)
    assert [path.name for path in store.user_dir.iterdir()] == ["wan.safetensors"]
