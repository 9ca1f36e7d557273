"""A ComfyUI server of one's own, for the length of a with-block.

    with ComfyServer() as server:
        entry = server.client.run(prompt)

It runs headless on the CPU, on a free loopback port, in a base directory where this pack is the only one. However
the block ends (an error, Ctrl-C, SIGTERM), the server and all it started end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .client import Client, Event, PromptError, ServerError, WorkflowError, WorkflowInterrupted
from .comfyui import CACHE, ROOT, SHIM, locate, needs_torchvision_shim

__all__ = ["Client", "ComfyServer", "Event", "PromptError", "ServerError", "WorkflowError", "WorkflowInterrupted"]

FOLDERS = ("custom_nodes", "models/diffusion_models", "input", "output", "temp", "user")
LAST_LOG = CACHE / "last-server.log"
PORT_ATTEMPTS = 3
PATIENCE = 10.0  # seconds between asking a server to end and killing it
PORT_TAKEN = ("address already in use", "only one usage of each socket address")
NOT_COPIED = (".git", ".venv", ".cache", "__pycache__", "output")


class ComfyServer:
    """See the module's first lines. Use it as a context manager, or call `start` and `stop`.

    `url`, `port`, `base` and `client` are set while it runs.
    """

    def __init__(
        self,
        base: Path | None = None,
        *,
        nodes: Mapping[str, Path] | None = None,
        folder: str = "ertacache",
        args: Sequence[str] = (),
        comfy: Path | None = None,
        cpu: bool = True,
        start_timeout: float = 120.0,
    ):
        """`base`: kept afterwards; temporary if None. `nodes`: more packs, folder name -> source.

        `folder`: this pack's own name under custom_nodes; the registry's id, or the repository's after a git clone.
        `args`: more of ComfyUI's options, such as "--cache-none". `comfy`: another ComfyUI than `locate()` finds.
        """
        self.comfy = comfy or locate()
        self._kept_base = base.resolve() if base else None
        self._nodes = {**standard_nodes(folder), **(nodes or {})}
        self._args = tuple(args)
        self._device = ("--cpu",) if cpu else ()
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._taken_signals: list[signal.Signals] = []

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until the server answers. If it does not, nothing is left running."""
        CACHE.mkdir(exist_ok=True)
        self.base = self._kept_base or Path(tempfile.mkdtemp(dir=CACHE, prefix="server-"))
        self.log = self.base / "server.log"
        atexit.register(self.stop)
        self._take_signals()
        try:
            fill_base(self.base, self._nodes)
            self._start_on_a_free_port()
        except BaseException:
            self.stop()
            raise
        self.client = Client(self.url, self.log_tail)

    def stop(self) -> None:
        """End the process group: asked first, killed when that takes too long or at a second Ctrl-C.

        Harmless when nothing runs.
        """
        try:
            self._end_process()
        finally:
            atexit.unregister(self.stop)
            while self._taken_signals:
                signal.signal(self._taken_signals.pop(), signal.SIG_DFL)
            self._put_base_away()

    @property
    def pid(self) -> int | None:
        """Of the server's process, which leads a process group of its own; None when it does not run."""
        return self._process.pid if self._process else None

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""

    def log_tail(self, lines: int = 40) -> str:
        tail = self.log_text().splitlines()[-lines:]
        return "\n".join(["The server's last words:", *(f"  | {line}" for line in tail)])

    def _start_on_a_free_port(self) -> None:
        """Between finding a port and the server taking it another program can be faster; then another one is tried."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = free_port()
            self.url = f"http://127.0.0.1:{self.port}"
            self._launch()
            try:
                self._wait_until_up()
                return
            except ServerError:
                self._end_process()
                taken = any(words in self.log_text().lower() for words in PORT_TAKEN)
                if not taken or attempt == PORT_ATTEMPTS:
                    raise

    def _launch(self) -> None:
        options = ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes"]
        options += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        front_end = os.environ.get("COMFYUI_FRONT_END")  # another one than is installed: its folder "static"
        options += ["--front-end-root", front_end] if front_end else []
        command = [sys.executable, str(self.comfy / "main.py"), *self._device, *options, *self._args]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.comfy,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, to be ended as a whole
            )

    def _wait_until_up(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline:
            status = self._process.poll()
            if status is not None:
                raise ServerError(f"ComfyUI in {self.comfy} ended with status {status} at start. {self._advice()}")
            if self._answers():
                return
            time.sleep(0.2)
        raise ServerError(
            f"ComfyUI in {self.comfy} did not answer on {self.url} within {self._start_timeout:.0f} s. {self._advice()}"
        )

    def _answers(self) -> bool:
        """Whether it is our server that answers: its command line names our base directory."""
        try:
            system: dict[str, Any] = Client(self.url, timeout=2.0).system_stats()["system"]
        except ServerError:
            return False
        return str(self.base) in system["argv"]

    def _advice(self) -> str:
        wanted = f"If a package is missing: {sys.executable} -m pip install -r {self.comfy / 'requirements.txt'}"
        return f"{wanted if CACHE not in self.comfy.parents else ''}\n{self.log_tail()}"

    def _take_signals(self) -> None:
        """Let a request to end or a closed terminal end the with-block as Ctrl-C does.

        By default these end this process on the spot, and the server would live on alone.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
                self._taken_signals.append(number)

    def _end_process(self) -> None:
        if self._process is None:
            return
        process = self._process
        try:
            signal_group(process, signal.SIGTERM)
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                signal_group(process, signal.SIGKILL)
                process.wait()
            self._process = None

    def _put_base_away(self) -> None:
        """Keep the log of a temporary base: it is what one looks for after a failure."""
        if self._kept_base is not None or not self.base.is_dir():
            return
        if self.log.is_file():
            shutil.copyfile(self.log, LAST_LOG)
        shutil.rmtree(self.base, ignore_errors=True)


def standard_nodes(folder: str = "ertacache") -> dict[str, Path]:
    """The packs every server gets: this one, and the tiny model's companion nodes."""
    return {folder: ROOT, "erta_demo": ROOT / "demo" / "tiny_wan"}


def fill_base(base: Path, nodes: Mapping[str, Path]) -> None:
    """The folders ComfyUI expects, with the packs and the demo's models linked in."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, source in nodes.items():
        link(source, base / "custom_nodes" / name)
    for model in (ROOT / "demo" / "models").glob("*.safetensors"):
        link(model, base / "models" / "diffusion_models" / model.name)


def link(source: Path, target: Path) -> None:
    """A symbolic link, or a copy where the system refuses one. What else stands at the target already is left alone."""
    source = source.resolve(strict=True)
    if target.is_symlink():
        target.unlink()
    if target.exists():
        return
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_COPIED))
        else:
            shutil.copyfile(source, target)


def environment() -> dict[str, str]:
    """The server's: no network for model hubs, unbuffered log, and the torchvision shim where it is needed."""
    result = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if needs_torchvision_shim():
        result["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SHIM), os.environ.get("PYTHONPATH")]))
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
