"""Mutated profiles and plans through a real server: each prompt ends with a clear error or with a picture, and the
server goes on and renders what it rendered before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ertacache.demo.server import WorkflowError
from ertacache.tests.core import test_hostile_plans as plans
from ertacache.tests.core import test_hostile_profiles as profiles
from ertacache.tests.server.test_nodes import Bench, cached, codes, full, make_bench, node, profiling, report
from ertacache.tests.server.test_queue import bench, server, small
from ertacache.tests.server.test_soak import one_thread

__all__ = ["bench", "make_bench", "one_thread", "server"]  # fixtures

MUTATED = 100
STEPS = 12


@pytest.fixture(scope="module")
def plain(bench: Bench) -> torch.Tensor:
    """The render without a cache, which none of the others may be far from."""
    return bench.latent(bench.run(**small(sampler=full())))


def check(bench: Bench, outputs: dict[str, Any], plain: torch.Tensor) -> dict[str, Any]:
    latent, found = bench.latent(outputs), report(outputs)
    assert torch.isfinite(latent).all()
    assert latent.norm() < 10.0 * plain.norm()
    assert found["calls"] == STEPS and found["computed"] + found["reused"] == STEPS
    return found


def still_right(bench: Bench, plain: torch.Tensor) -> None:
    assert torch.equal(bench.latent(bench.run(**small(sampler=full(seed=5)))), plain)
    assert bench.server.pid is not None


def test_mutated_profiles_in_the_store(bench: Bench, plain: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(**small(profile=profiling("original", runs=2), sampler=cached(profile=["profile", 0])))
    original, hostile = (bench.store / f"{name}.safetensors" for name in ("original", "hostile"))
    monkeypatch.setattr(profiles, "GOOD", original.read_bytes())
    graph = small(profile=node("ERTALoadProfile", name="hostile"), sampler=cached(profile=["profile", 0]))
    outcomes: Counter[str] = Counter()
    for seed in range(MUTATED):
        hostile.write_bytes(profiles.FAMILIES[seed % len(profiles.FAMILIES)](random.Random(seed)))
        try:
            check(bench, bench.run(**graph), plain)
            outcomes["rendered"] += 1
        except WorkflowError as error:
            ours = "profile field" in error.message or "does not fit" in error.message
            assert ours and error.node_id in ("profile", "sampler"), (seed, error)
            outcomes[error.node_id] += 1
    hostile.unlink()
    assert outcomes["rendered"] > 5 and outcomes["profile"] > 20, outcomes
    still_right(bench, plain)


def test_a_store_full_of_mutated_profiles_keeps_the_good_one_usable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no profile connected the node looks through all of them, of which most cannot be read."""
    monkeypatch.setattr(profiles, "GOOD", (bench.store / "original.safetensors").read_bytes())
    written = [bench.store / f"zz-{seed}.safetensors" for seed in range(MUTATED)]
    for seed, path in enumerate(written):
        path.write_bytes(profiles.FAMILIES[seed % 5](random.Random(seed)))
    try:
        found = report(bench.run(**small(sampler=cached(seed=8))))
    finally:
        for path in written:
            path.unlink()
    assert found["computed"] == STEPS // 2
    assert "profile_found" in codes(found)


def test_mutated_plans_in_the_workflow(make_bench: Callable[[], Bench]) -> None:
    bench = make_bench()
    plain = bench.latent(bench.run(**small(sampler=full())))
    built_in = {"without_profile": "built-in plan"}
    good = report(bench.run(**small(sampler=cached(**built_in))))["plan"]
    outcomes: Counter[str] = Counter()
    tried = {""}  # what was tried comes from ComfyUI's cache, without a report
    for seed in range(MUTATED):
        chance = random.Random(seed)
        text = plans.FAMILIES[seed % len(plans.FAMILIES)](good, chance).encode("utf-8", "replace").decode()
        if text in tried:
            continue
        tried.add(text)
        found = check(bench, bench.run(**small(sampler=cached(plan=text, **built_in))), plain)
        used = "carried" in codes(found)
        refused = "carried_refused" in codes(found)
        assert not (used and refused)
        outcomes["used" if used else "refused" if refused else "of another run"] += 1
    assert outcomes["used"] > 2 and outcomes["refused"] > 20, outcomes
    still_right(bench, plain)
