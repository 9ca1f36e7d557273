"""Video with sound: a nested latent, sampled packed into one tensor. Its parts are measured, planned and checked apart.

On tiny models of ComfyUI's own classes with random weights. Where a sound is to be hard to predict, a function behind
guidance makes it move fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ertacache.tests.comfy.model_table import MODELS
from ertacache.tests.comfy.test_models import STEPS, Case, one_thread

WITH_SOUND = ["LTX-2", "MiniMax H3"]
FACTOR = 2.0  # measured: 0.6 to 1.6


__all__ = ["one_thread"]  # a fixture


class SoundCase(Case):
    """A tiny model whose results are looked at part by part."""

    def __init__(self, name: str, behind_guidance: Callable[..., Any] | None = None) -> None:
        if MODELS[name].missing:
            pytest.skip(MODELS[name].missing)
        super().__init__(name)
        self.sizes = [math.prod(shape[1:]) for shape in self.tiny.latent]
        if behind_guidance:
            self.model.set_model_sampler_post_cfg_function(behind_guidance)

    def errors(self, result: torch.Tensor) -> list[float]:
        """Relative error of picture and sound."""
        pairs = zip(result.split(self.sizes), self.plain.split(self.sizes), strict=True)
        return [float((one - other).norm() / other.norm()) for one, other in pairs]


@pytest.fixture(scope="module", params=WITH_SOUND)
def case(request: pytest.FixtureRequest, comfy_pack: ModuleType) -> SoundCase:
    return SoundCase(request.param)


def codes(report: Any) -> list[str]:
    return [note.code for note in report.notes]


def restless(sizes: list[int], size: float) -> Callable[..., Any]:
    """Adds a pattern to the sound's derivative that is another one at each time, the same in every run."""

    def moved(args: dict[str, Any]) -> torch.Tensor:
        denoised, time = args["denoised"].clone(), float(args["sigma"][0])
        pattern = torch.randn(sizes[1], generator=torch.Generator().manual_seed(round(1e6 * time)))
        denoised[..., sizes[0] :] += size * time * pattern
        return denoised

    return moved


def sizes_of(name: str) -> list[int]:
    return [math.prod(shape[1:]) for shape in MODELS[name].latent]


def test_picture_and_sound_are_measured_apart(case: SoundCase, store: Any) -> None:
    profile = case.recorded[0]
    assert [(table.stream, table.elements) for table in profile.tables] == list(enumerate(case.sizes))
    parts = case.recorded[1].split(case.sizes)
    assert [table.latent_rms for table in profile.tables] == pytest.approx(
        [float(part.square().mean().sqrt()) for part in parts], rel=1e-4
    )
    assert all(table.has_error_response for table in profile.tables)
    assert profile.measured.latent_shape == case.tiny.latent[0]
    store.save("with-sound", profile)
    assert [table.elements for table in store.load("with-sound").tables] == case.sizes


@pytest.mark.parametrize("speed", [2.0, 3.0, 4.0])
def test_the_report_tells_their_predicted_errors_and_they_are_the_measured_ones(
    case: SoundCase, store: Any, speed: float
) -> None:
    from ertacache.erta.plan_file import plan_from_json

    model, reports = case.cached(store, speed, profile=case.recorded[0])
    measured = case.errors(case.render(model, seed=6))
    (report,) = reports
    assert report.complete and report.reused == STEPS - round(STEPS / speed), report.notes
    parts = plan_from_json(report.plan).parts
    for error, part in zip(measured, parts, strict=True):
        assert part.predicted_error[0] / FACTOR < error < part.predicted_error[0] * FACTOR
    assert report.predicted_error == tuple(max(part.predicted_error[k] for part in parts) for k in (0, 1))
    (note,) = [note for note in report.notes if note.code == "picture_and_sound"]
    assert [note.values["picture"], note.values["sound"]] == [f"{part.predicted_error[0]:.2%}" for part in parts]


@pytest.mark.parametrize("speed", [2.0, 3.0])
def test_both_are_nearer_to_the_full_run_than_with_so_many_plain_steps(
    case: SoundCase, store: Any, speed: float
) -> None:
    import nodes

    model, _ = case.cached(store, speed, profile=case.recorded[0])
    ours = case.errors(case.render(model, seed=6))
    positive, negative = (case.tiny.conditioning(text) for text in (1, 2))
    few = (6, round(STEPS / speed), case.tiny.cfg, "euler", "simple", positive, negative)
    plain = nodes.common_ksampler(case.model, *few, case.tiny.empty_latent(6))[0]["samples"]
    assert all(2.0 * one < other for one, other in zip(ours, case.errors(case.flat(plain)), strict=True))


def test_a_plan_in_the_workflow_tells_them_without_the_profile(case: SoundCase, store: Any) -> None:
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach
    from ertacache.erta.settings import Settings

    model, reports = case.cached(store, 2.0, profile=case.recorded[0])
    result = case.render(model, seed=6)
    carried: list[Any] = []
    model = attach(case.model, Caching(Settings(speed=2.0), store, carried.append, None, reports[0].plan))
    assert torch.equal(case.render(model, seed=6), result)
    assert {"carried", "picture_and_sound"} <= set(codes(carried[0])) and carried[0].plan == reports[0].plan


