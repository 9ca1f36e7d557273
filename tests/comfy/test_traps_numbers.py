"""docs/compatibility/traps.md, T1 to T7: wrong numbers. Each check is also shown its fault, and must see it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from ertacache.erta.plan import Plan
from ertacache.erta.plan_file import plan_from_json
from ertacache.erta.replay import Replay
from ertacache.erta.settings import Settings
from ertacache.tests.comfy.traps import (
    STEPS,
    cached,
    codes,
    counted,
    error,
    follow,
    levels,
    render_trained,
    trained,
    wrapped,
)

pytestmark = pytest.mark.usefixtures("comfy_pack")


# T1: in-place arithmetic on tensors of others


def assert_nothing_is_written_to(wan: Any, sample: Any, level: str) -> None:
    """Every tensor that a wrapper around the cache hands in is the same afterwards."""

    def watch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        before = [tensor.clone() for tensor in tensors]
        result = executor(*args, **kwargs)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True)), "a tensor was written to"
        return result

    watched = wrapped(wrapped(wan, "predict_noise", watch), "diffusion_model", watch)
    model, reports = cached(watched, speed=2.0, level=level)
    sample(model)
    assert reports[0].reused == STEPS // 2


@levels
def test_t01_no_tensor_that_is_handed_in_is_written_to(wan, sample, level):
    assert_nothing_is_written_to(wan, sample, level)


def test_t01_an_addition_in_place_is_seen(wan, sample, monkeypatch):
    from ertacache.comfy_erta import output as module

    def in_place(x: torch.Tensor, sigma: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return x.sub_(sigma.reshape(-1, 1, 1, 1, 1) * d)

    monkeypatch.setattr(module, "from_d", in_place)
    with pytest.raises(AssertionError, match="was written to"):
        assert_nothing_is_written_to(wan, sample, "output")


@levels
def test_t01_float32_errs_no_more_than_bfloat16_at_the_same_plan(level):
    """The fault doubles the reused part of what is already in x, in float32 only."""
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, reports = cached(trained(dtype), speed=1.5, level=level)
        errors[dtype] = error(render_trained(model), render_trained(trained(dtype)))
        assert reports[0].reused == STEPS // 3
    assert errors[torch.float32] < 1.5 * errors[torch.bfloat16]


# T2: a kept tensor that is really the sampler's or the model's own


def euler_in_place(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler as a sampler with all its rights does it: it steps in its own x and scribbles over what it was given."""
    x = x.clone()
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **(extra_args or {}))
        x.add_((x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i]))
        denoised.fill_(123.0)
    return x


def euler_out_of_place(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **(extra_args or {}))
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def with_function(model: Any, function: Any, conds: Any) -> torch.Tensor:
    """Rendered by a sampler function that ComfyUI does not have."""
    import comfy.sample
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    noise = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    sampler = comfy.samplers.KSAMPLER(function)
    latent = torch.zeros_like(noise)
    return comfy.sample.sample_custom(model, noise, 3.0, sampler, sigmas, *conds, latent, disable_pbar=True)


