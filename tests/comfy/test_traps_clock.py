"""docs/compatibility/traps.md, T13 and T14: what counts are model calls, wherever they fall, never steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ertacache.erta.plan_file import plan_from_json
from ertacache.tests.comfy.traps import (
    STEPS,
    cached,
    cfg_guider,
    codes,
    counted,
    error,
    levels,
    node,
    profile,
    render,
    smooth,
    with_guider,
    wrapped,
)

pytestmark = pytest.mark.usefixtures("comfy_pack")


# T13: samplers with more than one model call per step


def assert_calls_are_those_the_model_got(level: str, sampler: str) -> None:
    asked: list[float] = []

    def note(executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(float(timestep[0]))
        return executor(x, timestep, *args, **kwargs)

    base, calls = counted(wrapped(smooth(), "predict_noise", note))
    model, reports = cached(base, speed=2.0, level=level)
    render(model, sampler_name=sampler)
    (report,) = reports
    assert report.calls == len(asked) == len(report.sigmas), "another number of model calls was foreseen"
    np.testing.assert_allclose(asked, report.sigmas, rtol=1e-4)
    assert report.computed + report.reused == report.calls
    assert report.computed == sum(plan_from_json(report.plan).compute) == round(report.calls / 2)
    assert report.speed_up >= 1.0 and report.complete
    if level == "output":
        assert len(calls) == report.computed


TWICE = ("heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde", "uni_pc", "heunpp2", "seeds_3", "sa_solver_pece")


@levels
@pytest.mark.parametrize("sampler", TWICE)
def test_t13_every_call_is_foreseen_and_counted(level, sampler):
    assert_calls_are_those_the_model_got(level, sampler)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde"])
def test_t13_counting_steps_is_seen(monkeypatch, sampler):
    from ertacache.comfy_erta import task as module
    from ertacache.erta.planner import euler_response

    monkeypatch.setattr(module, "sampler_response", lambda sampler, schedule, *rest: euler_response(schedule))
    with pytest.raises(AssertionError, match="another number"):
        assert_calls_are_those_the_model_got("output", sampler)


# T14: sigmas that occur twice, rise, or are few


def simple(steps: int = STEPS) -> torch.Tensor:
    return node("nodes_custom_sampler", "BasicScheduler", smooth(), "simple", steps, 1.0)


def repeated() -> torch.Tensor:
    sigmas = simple(8)
    return torch.cat([sigmas[:3], sigmas[2:6], sigmas[5:]])


def back_and_forth() -> torch.Tensor:
    """Down, up again and down, as history resets do."""
    sigmas = simple(10)
    return torch.cat([sigmas[:7], sigmas[3:]])


def rising() -> torch.Tensor:
    """From the picture towards noise, as unsampling does. At sigma 1 itself ComfyUI divides by zero."""
    return node("nodes_custom_sampler", "FlipSigmas", simple()[2:])


def unlisted() -> torch.Tensor:
    return torch.linspace(0.97, 0.0, 11) ** 1.7


def not_to_zero() -> torch.Tensor:
    return simple(16)[:10]


SCHEDULES = (repeated, back_and_forth, rising, unlisted, not_to_zero)


def assert_right_or_computed(level: str, sigmas: torch.Tensor, known: Any, sampler: str = "euler") -> Any:
    """The picture is right; or it is to the bit the one without the cache, and a line says why."""
    model, reports = cached(smooth(), known, speed=2.0, level=level)
    result, full = (with_guider(cfg_guider(one), sigmas, sampler) for one in (model, smooth()))
    (report,) = reports
    if report.reused:
        assert error(result, full) < max(0.1, 2.0 * max(report.predicted_error, default=0.0))
    else:
        assert torch.equal(result, full)
        assert report.notes
    assert report.computed + report.reused == report.calls
    return report


@levels
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda make: make.__name__)
def test_t14_any_schedule_is_right(level, schedule):
    sigmas = schedule()
    report = assert_right_or_computed(level, sigmas, None)
    assert report.calls == len(sigmas) - 1


@levels
@pytest.mark.parametrize("schedule", [repeated, back_and_forth, unlisted, not_to_zero], ids=lambda make: make.__name__)
def test_t14_any_schedule_that_falls_is_right_by_a_profile_of_another(level, schedule):
    assert_right_or_computed(level, schedule(), profile(level))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "uni_pc", "heun", "res_multistep"])
@pytest.mark.parametrize("schedule", [back_and_forth, unlisted], ids=lambda make: make.__name__)
def test_t14_other_samplers_on_such_schedules_are_right(schedule, sampler):
    assert_right_or_computed("output", schedule(), None, sampler)


def test_t14_looking_a_sigma_up_in_the_schedule_is_seen(monkeypatch):
    from ertacache.comfy_erta import session as module

    def looked_up(session: Any, timestep: torch.Tensor) -> None:
        expected = torch.tensor(session.start.sigmas)
        torch.isclose(expected, timestep[0].float(), rtol=1e-4).nonzero().item()

    monkeypatch.setattr(module.Session, "check", looked_up)
    with pytest.raises(RuntimeError):
        assert_right_or_computed("output", back_and_forth(), None)


@levels
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_t14_few_steps_are_computed_with_a_line(level, steps):
    for known in (profile(level), None):
        model, reports = cached(smooth(), known, speed=2.0, level=level)
        assert torch.equal(render(model, steps=steps), render(steps=steps))
        assert "too_few_calls" in codes(reports[0])


@levels
def test_t14_split_sigmas_are_two_runs_of_their_own(level):
    first, second = (half for half in torch.split(simple(16)[:-1], 8))
    halves = (torch.cat([first, second[:1]]), torch.cat([second, torch.zeros(1)]))
    model, reports = cached(smooth(), profile(level), speed=2.0, level=level)
    results = []
    for one in (model, smooth()):
        latent = None
        for sigmas in halves:
            latent = {"samples": with_guider(cfg_guider(one), sigmas, latent=latent)}
        results.append(latent["samples"])
    assert error(*results) < 0.1
    assert [report.calls for report in reports] == [8, 8]
    assert all(report.compute.startswith("1") and report.reused for report in reports)


@levels
@pytest.mark.parametrize("denoise", [0.3, 0.7])
def test_t14_a_part_of_the_run_is_right(level, denoise):
    model, reports = cached(smooth(), profile(level), speed=2.0, level=level)
    latent = {"samples": torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(2))}
    inputs = {"latent": latent, "denoise": denoise}
    assert error(render(model, **inputs), render(**inputs)) < 0.1
    assert reports[0].calls == STEPS and reports[0].reused > 0
