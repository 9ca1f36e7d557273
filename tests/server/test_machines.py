"""Several machines that get one prompt: two servers, with a store for each or one for both.

ComfyUI-Distributed itself is run where ERTA_DISTRIBUTED_PATH names a checkout of it; nothing is written there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from ertacache.demo.server import ComfyServer
from ertacache.tests.server.test_nodes import Bench, cached, codes, node, profiling, report, save
from ertacache.tests.server.test_soak import one_thread

__all__ = ["one_thread"]  # a fixture

# As ComfyUI-Distributed marks what it sends: in the inputs of its own nodes.
SENT = {"job": node("SaveLatent", samples=["sampler", 0], filename_prefix="job", multi_job_id="exec_1_4")}


class Machines:
    """Two servers that have one model; the store of ``away`` is its own, or that of ``here``."""

    def __init__(self, here: Bench, away: Bench):
        self.here, self.away = here, away

    def run(self, **nodes: Any) -> list[tuple[dict[str, Any], torch.Tensor]]:
        """(report of the sampler, latent) of one prompt that both get at the same time."""
        return self.run_each(nodes, nodes)

    def run_each(self, *nodes: dict[str, Any]) -> list[tuple[dict[str, Any], torch.Tensor]]:
        with ThreadPoolExecutor() as pool:
            outputs = list(pool.map(lambda bench, graph: bench.run(**graph), (self.here, self.away), nodes))
        return [(report(one), bench.latent(one)) for bench, one in zip((self.here, self.away), outputs, strict=True)]

    def stored(self) -> list[set[str]]:
        return [{path.name for path in bench.store.glob("*")} for bench in (self.here, self.away)]


@pytest.fixture(scope="module")
def make_machines(one_thread: None, comfy: ModuleType, server: ComfyServer) -> Iterator[Callable[[], Machines]]:
    from ertacache.tests.comfy.conftest import wan_weights

    seeds = count(700)
    with ComfyServer() as other:

        def make() -> Machines:
            seed = next(seeds)
            name = f"random_wan_{seed}.safetensors"
            for one in (server, other):
                safetensors.torch.save_file(wan_weights(seed=seed), one.base / "models" / "diffusion_models" / name)
            return Machines(Bench(server, name), Bench(other, name))

        yield make


@pytest.fixture
def one_store(make_machines: Callable[[], Machines]) -> Iterator[Machines]:
    machines = make_machines()
    own, common = machines.away.store, machines.here.store
    common.mkdir(parents=True, exist_ok=True)
    if own.exists():
        own.rename(own.with_name("aside"))
    own.parent.mkdir(parents=True, exist_ok=True)
    own.symlink_to(common, target_is_directory=True)
    yield machines
    own.unlink()
    if own.with_name("aside").exists():
        own.with_name("aside").rename(own)


def same(found: list[tuple[dict[str, Any], torch.Tensor]]) -> bool:
    return all(torch.equal(found[0][1], latent) for _, latent in found[1:])


def test_machines_with_one_store_that_record_at_once_keep_one_profile(one_store: Machines) -> None:
    """Each with a seed of its own, as Distributed's seed node gives them."""
    before, _ = one_store.stored()
    found = one_store.run_each(*({"sampler": cached(seed=seed), "save": save()} for seed in (1, 2)))
    after, _ = one_store.stored()
    assert len(after - before) == 1
    assert {codes(one)[-1] for one, _ in found} <= {"recorded", "recorded_elsewhere"}
    again = one_store.run(sampler=cached(seed=9), save=save())
    assert same(again) and all(one["reused"] for one, _ in again)


def test_without_a_profile_every_machine_makes_the_same_plan(make_machines: Callable[[], Machines]) -> None:
    found = make_machines().run(sampler=cached(without_profile="built-in plan"), save=save())
    assert same(found) and found[0][0]["plan"] == found[1][0]["plan"] and found[0][0]["reused"]


