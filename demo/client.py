"""Talks to a ComfyUI server as the browser does: queue a workflow, follow its events, fetch what came out."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import websocket

API = dict[str, dict[str, Any]]  # a workflow in API format: node id -> {class_type, inputs, _meta}


class ServerError(RuntimeError):
    """The server did not start, stopped, fell silent or returned nonsense."""


class PromptError(ValueError):
    """The server refused a workflow. `node_errors` is its own account, node by node."""

    def __init__(self, error: dict[str, Any], node_errors: dict[str, Any]):
        self.error = error
        self.node_errors = node_errors
        lines = [f"the server refused the workflow: {error.get('message', error)} {error.get('details', '')}".rstrip()]
        for node_id, found in node_errors.items():
            for one in found["errors"]:
                lines.append(f"  node {node_id} ({found['class_type']}): {one['message']}: {one['details']}")
        super().__init__("\n".join(lines))


class WorkflowError(RuntimeError):
    """A node raised while the workflow ran."""

    def __init__(self, node_id: str, class_type: str, message: str, traceback: str = ""):
        self.node_id = node_id
        self.class_type = class_type
        self.message = message
        self.traceback = traceback
        super().__init__(f"node {node_id} ({class_type}): {message}\n{traceback}".rstrip())


class WorkflowInterrupted(WorkflowError):
    """Somebody cancelled the run."""


class Event(NamedTuple):
    """One message of the server. Previews have type "binary" and their bytes as data."""

    type: str
    data: Any
    seconds: float  # since the workflow was queued


class Client:
    """One conversation with one server. `events` holds what the last `run` received, custom events included."""

    def __init__(self, url: str, log_tail: Callable[[], str] = str, *, timeout: float = 60.0, silence: float = 600.0):
        """`log_tail` gives the server's last words when it dies. `timeout`: for one request, in seconds.

        `silence`: how long a run may go on without any event.
        """
        self.url = url
        self.client_id = uuid.uuid4().hex
        self.events: list[Event] = []
        self._log_tail = log_tail
        self._timeout = timeout
        self._silence = silence

    def run(
        self,
        prompt: API,
        extra_pnginfo: dict[str, Any] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> dict[str, Any]:
        """Queue, wait until done, return the history entry: outputs by node id under "outputs".

        The socket is opened first, so that no event is lost.
        """
        self.events = []
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        socket = websocket.create_connection(address, timeout=self._silence)
        try:
            started = time.monotonic()
            prompt_id = self.queue(prompt, extra_pnginfo)
            for event in self._events_of(socket, prompt_id, started):
                self.events.append(event)
                if on_event is not None:
                    on_event(event)
        finally:
            socket.close()
        return self._finished(prompt_id)

    def queue(self, prompt: API, extra_pnginfo: dict[str, Any] | None = None) -> str:
        """Queue and return the prompt id.

        Where only some outputs are invalid the server runs the others and reports success; here that is an error too,
        and the run is taken back.
        """
        payload: dict[str, Any] = {"prompt": prompt, "client_id": self.client_id}
        if extra_pnginfo is not None:
            payload["extra_data"] = {"extra_pnginfo": extra_pnginfo}
        answer = json.loads(self._request("/prompt", payload))
        if answer["node_errors"]:
            self._request("/queue", {"delete": [answer["prompt_id"]]})
            self._request("/interrupt", {"prompt_id": answer["prompt_id"]})
            raise PromptError({"message": "some of its outputs are invalid"}, answer["node_errors"])
        return str(answer["prompt_id"])

    def interrupt(self) -> None:
        """Cancel what is running."""
        self._request("/interrupt", {})

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The server's record of a finished run: prompt, outputs, status."""
        found = json.loads(self._request(f"/history/{prompt_id}"))
        if prompt_id not in found:
            raise LookupError(f"the server has no finished run {prompt_id}")
        return dict(found[prompt_id])

    def object_info(self, node_id: str | None = None) -> dict[str, Any]:
        """How one node type declares itself; without an id, all of them by id."""
        if node_id is None:
            return dict(json.loads(self._request("/object_info")))
        found = json.loads(self._request(f"/object_info/{urllib.parse.quote(node_id)}"))
        if node_id not in found:
            raise LookupError(f"the server has no node type {node_id!r}: see its log for packs that failed to import")
        return dict(found[node_id])

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """The bytes of an output file; takes the entries of history outputs as they are: view(**entry)."""
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        return self._request(f"/view?{query}")

    def system_stats(self) -> dict[str, Any]:
        return dict(json.loads(self._request("/system_stats")))

    def _request(self, path: str, payload: dict[str, Any] | None = None) -> bytes:
        """GET, or POST if there is a payload. Only the server's own refusals of a workflow become PromptError."""
        body = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as problem:
            text = problem.read().decode(errors="replace")
            if path == "/prompt" and problem.code == 400:
                refusal = json.loads(text)
                raise PromptError(refusal["error"], refusal["node_errors"]) from None
            raise ServerError(f"{path}: HTTP {problem.code} {problem.reason}: {text[:500]}") from None
        except OSError as problem:
            raise ServerError(f"{self.url}{path}: {problem}\n{self._log_tail()}".rstrip()) from problem

    def _events_of(self, socket: websocket.WebSocket, prompt_id: str, started: float):
        """The events of this run up to its end; events that name another run are left out."""
        while True:
            event = self._receive(socket, started)
            of_this_run = isinstance(event.data, bytes) or event.data.get("prompt_id", prompt_id) == prompt_id
            if not of_this_run:
                continue
            yield event
            if event.type == "execution_success":
                return
            if event.type == "execution_error":
                data = event.data
                message = f"{data['exception_type']}: {data['exception_message'].strip()}"
                raise WorkflowError(data["node_id"], data["node_type"], message, "".join(data["traceback"]))
            if event.type == "execution_interrupted":
                raise WorkflowInterrupted(event.data["node_id"], event.data["node_type"], "the run was cancelled")

    def _receive(self, socket: websocket.WebSocket, started: float) -> Event:
        try:
            message = socket.recv()
        except websocket.WebSocketTimeoutException:
            raise ServerError(f"no event for {self._silence:.0f} s\n{self._log_tail()}".rstrip()) from None
        except (websocket.WebSocketException, OSError) as problem:
            raise ServerError(f"the connection broke: {problem}\n{self._log_tail()}".rstrip()) from problem
        seconds = time.monotonic() - started
        if isinstance(message, bytes):
            return Event("binary", message, seconds)
        if not message:
            raise ServerError(f"the server closed the connection\n{self._log_tail()}".rstrip())
        parsed = json.loads(message)
        return Event(parsed["type"], parsed["data"], seconds)

    def _finished(self, prompt_id: str) -> dict[str, Any]:
        """The server announces success a moment before it writes the history."""
        for _ in range(100):
            try:
                return self.history(prompt_id)
            except LookupError:
                time.sleep(0.05)
        raise ServerError(f"run {prompt_id} ended in success but left no history\n{self._log_tail()}".rstrip())
