"""ComfyUI's own switches: how it keeps nodes' outputs, memory and number formats changes nothing of what a plan does.

`--lowvram` and `--novram` exclude `--cpu`, so they are tried where there is a GPU only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from ertacache.demo.server import ComfyServer
from ertacache.tests.server.test_nodes import Bench, cached, full, node, report, save
from ertacache.tests.server.test_soak import one_thread

__all__ = ["one_thread"]  # a fixture

STEPS = 50
MODEL = "flags_wan.safetensors"

SMALL = {"empty": node("EmptyHunyuanLatentVideo", width=32, height=32, length=5, batch_size=1)}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="excludes --cpu, and there is no GPU")

# (options, number format of the model). Options that do not exclude each other share a server: a start takes seconds.
FLAGS = [
    pytest.param(("--cache-none", "--fast"), torch.float32, id="cache-none, fast"),
    pytest.param(("--cache-lru", "3", "--bf16-unet"), torch.bfloat16, id="cache-lru, bf16"),
    pytest.param(("--lowvram",), torch.float32, id="lowvram", marks=needs_gpu),
    pytest.param(("--novram",), torch.float32, id="novram", marks=needs_gpu),
]


def bench_on(server: ComfyServer) -> Bench:
    from ertacache.tests.comfy.conftest import wan_weights

    safetensors.torch.save_file(wan_weights(seed=99), server.base / "models" / "diffusion_models" / MODEL)
    return Bench(server, MODEL)


Outcome = tuple[dict[str, Any], torch.Tensor]


@pytest.fixture(scope="module")
def usual(server: ComfyServer, comfy: ModuleType) -> Callable[[bool], Outcome]:
    """usual(cpu) -> report and latent of the built-in plan at double speed on that device, without any option."""

    @functools.cache
    def on(cpu: bool) -> Outcome:
        if cpu:
            return built_in(bench_on(server))
        with ComfyServer(cpu=False) as another:
            return built_in(bench_on(another))

    return on


def built_in(bench: Bench) -> Outcome:
    outputs = bench.run(**SMALL, sampler=cached(steps=STEPS, without_profile="built-in plan"), save=save())
    return report(outputs), bench.latent(outputs)


@pytest.mark.parametrize(("options", "dtype"), FLAGS)
def test_a_switch_of_comfyui_changes_nothing_of_what_a_plan_does(
    usual: Callable[[bool], Outcome],
    comfy: ModuleType,
    options: tuple[str, ...],
    dtype: torch.dtype,
) -> None:
    cpu = not {"--lowvram", "--novram"} & set(options)
    with ComfyServer(args=options, cpu=cpu) as server:
        bench = bench_on(server)
        at_full_speed_it_is_ksampler_to_the_bit(bench)
        at_double_speed_it_is_the_plan_without_the_option(bench, *usual(cpu), dtype)
        another_seed_has_the_same_plan(bench, "--cache-none" in options)
        the_first_render_measures_and_the_next_is_fast(bench)


def at_full_speed_it_is_ksampler_to_the_bit(bench: Bench) -> None:
    graph = {"sampler": cached(1.0, steps=8), "reference": full(steps=8)}
    outputs = bench.run(**SMALL, **graph, save=save(), kept=save("reference"))
    assert torch.equal(bench.latent(outputs), bench.latent(outputs, "kept"))


def at_double_speed_it_is_the_plan_without_the_option(
    bench: Bench, expected: dict[str, Any], latent: torch.Tensor, dtype: torch.dtype
) -> None:
    outputs = bench.run(**SMALL, sampler=cached(steps=STEPS, without_profile="built-in plan"), save=save())
    found = report(outputs)
    assert (found["computed"], found["calls"]) == (STEPS // 2, STEPS)
    assert (found["compute"], found["sigmas"]) == (expected["compute"], expected["sigmas"])
    difference = (bench.latent(outputs) - latent).norm() / latent.norm()
    assert difference < 50 * torch.finfo(dtype).eps, f"{difference:.2e} off"


def another_seed_has_the_same_plan(bench: Bench, executes_all: bool) -> None:
    """T16: whether the patch comes from the server's cache or is made anew."""
    plans, latents = [], []
    for seed in (11, 12, 13):
        patch = node("ERTACache", model=["model", 0], speed=2.0, without_profile="built-in plan")
        outputs = bench.run(**SMALL, patch=patch, sampler=full("patch", seed=seed, steps=12), save=save())
        (event,) = bench.heard("ertacache.report")
        assert event["report"]["computed"] == 6
        plans.append(event["report"]["plan"])
        latents.append(bench.latent(outputs))
        kept = {name for one in bench.heard("execution_cached") for name in one["nodes"]}
        assert not (executes_all and kept)
    assert len(set(plans)) == 1
    assert not torch.equal(latents[0], latents[1])


def the_first_render_measures_and_the_next_is_fast(bench: Bench) -> None:
    computed = [report(bench.run(**SMALL, sampler=cached(seed=seed), save=save()))["computed"] for seed in (1, 2)]
    assert computed == [12, 6]