def test_a_plan_in_the_prompt_is_followed_whatever_lies_in_the_store(make_machines: Callable[[], Machines]) -> None:
    machines = make_machines()
    other = cached(seed=8, cfg=5.0, scheduler="normal")
    machines.run_each({"sampler": cached(), "save": save()}, {"sampler": other, "save": save()})
    plan, differs = (one["plan"] for one, _ in machines.run(sampler=cached(seed=6), save=save()))
    assert plan != differs
    sent = machines.run(sampler=cached(seed=6, plan=plan), save=save())
    assert same(sent) and [one["plan"] for one, _ in sent] == [plan] * 2


def test_a_prompt_that_distributed_sends_is_the_same_from_the_first_render_on(
    make_machines: Callable[[], Machines],
) -> None:
    """Whether the other machine has no profile, another one, or another one under the name of the one connected."""
    machines = make_machines()
    machines.here.run(profile=profiling("machines", runs=1))
    before = machines.stored()
    plans = []
    for seed, profile in enumerate(({}, {}, {"profile": ["profile", 0]}, {"profile": ["profile", 0]})):
        if seed == 1:
            machines.away.run(profile=profiling("machines", runs=1, cfg=5.0, scheduler="normal"))
            before[1].add("machines.safetensors")
        plan = plans[-1] if seed == 3 else ""
        load = {"profile": node("ERTALoadProfile", name="machines")}
        found = machines.run(**load, sampler=cached(seed=seed, plan=plan, **profile), save=save(), **SENT)
        assert same(found)
        assert all(one["reused"] and "several_machines" in codes(one) for one, _ in found)
        plans.append(found[0][0]["plan"])
    own = machines.here.run(**load, sampler=cached(profile=["profile", 0]), save=save())
    assert len(set(plans)) == 1 and report(own)["plan"] not in plans
    sent = machines.run(**load, sampler=cached(seed=7, plan=report(own)["plan"]), save=save(), **SENT)
    assert same(sent) and "carried" in codes(sent[1][0])
    assert machines.stored() == before


def test_with_no_worker_on_distributeds_prompts_are_as_others(make_machines: Callable[[], Machines]) -> None:
    machines = make_machines()
    alone = node("SaveLatent", samples=["sampler", 0], multi_job_id="exec_1_4", enabled_worker_ids="[]")
    for more, expected in (({}, "recorded"), ({"load_balance": True}, "several_machines")):
        alone["inputs"] |= {"filename_prefix": "job", **more}
        outputs = machines.here.run(sampler=cached(seed=len(more)), save=save(), job=alone)
        assert expected in codes(report(outputs))


# A node between the sampler and Distributed's collector: workers get nothing that the collector does not need, so a
# latent can only be kept on the way to it.
KEEPING = """
import itertools, pathlib
import folder_paths, safetensors.torch, torch

class KeepLatent:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"latent": ("LATENT",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "keep", "tests"

    def keep(self, latent):
        folder = pathlib.Path(folder_paths.get_output_directory())
        name = next(f"kept-{n}" for n in itertools.count() if not (folder / f"kept-{n}").exists())
        safetensors.torch.save_file({"latent": latent["samples"].contiguous()}, folder / name)
        return (torch.zeros(1, 8, 8, 3),)

NODE_CLASS_MAPPINGS = {"KeepLatent": KeepLatent}
"""


