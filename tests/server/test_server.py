"""A real server: it comes up with the pack, runs workflows, reports what goes wrong, and leaves nothing behind."""

from __future__ import annotations

import re
import socket
import urllib.request
from pathlib import Path

import pytest

from ertacache.demo.comfyui import version
from ertacache.demo.server import (
    Client,
    ComfyServer,
    Event,
    PromptError,
    ServerError,
    WorkflowError,
    WorkflowInterrupted,
)

PNG = b"\x89PNG"


def node(class_type: str, **inputs: object) -> dict[str, object]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def picture(size: int = 16) -> dict[str, object]:
    return node("EmptyImage", width=size, height=size, batch_size=1, color=0x336699)


def test_it_is_the_comfyui_we_asked_for(server: ComfyServer, comfy_path: Path):
    system = server.client.system_stats()["system"]
    assert system["comfyui_version"] == version(comfy_path)


def test_the_packs_are_imported(server: ComfyServer):
    """ComfyUI lists them with their import times. (Some of its own extra nodes lack optional packages here.)"""
    log = server.log_text()
    for pack in ("ertacache", "erta_demo"):
        assert re.search(rf"seconds: .*custom_nodes/{pack}$", log, re.MULTILINE), log


def test_the_front_end_is_served(server: ComfyServer):
    with urllib.request.urlopen(server.url) as answer:
        assert b"<html" in answer.read()


def test_a_workflow_runs_and_its_picture_can_be_fetched(server: ComfyServer):
    heard: list[Event] = []
    entry = server.client.run(
        {"1": picture(), "2": node("SaveImage", images=["1", 0], filename_prefix="test")}, on_event=heard.append
    )
    (saved,) = entry["outputs"]["2"]["images"]
    assert server.client.view(**saved).startswith(PNG)
    assert heard == server.client.events
    executed = [event.data["node"] for event in heard if event.type == "executed"]
    assert executed == ["2"]


def test_a_refused_workflow_says_which_input_is_wrong(server: ComfyServer):
    with pytest.raises(PromptError, match=r"node 1 \(EmptyImage\): .*width"):
        server.client.run({"1": {**picture(), "inputs": {}}, "2": node("PreviewImage", images=["1", 0])})


def test_a_workflow_with_one_bad_output_is_refused_too(server: ComfyServer):
    prompt = {"1": picture(), "2": node("PreviewImage", images=["1", 0]), "3": node("PreviewImage", images=["9", 0])}
    with pytest.raises(PromptError):
        server.client.run(prompt)


def test_an_error_in_a_node_names_it(server: ComfyServer):
    prompt = {"1": picture(), "2": node("SaveImage", images=["1", 0], filename_prefix="../../outside")}
    with pytest.raises(WorkflowError, match="outside the output folder") as caught:
        server.client.run(prompt)
    assert (caught.value.node_id, caught.value.class_type) == ("2", "SaveImage")
    assert "Traceback" in caught.value.traceback or "save_images" in caught.value.traceback


def test_a_cancelled_run_is_no_error(server: ComfyServer):
    """ComfyUI looks for a cancellation before each node, so it comes while an earlier one is at work."""
    prompt = {
        "1": picture(1024),
        "2": node("ImageScale", image=["1", 0], upscale_method="lanczos", width=6144, height=6144, crop="disabled"),
        "3": node("PreviewImage", images=["2", 0]),
    }

    def cancel(event: Event) -> None:
        if event.type == "executing" and event.data["node"] == "2":
            server.client.interrupt()

    with pytest.raises(WorkflowInterrupted):
        server.client.run(prompt, on_event=cancel)


def test_an_unknown_node_type_is_a_clear_error(server: ComfyServer):
    with pytest.raises(LookupError, match="'NoSuchNode'"):
        server.client.object_info("NoSuchNode")
    assert "required" in server.client.object_info("KSampler")["input"]


def test_a_dead_server_is_a_clear_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{unused.getsockname()[1]}", log_tail=lambda: "last words")
        with pytest.raises(ServerError, match="last words"):
            client.system_stats()


def test_nothing_is_left_after_an_error_in_the_block(tmp_path: Path):
    """The real server, with a cache option, in a base directory of ours."""
    with pytest.raises(ZeroDivisionError), ComfyServer(tmp_path / "base", args=["--cache-none"]) as server:
        pid, port = server.pid, server.port
        assert pid is not None
        assert "--cache-none" in server.client.system_stats()["system"]["argv"]
        _ = 1 / 0
    assert not Path(f"/proc/{pid}").exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert (tmp_path / "base" / "server.log").is_file()
