"""The check that goes with a planned run, on the trained tiny Wan and prompts that neither it nor the profile saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ertacache.erta.plan_file import plan_from_json, plan_to_json
from ertacache.erta.profile import Profile
from ertacache.erta.settings import Settings
from ertacache.tests.comfy.traps import codes

STEPS, GUIDANCE = 12, 5.0

Follow = Callable[..., tuple[torch.Tensor, float, Any]]


@pytest.fixture(scope="module")
def rig(comfy_pack: Any) -> Any:
    from ertacache.bench.config import read_config
    from ertacache.bench.rig import Rig

    config = replace(read_config("tiny_wan"), steps=STEPS, guidance=GUIDANCE, profile_runs=2, tuning_prompts=1)
    return Rig(config, 2)


@pytest.fixture(scope="module")
def profile(rig: Any) -> Profile:
    from ertacache.comfy_erta.measuring import measure_profile

    jobs = rig.profiling
    found: Profile = measure_profile(
        rig.model, lambda model, run: rig.sample(model, jobs[run]), len(jobs), "output", "simple", lambda report: None
    )
    return found


@pytest.fixture
def follow(rig: Any, profile: Profile, tmp_path: Any) -> Follow:
    """follow(test prompt, speed=2.0, check=True, carried="") -> (latent, model calls counted at the model, report)"""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach
    from ertacache.comfy_erta.store import Store

    def call(prompt: int, speed: float = 2.0, check: bool = True, carried: str = "") -> tuple[torch.Tensor, float, Any]:
        reports: list[Any] = []
        settings = Settings(speed=speed, check=check)
        task = Caching(settings, Store(tmp_path / "none"), reports.append, profile, carried=carried)
        sample = rig.sample(attach(rig.model, task), rig.test[prompt])
        (report,) = reports
        return sample.latent, sample.calls, report

    return call


@pytest.fixture(scope="module")
def full(rig: Any) -> torch.Tensor:
    latent: torch.Tensor = rig.sample(rig.model, rig.test[0]).latent
    return latent


def unlike(report: Any) -> list[str]:
    return [note.text for note in report.notes if note.code == "unlike_profile"]


def error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).norm() / reference.norm())


@pytest.mark.parametrize("speed", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("prompt", [0, 1])
def test_a_prompt_that_was_never_seen_costs_no_call_on_top(follow: Follow, prompt: int, speed: float) -> None:
    _, calls, report = follow(prompt, speed)
    assert any(plan_from_json(report.plan).residual_limits), "there is something to compare with"
    assert calls == report.computed == round(STEPS / speed)
    assert not unlike(report)


def test_a_plan_that_expects_next_to_nothing_is_departed_from_with_one_line(follow: Follow, full: torch.Tensor) -> None:
    planned, calls, report = follow(0)
    plan = plan_from_json(report.plan)
    wary = plan_to_json(replace(plan, residual_limits=tuple(1e-6 * limit for limit in plan.residual_limits)))
    latent, more, departed = follow(0, carried=wary)
    assert "carried" in codes(departed)
    assert more == departed.computed > calls == plan.computed
    (line,) = unlike(departed)
    assert f"{departed.computed - plan.computed} more computed" in line
    assert error(latent, full) < error(planned, full)


def test_switched_off_there_is_nothing_to_compare_with(follow: Follow) -> None:
    _, calls, report = follow(0, check=False)
    assert not any(plan_from_json(report.plan).residual_limits)
    assert calls == STEPS // 2


@pytest.mark.parametrize("speed", [1.5, 2.0])
def test_a_check_that_finds_nothing_changes_nothing(follow: Follow, speed: float) -> None:
    """To the bit; at 2x features are held, so that nothing is corrected."""
    watched, _, report = follow(0, speed)
    unwatched, _, _ = follow(0, speed, check=False)
    assert not unlike(report)
    assert torch.equal(watched, unwatched)
