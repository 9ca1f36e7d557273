"""What an artist does between prompts: queueing two, bypassing, muting, deleting and copying the node, changing what
lies before it. (What the browser then sends has no such node, and for a muted one nothing that needs it either.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import websocket

from ertacache.demo.server import ComfyServer, Event, WorkflowInterrupted
from ertacache.tests.server.test_nodes import Bench, cached, full, make_bench, node, profiling, report, save
from ertacache.tests.server.test_soak import one_thread

__all__ = ["make_bench", "one_thread"]  # fixtures

WIDE = {"empty": node("EmptyHunyuanLatentVideo", width=64, height=32, length=5, batch_size=1)}


def small(**nodes: Any) -> dict[str, Any]:
    empty = node("EmptyHunyuanLatentVideo", width=32, height=32, length=5, batch_size=1)
    return {"empty": empty, "save": save(), **nodes}


def patch(model: str = "model") -> dict[str, Any]:
    return node("ERTACache", model=[model, 0], speed=2.0, profile=["profile", 0])


LOAD = {"profile": node("ERTALoadProfile", name="queue")}


@pytest.fixture(scope="module")
def server(one_thread: None) -> Iterator[ComfyServer]:
    """In place of the one that all share: hundreds of tiny renders are many times faster on one thread."""
    with ComfyServer() as running:
        yield running


@pytest.fixture(scope="module")
def bench(make_bench: Callable[[], Bench]) -> Bench:
    return make_bench()


@pytest.fixture(scope="module")
def fresh(bench: Bench) -> dict[str, torch.Tensor]:
    """Full renders of a server in which no node of ours has run yet."""
    found = {
        "small": bench.latent(bench.run(**small(sampler=full()))),
        "wide": bench.latent(bench.run(**small(**WIDE, sampler=full()))),
    }
    bench.run(**small(sampler=full(), profile=profiling("queue", runs=1)))
    return found


def test_bypassed_muted_or_deleted_the_node_leaves_nothing_behind(bench: Bench, fresh: dict[str, torch.Tensor]) -> None:
    """T17, and at a size that the node has not seen."""
    bench.run(**small(**LOAD, patch=patch(), sampler=full("patch")))
    (event,) = bench.heard("ertacache.report")
    assert event["report"]["reused"] == 6
    bypassed = bench.run(**small(**LOAD, sampler=full(steps=12, cfg=3.0)))
    wide = bench.run(**small(**WIDE, sampler=full()))
    assert not bench.heard("ertacache.report")
    assert torch.equal(bench.latent(bypassed), fresh["small"])
    assert torch.equal(bench.latent(wide), fresh["wide"])


def test_a_branch_with_and_one_without_the_node_do_not_touch(bench: Bench, fresh: dict[str, torch.Tensor]) -> None:
    graph = {"with": full("patch", seed=21), "sampler": full(seed=5, denoise=1.0), "kept": save("with")}
    outputs = bench.run(**small(**LOAD, patch=patch(), **graph))
    assert torch.equal(bench.latent(outputs), fresh["small"])
    assert len(bench.heard("ertacache.report")) == 1


def test_a_copied_node_has_a_report_of_its_own(bench: Bench, fresh: dict[str, torch.Tensor]) -> None:
    graph = {"sampler": full("patch", seed=31), "other": full("copy", seed=31), "kept": save("other")}
    outputs = bench.run(**small(**LOAD, patch=patch(), copy=patch(), **graph))
    assert sorted(event["node"] for event in bench.heard("ertacache.report")) == ["copy", "patch"]
    assert torch.equal(bench.latent(outputs), bench.latent(outputs, "kept"))


def test_a_change_upstream_is_seen_and_named(bench: Bench, fresh: dict[str, torch.Tensor]) -> None:
    """T18: only what lies before the node is changed, and changed back."""
    shift = node("ModelSamplingSD3", model=["model", 0], shift=3.0)
    latents, notes = [], []
    for nodes in ({"patch": patch()}, {"shift": shift, "patch": patch("shift")}, {"patch": patch()}):
        outputs = bench.run(**small(**LOAD, **nodes, sampler=full("patch", seed=41)))
        (event,) = bench.heard("ertacache.report")
        assert event["report"]["computed"] == 6
        latents.append(bench.latent(outputs))
        notes.append([note["values"].get("field") for note in event["report"]["notes"]])
    assert "shift" in notes[1] and "shift" not in notes[0] + notes[2]
    assert torch.equal(latents[0], latents[2]) and not torch.equal(latents[0], latents[1])


def test_two_queued_prompts_are_what_each_is_alone(bench: Bench, fresh: dict[str, torch.Tensor]) -> None:
    client = bench.server.client
    graphs = [small(**LOAD, sampler=cached(profile=["profile", 0], seed=seed)) for seed in (51, 52, 53)]
    queued = [client.queue(bench.graph(**graph)) for graph in graphs]
    entries = [finished(bench, prompt_id)["outputs"] for prompt_id in queued]
    alone = [bench.run(**small(**LOAD, sampler=cached(profile=["profile", 0], seed=seed))) for seed in (52, 53, 51)]
    for entry, other in zip(entries, (alone[2], alone[0], alone[1]), strict=True):
        assert report(entry)["computed"] == report(other)["computed"] == 6
        assert torch.equal(bench.latent(entry), bench.latent(other))


def finished(bench: Bench, prompt_id: str) -> dict[str, Any]:
    for _ in range(600):
        try:
            return bench.server.client.history(prompt_id)
        except LookupError:
            time.sleep(0.1)
    raise AssertionError(f"prompt {prompt_id} is not finished after a minute")


def test_a_queued_prompt_is_right_after_the_one_before_it_is_cancelled(
    bench: Bench, fresh: dict[str, torch.Tensor]
) -> None:
    queued: list[str] = []
    graph = small(**LOAD, sampler=cached(profile=["profile", 0], seed=51))

    def cancel(event: Event) -> None:
        if event.type == "progress" and event.data["value"] >= 3 and not queued:
            queued.append(bench.server.client.queue(bench.graph(**graph)))
            bench.server.client.interrupt()

    with pytest.raises(WorkflowInterrupted):
        bench.run(None, cancel, **small(**LOAD, patch=patch(), sampler=full("patch", steps=400)))
    after = finished(bench, queued[0])["outputs"]
    assert torch.equal(bench.latent(after), bench.latent(bench.run(**graph)))
    assert torch.equal(bench.latent(bench.run(**small(sampler=full()))), fresh["small"])


@pytest.mark.parametrize("kind", ["sampler", "patch"])
def test_what_a_program_queues_without_a_client_id_reaches_no_browser(
    bench: Bench, fresh: dict[str, torch.Tensor], kind: str
) -> None:
    """ComfyUI sends to everybody what it sends to nobody in particular."""
    nodes = {"sampler": cached(profile=["profile", 0], seed=61)}
    if kind == "patch":
        nodes = {"patch": patch(), "sampler": full("patch", seed=62)}
    client = bench.server.client
    browser = websocket.create_connection(f"{client.url.replace('http', 'ws', 1)}/ws?clientId=a-browser", timeout=60)
    answer = client._request("/prompt", {"prompt": bench.graph(**small(**LOAD, **nodes))})
    finished(bench, json.loads(answer)["prompt_id"])
    client._request("/prompt", {"prompt": bench.graph(**small(**LOAD, **nodes)), "client_id": "a-browser"})
    heard = []
    while "execution_success" not in heard:
        heard.append(json.loads(browser.recv())["type"])
    browser.close()
    assert "execution_cached" in heard and not [event for event in heard if event.startswith("ertacache")]
