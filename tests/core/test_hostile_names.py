"""Names from strangers' workflows: ten thousand of them either name one file inside the store or are refused by our own
error, and nothing outside the store is read, written, listed or removed."""

from __future__ import annotations

import random
import sys
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ertacache.comfy_erta.store import MAX_NAME, SUFFIX, Store, StoreError, check_name
from ertacache.erta.profile import ProfileError
from ertacache.erta.profile_file import to_bytes
from ertacache.tests.core.test_store import profile

NAMES, PARTS = 10_000, 5

# Files that a name could lead to, and must not: outside the store, or inside it and no profile.
PIECES = [
    "secret",
    "outside",
    "..",
    ".",
    "/",
    "\\",
    "~",
    "C:",
    "\\\\host\\share",
    "//host/share",
    "\\\\?\\C:\\",
    "file://",
]
PIECES += [
    "%2e%2e",
    "%2f",
    "%5c",
    "%00",
    "..%c0%af",
    "&#46;",
    "$HOME",
    "${PATH}",
    "%APPDATA%",
    "`id`",
    "$(id)",
    ";",
    "|",
]
PIECES += ["\0", "\n", "\r", "\t", " ", "\u00a0", "\u200b", "\u202e", "\ufeff", "\ud800", "․․", "∕", "⧵", "／", "．．"]  # noqa: RUF001
PIECES += [
    "CON",
    "nul",
    "com1",
    "LPT9",
    "aux.",
    "prn.txt",
    "COM¹",
    "CONIN$",
    ":stream",
    "::$DATA",
    "a" * 300,
    "\u0440rofile",
]
PIECES += [
    SUFFIX,
    ".safetensors.tmp",
    ".tmp",
    ".lock",
    "wan",
    "WAN",
    "ok-name_1.2",
    "-rf",
    "--help",
    "*",
    "?",
    "[a-z]",
    "'",
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a profile in it, links out of it, and profiles around it that it must not find."""
    root = tmp_path_factory.mktemp("root")
    store = Store(root / "user" / "ertacache", (root / "shipped",))
    store.save("wan", profile(2))
    for folder in (root, root / "user", root / "shipped" / "below", store.user_dir / "below"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("secret", "outside"):
            (folder / f"{name}{SUFFIX}").write_bytes(to_bytes(profile(9)))
    (store.user_dir / f"linked{SUFFIX}").symlink_to(root / f"secret{SUFFIX}")
    (store.user_dir / f"dangling{SUFFIX}").symlink_to(root / "nowhere")
    (store.user_dir / f"simulation{SUFFIX}").symlink_to(store.user_dir / f"simulation{SUFFIX}")
    (root / "shipped" / f"linked2{SUFFIX}").symlink_to(store.user_dir)
    (store.user_dir / "way-out").symlink_to(root)
    return store


# What Python is asked to open, rename or remove while this is not None; a hook cannot be taken out again.
_touched: list[Any] = []
_watching: list[bool] = []
_EVENTS = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.listdir",
    "os.scandir",
)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (
        event in _EVENTS or event.startswith(("subprocess", "socket", "os.exec", "os.spawn", "os.system"))
    ):
        _touched.append((event, arguments))


@contextmanager
def only_inside(store: Store) -> Iterator[None]:
    """Nothing is touched outside the store's own folders, however it is asked for."""
    if _hook not in _installed:
        sys.addaudithook(_hook)
        _installed.append(_hook)
    _touched.clear()
    _watching.append(True)
    try:
        yield
    finally:
        _watching.clear()
    allowed = [folder.resolve() for folder in (store.user_dir, *store.shipped_dirs)]
    for event, arguments in _touched:
        assert event in _EVENTS, (event, arguments)
        for path in arguments[: 2 if event == "os.rename" else 1]:
            assert isinstance(path, (str, Path)), (event, arguments)
            absolute = Path(path).parent.resolve() / Path(path).name
            assert any(absolute == folder or absolute.parent == folder for folder in allowed), (event, path)


_installed: list[Callable[..., None]] = []


def mutated(chance: random.Random) -> Any:
    """A name out of pieces of known attacks, now and then encoded, cut, repeated or normalised."""
    name = "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 4)))
    kind = chance.randrange(12)
    if kind == 0:
        name = urllib.parse.quote(name, errors="replace")
    elif kind == 1:
        name = urllib.parse.quote(urllib.parse.quote(name, errors="replace"))
    elif kind == 2:
        name = unicodedata.normalize(chance.choice(("NFC", "NFKC", "NFD")), name)
    elif kind == 3:
        name = name[: chance.randrange(len(name) + 1)]
    elif kind == 4:
        name = name * chance.choice((2, 100))
    elif kind == 5:
        name = name + chance.choice((".", " ", "\0.safetensors", "/", "\\", "/.", "/../wan"))
    elif kind == 6:
        return chance.choice((None, 7, True, 1.5, b"wan", ["wan"], {"wan": 1}, ("..",), Path(name.replace("\0", ""))))
    elif kind < 9:
        letters = "abcXYZ019._-"
        name = "".join(chance.choice(letters) for _ in range(chance.randint(0, MAX_NAME + 3)))
    return name


def check(store: Store, name: Any) -> bool:
    """Every use of a name ends in our own error or stays inside. Whether the name is a good one."""
    try:
        good = check_name(name)
    except StoreError as error:
        assert len(str(error)) < 300 and str(error).startswith("profile name ")
        str(error).encode()  # to go into a log and into JSON
        for use in (store.load, store.unique_name, lambda n: store.save(n, profile(3))):
            with pytest.raises(StoreError, match="profile name"):
                use(name)
        return False
    assert good == name and len(name) <= MAX_NAME and name.isascii() and name.isprintable()
    assert not set(name) & set('/\\:*?"<>|%$~ ') and name.strip(".") == name
    try:
        assert store.load(name).measured.steps != 9, "a file of another folder"
    except StoreError as error:
        assert "no profile is called" in str(error) or "symbolic link" in str(error)
    assert check_name(store.unique_name(name)).lower() not in {one.lower() for one in store.names()}
    return True


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(60)
def test_any_name_stays_inside_or_is_refused(kept: Store, part: int) -> None:
    before = everything(kept)
    good = 0
    for seed in range(part * NAMES // PARTS, (part + 1) * NAMES // PARTS):
        name = mutated(random.Random(seed))
        with only_inside(kept):
            try:
                good += check(kept, name)
            except Exception as error:
                raise AssertionError(f"name {seed}: {name!r}") from error
    assert 50 < good < NAMES // PARTS // 2
    assert everything(kept) == before


def everything(store: Store) -> dict[Path, bytes]:
    """All files of the store and around it, with their content."""
    root = store.user_dir.parents[1]
    return {path: b"" if path.is_symlink() or path.is_dir() else path.read_bytes() for path in root.rglob("*")}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=80) | st.text("abcAZ09._-", max_size=70) | st.sampled_from(PIECES))