class Distributed:
    """A master and two workers; ``send`` queues on the master as the browser does, and workers get their share."""

    def __init__(self, master: Bench, *workers: Bench):
        self.master, self.workers = master, workers

    @property
    def all(self) -> tuple[Bench, ...]:
        return self.master, *self.workers

    def send(self, **nodes: Any) -> list[tuple[dict[str, Any], torch.Tensor]]:
        """(report of the sampler, latent) on each machine."""
        graph = {"kept": node("KeepLatent", latent=["sampler", 0]), "preview": node("PreviewImage", images=["all", 0])}
        graph |= {"all": node("DistributedCollector", images=["kept", 0], load_balance=False), **nodes}
        body = {"prompt": self.master.graph(**graph), "client_id": "a-browser", "workflow": {"nodes": []}}
        sent = [_history(bench).keys() for bench in self.all]
        ids = ["0", "1"]
        answer = self.master.server.client._request("/distributed/queue", {**body, "enabled_worker_ids": ids})
        assert json.loads(answer)["worker_count"] == 2
        return [self._result(bench, old) for bench, old in zip(self.all, sent, strict=True)]

    def _result(self, bench: Bench, old: Any) -> tuple[dict[str, Any], torch.Tensor]:
        for _ in range(600):
            new = [entry for key, entry in _history(bench).items() if key not in old]
            if new:
                newest = max((bench.server.base / "output").glob("kept-*"), key=lambda path: int(path.name[5:]))
                return report(new[0]["outputs"]), safetensors.torch.load_file(newest)["latent"]
            time.sleep(0.1)
        raise AssertionError(f"not rendered after a minute\n{bench.server.log_tail()}")


def _history(bench: Bench) -> dict[str, Any]:
    return json.loads(bench.server.client._request("/history"))


@pytest.fixture(scope="module")
def distributed(one_thread: None, comfy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distributed]:
    """The real ComfyUI-Distributed on loopback, from a copy: it writes its settings into its own folder."""
    from ertacache.tests.comfy.conftest import wan_weights

    checkout = os.environ.get("ERTA_DISTRIBUTED_PATH")
    if not checkout:
        pytest.skip("ERTA_DISTRIBUTED_PATH names no checkout of ComfyUI-Distributed")
    folder = tmp_path_factory.mktemp("packs")
    pack, keeping = folder / "ComfyUI-Distributed", folder / "keeping"
    shutil.copytree(Path(checkout), pack, ignore=shutil.ignore_patterns(".git"))
    keeping.mkdir()
    (keeping / "__init__.py").write_text(KEEPING, encoding="utf-8")
    with ExitStack() as running:
        more = {pack.name: pack, keeping.name: keeping}
        servers = [running.enter_context(ComfyServer(nodes=more)) for _ in range(3)]
        for one in servers:
            target = one.base / "models" / "diffusion_models" / "wan.safetensors"
            safetensors.torch.save_file(wan_weights(seed=790), target)
        workers = [
            {"id": str(n), "name": f"worker {n}", "host": "127.0.0.1", "port": one.port, "enabled": True}
            for n, one in enumerate(servers[1:])
        ]
        (pack / "gpu_config.json").write_text(json.dumps({"workers": workers}), encoding="utf-8")
        yield Distributed(*(Bench(one, "wan.safetensors") for one in servers))


def test_distributed_renders_the_same_on_its_master_and_on_its_workers(distributed: Distributed) -> None:
    """The master has a profile, a worker another, a worker none; then the prompt carries the plan of the master's."""
    master, other, _ = distributed.all
    master.run(sampler=cached(), save=save())
    own = master.run(sampler=cached(seed=6), save=save())
    other.run(sampler=cached(seed=8, cfg=5.0, scheduler="normal"), save=save())
    stored = [set(bench.store.glob("*")) for bench in distributed.all]
    found = distributed.send(sampler=cached(seed=11))
    assert same(found)
    assert all(one["reused"] and "several_machines" in codes(one) for one, _ in found)

    plan = report(own)["plan"]
    carried = distributed.send(sampler=cached(seed=6, plan=plan))
    assert same(carried) and torch.equal(carried[0][1], master.latent(own))
    assert {one["plan"] for one, _ in carried} == {plan}
    assert [set(bench.store.glob("*")) for bench in distributed.all] == stored


def test_distributed_seeds_render_what_one_machine_renders_with_each(distributed: Distributed) -> None:
    master = distributed.master
    plan = report(master.run(sampler=cached(seed=30), save=save()))["plan"]
    found = distributed.send(seed=node("DistributedSeed", seed=30), sampler=cached(seed=["seed", 0], plan=plan))
    for offset, (_, latent) in enumerate(found):
        alone = master.run(sampler=cached(seed=30 + offset, plan=plan), save=save())
        assert torch.equal(latent, master.latent(alone))