@levels
def test_t02_what_is_kept_does_not_move_with_the_samplers_tensors(wan, conds, level):
    model, reports = cached(wan, speed=2.0, level=level)
    assert torch.equal(with_function(model, euler_in_place, conds), with_function(model, euler_out_of_place, conds))
    assert [report.reused for report in reports] == [STEPS // 2] * 2


def test_t02_a_kept_alias_is_seen(wan, conds, monkeypatch):
    from ertacache.comfy_erta import output as module

    monkeypatch.setattr(module, "to_d", lambda x, sigma, denoised: denoised)
    monkeypatch.setattr(module, "from_d", lambda x, sigma, d: d.to(x.dtype))
    plan = held_plan(wan)
    results = [with_function(follow(wan, plan)[0], f, conds) for f in (euler_in_place, euler_out_of_place)]
    assert not torch.equal(*results)


def held_plan(wan: Any, compute: str = "10" * (STEPS // 2), level: str = "output") -> Plan:
    """compute: "1" computed, "0" held from the newest computed one, or from nothing."""
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(wan.get_model_object("model_sampling"), "simple", len(compute))
    nothing = (0.0,) * len(compute)
    return Plan(
        settings=Settings(level=level),
        sigmas=tuple(float(sigma) for sigma in sigmas[:-1]),
        compute=tuple(one == "1" for one in compute),
        coefficients=tuple(() if one == "1" else (1.0,) for one in compute),
        offsets=nothing,
        corrections=nothing,
        residual_limits=nothing,
    )


class Keeping(Replay):
    """Shows what it was handed to keep."""

    def __init__(self, plan: Plan, kept: list[torch.Tensor]) -> None:
        super().__init__(plan)
        self.kept = kept

    def observe(self, i: int, key: str, feature: torch.Tensor) -> torch.Tensor:
        self.kept.append(feature.clone())
        return super().observe(i, key, feature)


def assert_residuals_are_exact(wan: Any, sample: Any) -> None:
    """With a block that writes into the tensor that it is given, as Flux's and LTXV's do."""
    entered, left, kept = [], [], []

    def first(args, extra):
        entered.append(args["img"].clone())
        args["img"].mul_(0.5)
        return extra["original_block"](args)

    def last(args, extra):
        out = extra["original_block"](args)
        left.append(out["img"].clone())
        return out

    patched = wan.clone()
    patched.set_model_patch_replace(first, "dit", "double_block", 0)
    patched.set_model_patch_replace(last, "dit", "double_block", 1)
    sample(follow(patched, held_plan(wan, level="blocks"), lambda plan: Keeping(plan, kept))[0])
    assert len(left) == STEPS // 2
    expected = [part for a, b in zip(entered, left, strict=True) for part in (b - a).chunk(2)]
    assert all(torch.equal(a, b) for a, b in zip(kept, expected, strict=True)), "another residual was kept"


def test_t02_residual_of_blocks_that_write_in_place_is_exact(wan, sample):
    assert_residuals_are_exact(wan, sample)


def test_t02_a_residual_taken_without_a_copy_is_seen(wan, sample, monkeypatch):
    from ertacache.comfy_erta import blocks as module

    enter = module.BlocksLevel._enter

    def without_copy(level: Any, one: Any, image: torch.Tensor) -> None:
        enter(level, one, image)
        one.entered = image

    monkeypatch.setattr(module.BlocksLevel, "_enter", without_copy)
    with pytest.raises(AssertionError, match="another residual"):
        assert_residuals_are_exact(wan, sample)


# T3: nothing to reuse from


class Forgetful(Replay):
    """Loses all it has before model call 5."""

    def predict(self, i: int, key: str) -> torch.Tensor | None:
        if i == 5:
            self._past.clear()
        return super().predict(i, key)


def assert_what_is_missing_is_computed(
    wan: Any, sample: Any, level: str, compute: str, done: str, observe: Any
) -> None:
    base, calls = counted(wan)
    plan = held_plan(wan, compute, level)
    model, reports = follow(base, plan, observe)
    result = sample(model)
    (report,) = reports
    assert report.computed == done.count("1"), "what was missing was not computed"
    assert error(result, sample()) < 0.5, "noise"
    assert "cache_unfit" in codes(report)
    if level == "output":
        expected = [sigma for sigma, one in zip(plan.sigmas, done, strict=True) if one == "1"]
        np.testing.assert_allclose(calls, expected, rtol=1e-4)


@levels
def test_t03_a_plan_that_begins_with_reuse_is_computed_there(wan, sample, level):
    assert_what_is_missing_is_computed(wan, sample, level, "001010101010", "111010101010", Replay)


@levels
def test_t03_an_entry_that_is_lost_on_the_way_is_computed(wan, sample, level):
    assert_what_is_missing_is_computed(wan, sample, level, "101010101010", "101011101010", Forgetful)


@levels
def test_t03_a_range_that_starts_late_begins_computed(wan, sample, level):
    model, reports = cached(wan, speed=2.0, level=level)
    inputs = {"start_step": 4, "last_step": STEPS, "force_full_denoise": True}
    result = sample(model, **inputs)
    assert reports[0].calls == STEPS - 4
    assert reports[0].compute[0] == "1"
    assert reports[0].computed == (STEPS - 4) // 2
    assert error(result, sample(**inputs)) < 0.25


def test_t03_a_missing_entry_taken_as_zero_is_seen(wan, sample, monkeypatch):
    combine = Replay._combine

    def zero(replay: Any, i: int, key: str) -> torch.Tensor:
        found = combine(replay, i, key)
        return torch.zeros(1, 16, 2, 4, 4, device=wan.load_device) if found is None else found

    monkeypatch.setattr(Replay, "_combine", zero)
    with pytest.raises(AssertionError, match="was not computed"):
        test_t03_an_entry_that_is_lost_on_the_way_is_computed(wan, sample, "output")


# T4: the shape changes


def smaller_from(at: int) -> Any:
    """PREDICT_NOISE wrapper: from model call ``at`` on only the left half is asked for, and mirrored to the right."""
    calls = []

    def wrapper(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(x.shape)
        if len(calls) <= at:
            return executor(x, *args, **kwargs)
        half = executor(x[..., : x.shape[-1] // 2].contiguous(), *args, **kwargs)
        return torch.cat([half, half.flip(-1)], dim=-1)

    return wrapper


def assert_a_new_shape_is_computed(wan: Any, sample: Any, level: str) -> None:
    model, reports = cached(wrapped(wan, "predict_noise", smaller_from(3)), speed=2.0, level=level)
    result = sample(model)
    (report,) = reports
    full = sample(wrapped(wan, "predict_noise", smaller_from(3)))
    planned = plan_from_json(report.plan).compute
    assert report.computed > sum(planned)
    assert report.reused > sum(not one for one in planned[:3]), "it never reused again"
    assert "cache_unfit" in codes(report)
    assert error(result, full) < 0.25


@levels
def test_t04_another_shape_within_a_run_is_computed_and_reused_again_later(wan, sample, level):
    assert_a_new_shape_is_computed(wan, sample, level)


def test_t04_what_was_kept_cut_to_fit_is_seen(wan, sample, monkeypatch):
    from ertacache.comfy_erta import output as module

    call_model = module.OutputLevel.call_model

    def cutting(level: Any, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = level.session.predict("guided")
        if found is not None:
            return module.from_d(x, args[0], found[..., : x.shape[-1]]), True
        return call_model(level, executor, x, *args, **kwargs)

    monkeypatch.setattr(module.OutputLevel, "call_model", cutting)
    with pytest.raises(AssertionError):
        assert_a_new_shape_is_computed(wan, sample, "output")


def coarse(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """PREDICT_NOISE wrapper: every third model call comes in another dtype."""
    coarse.calls += 1
    return executor(x.to(torch.bfloat16) if coarse.calls % 3 == 0 else x, *args, **kwargs).to(x.dtype)


@levels
def test_t04_another_dtype_within_a_run_stays_right(wan, sample, level):
    coarse.calls = 0
    model, reports = cached(wrapped(wan, "predict_noise", coarse), speed=2.0, level=level)
    assert error(sample(model), sample()) < 0.25
    assert reports[0].reused > 0


@levels
def test_t04_runs_of_other_sizes_know_nothing_of_each_other(wan, sample, level):
    """Resolution, length, batch and back again with one model: each as with a model of its own."""
    model, reports = cached(wan, speed=2.0, level=level)
    shapes = [(1, 2, 4, 4), (1, 2, 6, 4), (1, 3, 4, 4), (4, 2, 4, 4), (1, 2, 4, 4)]
    for batch, *rest in shapes:
        latent = {"samples": torch.zeros(batch, 16, *rest)}
        alone = sample(cached(wan, speed=2.0, level=level)[0], latent=latent)
        assert torch.equal(sample(model, latent=latent), alone)
    assert [report.reused for report in reports] == [STEPS // 2] * len(shapes)


# T7: noise where there was none


def random_states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    torchs = [state.numpy().tobytes() for state in (torch.random.get_rng_state(), *cuda)]
    return random.getstate(), np.random.get_state()[1].tobytes(), *torchs


def assert_no_noise_of_its_own(wan: Any, sample: Any, level: str, sampler: str) -> None:
    ends = []
    for speed in (1.0, 2.0, 2.0):
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        model, _ = cached(wan, speed=speed, level=level)
        ends.append((sample(model, sampler_name=sampler), random_states()))
    (_, without), (first, state), (again, _) = ends
    assert torch.equal(first, again), "the same seed gives another picture"
    assert state == without, "a random state was moved"


@levels
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "euler_ancestral", "uni_pc"])
def test_t07_the_same_seed_gives_the_same_picture_and_moves_no_random_state(wan, sample, level, sampler):
    assert_no_noise_of_its_own(wan, sample, level, sampler)


def test_t07_noise_in_a_reused_output_is_seen(wan, sample, monkeypatch):
    from ertacache.comfy_erta import output as module

    from_d = module.from_d

    def noisy(x: torch.Tensor, sigma: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return from_d(x, sigma, d + 1e-4 * torch.randn_like(d))

    monkeypatch.setattr(module, "from_d", noisy)
    with pytest.raises(AssertionError, match="random state"):
        assert_no_noise_of_its_own(wan, sample, "output", "euler")


# The rest is arithmetic: T5 in tests/core/test_planner.py, T6 in tests/core/test_replay.py.
