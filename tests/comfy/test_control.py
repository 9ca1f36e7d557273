"""ControlNets that act on part of the run, on models that take what a ControlNet gives within and behind their blocks.

Weights of a real one would add nothing to what is at stake: when it is asked, and where its numbers end up.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from ertacache.erta.plan_file import plan_from_json
from ertacache.tests.comfy.model_table import MODELS
from ertacache.tests.comfy.test_models import STEPS, Case, one_thread

__all__ = ["one_thread"]  # a fixture

WIDTH, END = 64, 0.6
CONTROLLED = ("Flux", "Chroma", "HunyuanVideo", "Qwen-Image", "Stable Diffusion 1.5")


def control_of(strength: float, asked: list[float]) -> Any:
    """A ControlNet for the first part of the run; each block's addition is random and as large as strength says."""
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, x: torch.Tensor, t: torch.Tensor, *args: Any) -> Any:
            begin, end = self.timestep_range
            if not begin >= float(t[0]) >= end:
                return None
            asked.append(float(t[0]))
            generator = torch.Generator().manual_seed(3)
            if x.ndim == 4 and x.shape[1] == 4:  # a U-Net
                shapes = [(len(x), 32, *x.shape[2:])] * 2
            else:
                shapes = [(len(x), math.prod(x.shape[2:]) // 4, WIDTH)] * 2
            added = [strength * torch.randn(shape[1:], generator=generator).expand(shape) for shape in shapes]
            return {"input": added, "middle": [], "output": [one.clone() for one in added]}

        def copy(self) -> Any:
            copied = Control()
            self.copy_to(copied)
            return copied

    return Control().set_cond_hint(torch.zeros(1, 8, 8, 3), 1.0, (0.0, END))


def render(case: Case, model: Any, strength: float, asked: list[float] | None = None) -> torch.Tensor:
    import nodes

    control = {"control": control_of(strength, [] if asked is None else asked), "control_apply_to_uncond": True}
    conds = [[[one[0][0], {**one[0][1], **control}]] for one in map(case.tiny.conditioning, (1, 2))]
    settings = (6, STEPS, case.tiny.cfg, "euler", "simple", *conds)
    return case.flat(nodes.common_ksampler(model, *settings, case.tiny.empty_latent())[0]["samples"])


@pytest.fixture(scope="module", params=CONTROLLED)
def case(request: pytest.FixtureRequest, comfy_pack: ModuleType) -> Case:
    return Case(request.param)


@pytest.mark.parametrize("level", ["output", "blocks"])
def test_a_controlnet_for_part_of_the_run_acts_as_without_the_cache(case: Case, store: Any, level: str) -> None:
    if level == "blocks" and not case.tiny.blocks:
        pytest.skip("level blocks is refused")
    full, bare = render(case, case.model, 0.3), render(case, case.model, 0.0)
    moved = full - bare
    assert moved.norm() > 0.01 * bare.norm(), "the ControlNet does something"
    computed, _ = case.cached(store, 1.0, level)
    assert torch.equal(render(case, computed, 0.3), full)

    asked: list[float] = []
    model, reports = case.cached(store, 2.0, level, case.record(level)[0])
    result = render(case, model, 0.3, asked)
    report = reports[0]
    edge = float(case.model.get_model_object("model_sampling").percent_to_sigma(END))
    behind = next(i for i, sigma in enumerate(report.sigmas) if sigma <= edge)
    assert report.compute[behind] == "1" and behind in plan_from_json(report.plan).resets
    assert report.reused > 0, report.notes
    within = sum(bit == "1" for bit in report.compute[:behind])
    if level == "output":
        assert len(asked) == within
    assert (result - full).norm() < 0.15 * moved.norm()
    followed = result - render(case, model, 0.0)
    assert torch.cosine_similarity(followed, moved, dim=0) > 0.9


def test_all_of_them_are_in_the_table() -> None:
    assert set(CONTROLLED) <= set(MODELS)