def test_any_text_stays_inside_or_is_refused(kept: Store, name: str) -> None:
    with only_inside(kept):
        check(kept, name)


@settings(max_examples=40, deadline=None)
@given(name=st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_a_good_name_is_kept_found_and_listed_inside(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    store = Store(tmp_path_factory.mktemp("names") / "store")
    try:
        check_name(name)
    except StoreError:
        return
    store.user_dir.mkdir()
    with only_inside(store):
        path = store.save(name, profile(3))
        assert path.parent == store.user_dir and store.names() == [name]
        assert store.load(name).measured.steps == 3


@pytest.mark.parametrize("name", ["linked", "linked2", "dangling", "simulation"])
def test_no_link_is_followed_listed_or_replaced(kept: Store, name: str) -> None:
    before = everything(kept)
    assert name not in kept.names() and name not in [entry.name for entry in kept.headers()]
    with pytest.raises(StoreError, match=r"symbolic link|no profile is called"):
        kept.load(name)
    if name != "linked2":
        with pytest.raises(StoreError, match="symbolic link"):
            kept.save(name, profile(3))
    assert everything(kept) == before


def test_the_watch_sees_what_goes_outside(kept: Store) -> None:
    """Otherwise the tests above could not fail."""
    outside = kept.user_dir.parents[1] / f"secret{SUFFIX}"
    for path in (outside, kept.user_dir / "way-out" / f"secret{SUFFIX}", kept.user_dir / ".." / ".." / outside.name):
        with pytest.raises(AssertionError), only_inside(kept):
            path.read_bytes()
    with pytest.raises(AssertionError), only_inside(kept):
        (kept.user_dir / "below" / "new").write_text("")


def test_hostile_files_beside_a_good_one_hide_nothing(kept: Store, tmp_path: Path) -> None:
    """Names and contents that a stranger's archive may unpack into the folder."""
    store = Store(tmp_path / "store")
    store.save("good", profile(2))
    for stem in ("..", ".", " ", "a b", "\u0440rofile", "CON", "x" * 100, "a\nb", "%2e%2e", ".hidden", "-"):
        (store.user_dir / f"{stem}{SUFFIX}").write_bytes(b"\xff" * 100)
    (store.user_dir / b"\xff\xfe.safetensors".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    assert store.names() == ["-", "good"]
    assert [entry.name for entry in store.headers()] == ["good"]
    with pytest.raises(ProfileError, match=r"^-\.safetensors: profile field"):
        store.load("-")
    assert check_name(store.unique_name("good")) == "good-2"
