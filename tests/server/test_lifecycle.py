"""How ComfyServer handles its process, with a stand-in for ComfyUI that starts in no time and misbehaves on request."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ertacache.demo import server as server_module
from ertacache.demo.comfyui import ROOT
from ertacache.demo.server import ComfyServer, ServerError, free_port, link

STAND_IN = """
import argparse, http.server, json, signal, subprocess, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--misbehave", default="")
args, _ = parser.parse_known_args()
if args.misbehave == "crash":
    sys.exit("a package is missing")
if args.misbehave == "silent":
    time.sleep(60)
if args.misbehave == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"system": {"argv": sys.argv}}).encode())

http.server.HTTPServer(("127.0.0.1", args.port), Answer).serve_forever()
"""

USER = """
import signal, sys, time
from pathlib import Path
# As at a terminal, even where the tests run in the background, which ignores these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from demo.server import ComfyServer
with ComfyServer(Path(sys.argv[2]), comfy=Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(server_module, "needs_torchvision_shim", lambda: False)
    folder = tmp_path / "comfy"
    folder.mkdir()
    (folder / "main.py").write_text(STAND_IN)
    return folder


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_for_death(*pids: int) -> bool:
    for _ in range(100):
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def child_of(server: ComfyServer) -> int:
    return int(server.log_text().split("child ")[1].split()[0])


def test_the_whole_process_group_ends_with_the_block(stand_in: Path):
    with ComfyServer(comfy=stand_in) as server:
        pid, child, base = server.pid, child_of(server), server.base
        assert pid is not None and is_alive(pid) and is_alive(child)
    assert wait_for_death(pid, child)
    assert not base.exists()
    assert server.pid is None


def test_a_server_that_ignores_the_request_is_killed(stand_in: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "PATIENCE", 0.5)
    with ComfyServer(comfy=stand_in, args=["--misbehave", "stubborn"]) as server:
        pid = server.pid
    assert pid is not None and wait_for_death(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_program_ends_the_server(stand_in: Path, tmp_path: Path, number: signal.Signals):
    program = subprocess.Popen(
        [sys.executable, "-c", USER, str(stand_in), str(tmp_path / "base")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    assert is_alive(pid)
    program.send_signal(number)
    assert program.wait(20) != 0
    program.stdout.close()
    assert wait_for_death(pid)


def test_a_crash_at_start_shows_the_end_of_the_log_and_the_remedy(stand_in: Path):
    with pytest.raises(ServerError, match=r"status 1 at start(.|\n)*pip install -r(.|\n)*a package is missing"):
        ComfyServer(comfy=stand_in, args=["--misbehave", "crash"]).start()


def test_a_server_that_never_answers_is_given_up(stand_in: Path):
    server = ComfyServer(comfy=stand_in, args=["--misbehave", "silent"], start_timeout=1.0)
    with pytest.raises(ServerError, match="did not answer"):
        server.start()
    assert server.pid is None


def test_a_port_that_another_program_took_is_left_to_it(stand_in: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        free = free_port()
        ports = iter([other.getsockname()[1], free])
        monkeypatch.setattr(server_module, "free_port", lambda: next(ports))
        with ComfyServer(comfy=stand_in) as server:
            assert server.port == free


def test_signal_handlers_are_put_back(stand_in: Path):
    before = signal.getsignal(signal.SIGTERM)
    with ComfyServer(comfy=stand_in):
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_link_leaves_what_is_not_a_link_alone(tmp_path: Path):
    (tmp_path / "source").mkdir()
    mine = tmp_path / "target"
    mine.mkdir()
    (mine / "work.txt").write_text("mine")
    link(tmp_path / "source", mine)
    assert (mine / "work.txt").read_text() == "mine"


def test_link_copies_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("privilege not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "source" / ".cache").mkdir(parents=True)
    (tmp_path / "source" / "code.py").write_text("x = 1")
    link(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["code.py"]
