"""Guidance nodes of ComfyUI with the cache: reused is what they give, so each is as good as plain guidance.

More conds than two, ranges, extra passes and windows are tests/comfy/test_traps_owner.py's, cfg_pp samplers
tests/comfy/test_samplers.py's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ertacache.erta.plan_file import plan_from_json
from ertacache.tests.comfy.traps import STEPS, cached, counted, error, levels, node, phrase, profile, render, smooth

pytestmark = pytest.mark.usefixtures("comfy_pack")

NODES: dict[str, Callable[[], Any]] = {
    "RescaleCFG": lambda: node("nodes_model_advanced", "RescaleCFG", smooth(), 0.7),
    "CFGZeroStar": lambda: node("nodes_cfg", "CFGZeroStar", smooth()),
    "CFGNorm": lambda: node("nodes_cfg", "CFGNorm", smooth(), 1.0),
    "APG": lambda: node("nodes_apg", "APG", smooth(), 0.5, 5.0, 0.0),
    "APG with momentum": lambda: node("nodes_apg", "APG", smooth(), 0.5, 5.0, -0.5),
    "TCFG": lambda: node("nodes_tcfg", "TCFG", smooth()),
    "Mahiro": lambda: node("nodes_mahiro", "Mahiro", smooth()),
    "VideoLinearCFGGuidance": lambda: node("nodes_video_model", "VideoLinearCFGGuidance", smooth(), 1.5),
    "VideoTriangleCFGGuidance": lambda: node("nodes_video_model", "VideoTriangleCFGGuidance", smooth(), 1.5),
}


@functools.cache
def guided(name: str) -> Any:
    return NODES[name]()


@levels
@pytest.mark.parametrize("name", NODES)
def test_a_guidance_node_acts_as_without_the_cache(level, name):
    base = guided(name)
    full = render(base)
    assert error(full, render()) > 1e-3, "the node does something"
    assert torch.equal(render(cached(base, speed=1.0, level=level)[0]), full)
    model, reports = cached(base, profile(level), speed=2.0, level=level)
    assert error(render(model), full) < 0.03
    if "momentum" in name and level == "output":  # it remembers: tests/comfy/test_neighbours.py
        return
    assert reports[0].computed == sum(plan_from_json(reports[0].plan).compute) == STEPS // 2


@levels
@pytest.mark.parametrize("cfg", [1.0, 1.5, 9.0])
def test_any_scale_of_guidance(level, cfg):
    """At 1 ComfyUI leaves the negative out, so that there is one cond only."""
    base, calls = counted(smooth())
    model, reports = cached(base, profile(level), speed=2.0, level=level)
    assert error(render(model, cfg=cfg), render(cfg=cfg)) < 0.03
    assert reports[0].computed == STEPS // 2
    assert any(note.values.get("field") == "guidance" for note in reports[0].notes), (
        "the profile was measured with another one"
    )
    if level == "output":
        assert len(calls) == STEPS // 2


@levels
def test_guidance_that_is_off_for_a_part_of_the_run(level):
    """By a negative that holds only until a percent: behind it there is one cond less."""
    negative = phrase(-1, start_percent=0.0, end_percent=0.6)
    model, reports = cached(None, profile(level), speed=1.5, level=level)
    assert error(render(model, negative=negative), render(negative=negative)) < 0.05
    edge = float(smooth().get_model_object("model_sampling").percent_to_sigma(0.6))
    behind = int(np.flatnonzero(np.array(reports[0].sigmas) <= edge)[0])
    assert reports[0].compute[behind] == "1"


@levels
def test_loras_for_parts_of_the_picture_and_of_the_run(level):
    """Two conds with a LoRA each by hooks, one scheduled: ComfyUI changes the weights between the calls of one
    model call."""
    import comfy.hooks

    from ertacache.tests.comfy.test_traps_owner import half_area, lora_hooks

    def positive() -> Any:
        scheduled = lora_hooks((0.2, 0.0), (1.0, 0.3), (0.0, 0.6))
        always = lora_hooks((0.7, 0.0))
        left = comfy.hooks.set_hooks_for_conditioning(half_area(width=0.5), scheduled)
        return [*left, *comfy.hooks.set_hooks_for_conditioning(phrase(2), always)]

    model, reports = cached(None, profile(level), speed=1.5, level=level)
    assert error(render(model, positive=positive()), render(positive=positive())) < 0.05
    assert len(plan_from_json(reports[0].plan).resets) == 3
    assert reports[0].reused > 0
