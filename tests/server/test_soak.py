"""Many prompts in a row on one server, with changing settings, cancelled and failing ones among them.

A short version runs by default; ERTA_SOAK=200 makes it as many prompts as it says, and prints what it measured (with
pytest's -s). The server's memory must not grow by more than MAX_GROWTH after the first ten prompts, no thread or file
handle may be left, and every latent must be to the bit what a fresh server gives.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from ertacache.demo.server import ComfyServer, Event, PromptError, WorkflowError, WorkflowInterrupted
from ertacache.tests.server.test_nodes import Bench, cached, custom, full, node, profiling, save

PROMPTS = int(os.environ.get("ERTA_SOAK", "30"))
WARM = 10
MAX_GROWTH = 32 * 2**20  # bytes; of this ComfyUI's history, which keeps every prompt and its outputs, takes a part
MODEL = "soak_wan.safetensors"


def empty(width: int = 32, length: int = 5, batch: int = 1) -> dict[str, Any]:
    return node("EmptyHunyuanLatentVideo", width=width, height=32, length=length, batch_size=batch)


def patched(sampler: dict[str, Any], **settings: Any) -> dict[str, Any]:
    patch = node("ERTACache", model=["model", 0], **{"speed": 2.0, **settings})
    return {"patch": patch, "sampler": sampler}


LOAD = {"profile": node("ERTALoadProfile", name="soak")}
LINK = {"profile": ["profile", 0]}
CUSTOM = {
    "sigmas": node("BasicScheduler", model=["patch", 0], scheduler="simple", steps=9, denoise=1.0),
    "euler": node("KSamplerSelect", sampler_name="euler"),
}

# What an artist changes from prompt to prompt. All of them find the profile that the first prompt records.
GRAPHS: dict[str, dict[str, Any]] = {
    "plain": {"sampler": cached(steps=10)},
    "another seed": {"sampler": cached(steps=10, seed=6)},
    "faster": {"sampler": cached(3.0, steps=16)},
    "full": {"sampler": cached(1.0, steps=6)},
    "wide": {"empty": empty(64), "sampler": cached(steps=10)},
    "long": {"empty": empty(length=9), "sampler": cached(steps=10)},
    "two at once": {"empty": empty(batch=2), "sampler": cached(steps=10)},
    "paper": {"sampler": cached(2.0, mode="paper", steps=10, level="output", **LINK), **LOAD},
    "blocks": {"sampler": cached(2.0, mode="paper", steps=10, without_profile="built-in plan")},
    "heun": {"sampler": cached(1.5, steps=8, sampler_name="heun", without_profile="built-in plan")},
    "ancestral": {"sampler": cached(2.0, steps=10, sampler_name="euler_ancestral")},
    "from the middle": {"sampler": cached(2.0, steps=12, denoise=0.6)},
    "patch": patched(full("patch", steps=10), **LINK) | LOAD,
    "patch, custom": patched(custom("sigmas")) | CUSTOM,
    "bypassed": {"sampler": full(steps=6)},
    "unknown sampler": {"sampler": cached(2.0, steps=5, sampler_name="dpm_adaptive", without_profile="built-in plan")},
    "recorded anew": {"sampler": full(steps=6), "again": profiling("soak-again", steps=8, runs=1)},
}

FAILING: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (WorkflowError, "does not ship", {"sampler": cached(preset="renamed")}),
    (PromptError, "profile name", {"sampler": cached(**LINK), "profile": node("ERTALoadProfile", name="../x")}),
    (WorkflowError, "no ERTA Cache", {"sampler": custom("moved", "model"), **CUSTOM, "patch": full()}),
    (WorkflowError, "profile name", {"sampler": full(), "text": node("PrimitiveString", value=".."), "p": {}}),
]
FAILING[2][2].update(
    patch=node("ERTACache", model=["model", 0], speed=1.0),
    moved=node("ERTATimestepAdjuster", model=["model", 0], sigmas=["sigmas", 0]),
)
FAILING[3][2].update(p=profiling(["text", 0]))  # type: ignore[arg-type]


class Process:
    """What the system says of a server's process."""

    def __init__(self, server: ComfyServer) -> None:
        self.folder = Path(f"/proc/{server.pid}")

    def measure(self) -> tuple[int, int, int]:
        """Resident bytes, threads, open files; a moment later, as the last prompt's connection is closed by then."""
        time.sleep(0.5)
        resident = int((self.folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return resident, len(list((self.folder / "task").iterdir())), len(list((self.folder / "fd").iterdir()))


def bench_on(server: ComfyServer) -> Bench:
    from ertacache.tests.comfy.conftest import wan_weights

    safetensors.torch.save_file(wan_weights(seed=98), server.base / "models" / "diffusion_models" / MODEL)
    bench = Bench(server, MODEL)
    bench.run(empty=empty(), profile=profiling("soak", steps=10, runs=1))
    return bench


def render(bench: Bench, graph: dict[str, Any], hear: Callable[[Event], None] | None = None) -> torch.Tensor:
    return bench.latent(bench.run(None, hear, **{"empty": empty(), **graph, "save": save()}))


def cancel(bench: Bench, chance: random.Random) -> None:
    """A run that is stopped at some step; newer versions of ComfyUI do not report every one."""
    after, asked = chance.randint(1, 6), []

    def stop(event: Event) -> None:
        if event.type == "progress" and event.data["value"] >= after and not asked:
            asked.append(event)
            bench.server.client.interrupt()

    with pytest.raises(WorkflowInterrupted):
        render(bench, {"sampler": cached(chance.choice((1.5, 2.0)), steps=400, seed=chance.randrange(1000))}, stop)


def fail(bench: Bench, chance: random.Random) -> None:
    kind, message, graph = chance.choice(FAILING)
    with pytest.raises(kind, match=message):
        render(bench, graph)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For the servers of this file: so small a model is no faster on more, and much slower where they are taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def expected(comfy: ModuleType) -> dict[str, torch.Tensor]:
    """Each graph's latent from a server that has run nothing but the recording and each of these once."""
    with ComfyServer() as server:
        bench = bench_on(server)
        return {name: render(bench, graph) for name, graph in GRAPHS.items()}


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc to measure a process by")
def test_many_prompts_in_a_row_leave_nothing_behind(expected: dict[str, torch.Tensor]) -> None:
    chance, done = random.Random(0), {}
    with ComfyServer() as server:
        bench, process = bench_on(server), Process(server)
        for number in range(1, PROMPTS + 1):
            if number % 7 == 3:
                cancel(bench, chance)
            elif number % 7 == 5:
                fail(bench, chance)
            else:
                name = chance.choice(sorted(GRAPHS))
                latent = render(bench, GRAPHS[name])
                assert torch.equal(latent, expected[name]), f"prompt {number}, {name}"
            if number in (WARM, 50, 100, PROMPTS):
                done[number] = process.measure()
                print(f"after {number} prompts: {done[number][0] / 2**20:.1f} MB, threads, files: {done[number][1:]}")  # noqa: T201
        (began, threads, files), (ended, threads_now, files_now) = done[WARM], done[PROMPTS]
        # ComfyUI's own pool of threads grows to its size with the work it gets.
        assert threads_now <= threads + 2 and files_now <= files + 2, done
        assert ended - began < MAX_GROWTH, done