def test_without_a_profile_it_is_recorded_or_planned_as_built_in(case: SoundCase, store: Any) -> None:
    model, reports = case.cached(store, 2.0)
    assert torch.equal(case.render(model, seed=6), case.plain)
    assert torch.isfinite(case.render(model, seed=6)).all()
    assert "recording_first" in codes(reports[0]) and "picture_and_sound" in codes(reports[1])
    assert reports[1].reused == STEPS // 2
    model, reports = case.cached(None, 2.0)
    assert torch.isfinite(case.render(model, seed=6)).all()
    assert reports[0].reused == STEPS // 2 and codes(reports[0]) == ["built_in"]


def test_a_batch_of_two_is_cached(comfy_pack: ModuleType, store: Any) -> None:
    """LTX-2's; MiniMax H3 takes one at a time."""
    import comfy.nested_tensor

    import nodes

    case = SoundCase("LTX-2")

    def render(model: Any) -> list[torch.Tensor]:
        latent = comfy.nested_tensor.NestedTensor([torch.zeros(2, *shape[1:]) for shape in case.tiny.latent])
        positive, negative = (case.tiny.conditioning(text) for text in (1, 2))
        settings = (6, STEPS, case.tiny.cfg, "euler", "simple", positive, negative, {"samples": latent})
        return nodes.common_ksampler(model, *settings)[0]["samples"].unbind()

    model, reports = case.cached(store, 2.0, profile=case.recorded[0])
    for ours, full in zip(render(model), render(case.model), strict=True):
        assert (ours - full).norm() < 0.02 * full.norm()
    assert reports[0].complete and reports[0].reused == STEPS // 2


def test_a_cache_that_would_ruin_the_sound_says_so(comfy_pack: ModuleType, store: Any) -> None:
    """It is a ninth of this latent: of both together 13 % were predicted, and nothing was said."""
    case = SoundCase("LTX-2", restless(sizes_of("LTX-2"), 2.0))
    model, reports = case.cached(store, 3.0, profile=case.recorded[0])
    picture, sound = case.errors(case.render(model, seed=6))
    (report,) = reports
    assert picture < 0.05 and sound > 0.2, "otherwise this shows nothing"
    assert report.predicted_error[0] / FACTOR < sound < report.predicted_error[0] * FACTOR
    assert {"sound_may_change", "sound_may_change_unless"} & set(codes(report))
    assert not {"may_change", "may_change_unless"} & set(codes(report))


def test_a_sound_unlike_the_recorded_one_is_computed_more(comfy_pack: ModuleType, store: Any) -> None:
    recorded, other = SoundCase("LTX-2"), SoundCase("LTX-2", restless(sizes_of("LTX-2"), 1.0))
    model, reports = recorded.cached(store, 2.0, profile=recorded.recorded[0])
    recorded.render(model, seed=6)
    assert "unlike_profile" not in codes(reports[0])
    model, reports = other.cached(store, 2.0, profile=recorded.recorded[0])
    other.render(model, seed=6)
    assert "unlike_profile" in codes(reports[0]) and reports[0].computed > STEPS // 2


@pytest.mark.parametrize("given", ["by name", "by place"])
def test_shapes_of_the_parts_are_found_wherever_they_are_given(
    case: SoundCase, store: Any, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrappers of other packs hand on what they got by name or by place."""
    from comfy.patcher_extension import WrappersMP

    def between(executor: Any, *args: Any, **kwargs: Any) -> Any:
        shapes = kwargs.pop("latent_shapes")
        return executor(*args, shapes) if given == "by place" else executor(*args, latent_shapes=shapes)

    model, reports = case.cached(store, 2.0, profile=case.recorded[0])
    model.wrappers[WrappersMP.OUTER_SAMPLE] = {
        "other": [between],
        **model.wrappers.get(WrappersMP.OUTER_SAMPLE, {}),
    }
    case.render(model, seed=6)
    assert "picture_and_sound" in codes(reports[0])


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((1, 16, 2, 8, 8), (1, 8, 4, 16)), "predicted error of the picture 1.00%, of the sound 2.00%"),
        (((1, 64, 16), (1, 4, 8)), "predicted error of each part of the latent: 1.00%, 2.00%"),
        (((1, 16, 2, 8, 8),), ""),
    ],
    ids=["video with sound", "other parts", "another run than the profile's"],
)
def test_parts_are_named_by_what_they_are(comfy_pack: ModuleType, shapes: tuple[Any, ...], says: str) -> None:
    from ertacache.comfy_erta.caching import of_parts
    from ertacache.comfy_erta.task import Context
    from ertacache.erta.plan import Part, full_plan
    from ertacache.erta.settings import Settings

    sigmas = np.linspace(1.0, 0.0, 13)
    parts = tuple(Part((error, error), (0.1,) * 12) for error in (0.01, 0.02))
    plan = replace(full_plan(sigmas[:-1], Settings()), parts=parts)
    found = of_parts(plan, Context(None, None, sigmas, shapes, ()))
    assert [note.text for note in found] == ([says] if says else [])
