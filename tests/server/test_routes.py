"""The routes to the store in a real server, of one user and of several: what the browser's buttons ask for."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ertacache.demo.server import ComfyServer
from ertacache.erta.profile_file import MAX_BYTES, from_bytes, to_bytes
from ertacache.tests.core.test_store import HOSTILE_NAMES, profile

MINE, OTHER = to_bytes(profile(steps=2)), to_bytes(profile(steps=3))


@pytest.fixture(scope="module", params=[(), ("--multi-user",)], ids=["one user", "several users"])
def server(request: pytest.FixtureRequest, comfy_path: Path) -> Iterator[ComfyServer]:
    with ComfyServer(args=request.param) as running:
        yield running


@pytest.fixture
def folder(server: ComfyServer) -> Iterator[Path]:
    """The store's, empty again afterwards."""
    kept = server.base / "user" / "default" / "ertacache"
    yield kept
    for path in kept.glob("*"):
        path.unlink()


def user(server: ComfyServer) -> dict[str, str]:
    """The header of a user of their own, where there are several."""
    if "--multi-user" not in server.client.system_stats()["system"]["argv"]:
        return {}
    body = json.dumps({"username": uuid.uuid4().hex}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/users", body, headers)) as answer:
        return {"comfy-user": json.load(answer)}


def ask(
    server: ComfyServer,
    method: str,
    name: str,
    more: str = "",
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """(status, answer); as the front end asks, whose addresses begin with /api."""
    url = f"{server.url}/api/ertacache/profiles/{urllib.parse.quote(name, safe='')}{more}"
    request = urllib.request.Request(url, body, headers or {}, method=method)  # type: ignore[arg-type]
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as problem:
        return problem.code, problem.read()


def offered(server: ComfyServer) -> list[str]:
    """What the node that loads a profile has to choose from."""
    return list(server.client.object_info("ERTALoadProfile")["input"]["required"]["name"][1]["options"])


def test_what_one_imports_all_have_and_the_nodes_too(server: ComfyServer, folder: Path) -> None:
    anna, ben = user(server), user(server)
    assert ask(server, "POST", "wan", body=MINE, headers=anna) == (200, b"")
    assert (folder / "wan.safetensors").read_bytes() == MINE
    assert offered(server) == ["wan"]
    assert ask(server, "GET", "wan", headers=ben) == (200, MINE)
    assert ask(server, "POST", "wan", "/move?to=flux", headers=ben) == (200, b"")
    assert offered(server) == ["flux"]
    assert ask(server, "DELETE", "flux", headers=anna) == (200, b"")
    assert offered(server) == ["none"] and list(folder.iterdir()) == []


def test_an_import_replaces_only_when_asked_to(server: ComfyServer, folder: Path) -> None:
    ask(server, "POST", "wan", body=MINE)
    for name in ("wan", "WAN"):  # one file on some systems
        status, message = ask(server, "POST", name, body=OTHER)
        assert status == 409 and b"already" in message
    assert ask(server, "GET", "wan") == (200, MINE)
    assert ask(server, "POST", "wan", "?overwrite=true", OTHER) == (200, b"")
    assert ask(server, "GET", "wan") == (200, OTHER)


def test_a_rename_never_replaces(server: ComfyServer, folder: Path) -> None:
    ask(server, "POST", "wan", body=MINE)
    ask(server, "POST", "flux", body=OTHER)
    status, message = ask(server, "POST", "wan", "/move?to=flux")
    assert status == 409 and b"'flux' already" in message
    assert (ask(server, "GET", "wan"), ask(server, "GET", "flux")) == ((200, MINE), (200, OTHER))
    assert ask(server, "POST", "wan", "/move?to=Wan")[0] == 200, "itself by another case"
    assert offered(server) == ["Wan", "flux"]


def test_what_is_not_there_is_404(server: ComfyServer, folder: Path) -> None:
    for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/move?to=b")):
        status, message = ask(server, method, "a", more)
        assert status == 404 and b"is called 'a'" in message


def test_hostile_names_are_400_with_the_rule(server: ComfyServer, folder: Path) -> None:
    ask(server, "POST", "wan", body=MINE)
    for name, rule in (one for one in HOSTILE_NAMES.values() if isinstance(one[0], str)):
        status, message = ask(server, "POST", "wan", f"/move?to={urllib.parse.quote(name, safe='')}")
        assert status == 400 and rule in message.decode()
        for method, more in (("GET", ""), ("POST", ""), ("DELETE", ""), ("POST", "/move?to=b")):
            status, message = ask(server, method, name, more, MINE)
            if name:
                assert status == 400 and rule in message.decode(), (name, method, more)
            else:
                assert status in (404, 405), "that is no path to a route"
    assert [path.name for path in folder.iterdir()] == ["wan.safetensors"]


@pytest.mark.parametrize("body", [b"", b"x", MINE[:-1], b"\xff" * 100], ids=["nothing", "byte", "cut", "rubbish"])
def test_what_is_no_profile_is_400_and_not_written(server: ComfyServer, folder: Path, body: bytes) -> None:
    status, message = ask(server, "POST", "wan", body=body)
    assert status == 400 and b"profile field" in message
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_body_without_a_length_is_read_as_far_as_a_profile_goes(server: ComfyServer, folder: Path) -> None:
    """A sender that would go on until it is stopped."""
    assert ask(server, "POST", "wan", body=iter([MINE[:9], MINE[9:]])) == (200, b"")
    sent = 0

    def without_end() -> Iterator[bytes]:
        nonlocal sent
        while sent < 4 * MAX_BYTES:
            sent += 2**16
            yield bytes(2**16)

    status, message = ask(server, "POST", "big", body=without_end())
    assert status == 400 and f"at most {MAX_BYTES} bytes".encode() in message
    assert offered(server) == ["wan"]


def test_a_file_that_was_put_there_is_given_out_only_if_it_is_a_profile(server: ComfyServer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bad.safetensors").write_bytes(b"secret")
    status, message = ask(server, "GET", "bad")
    assert status == 400 and b"profile field" in message and b"secret" not in message
    (folder / "linked.safetensors").symlink_to(folder / "bad.safetensors")
    assert ask(server, "GET", "linked")[0] == 400
    assert ask(server, "DELETE", "linked")[0] == 404 and (folder / "linked.safetensors").is_symlink()


def test_what_ships_with_the_pack_is_given_out_and_stays(server: ComfyServer, folder: Path) -> None:
    from ertacache.comfy_erta.store import _SHIPPED

    for path in _SHIPPED.glob("*.safetensors"):
        assert ask(server, "GET", path.stem)[0] == 200
        assert ask(server, "DELETE", path.stem)[0] == 404 and path.exists()


def test_the_routes_are_there_once(server: ComfyServer) -> None:
    """A second copy of the pack under another name must not keep the server from starting."""
    args = [flag for flag in ("--multi-user",) if flag in server.client.system_stats()["system"]["argv"]]
    root = Path(__file__).resolve().parents[2]
    with ComfyServer(nodes={"ComfyUI-ERTACache": root}, args=args) as doubled:
        assert ask(doubled, "POST", "wan", body=MINE) == (200, b"")
        assert from_bytes(ask(doubled, "GET", "wan")[1]).measured.steps == 2
