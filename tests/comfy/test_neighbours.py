"""docs/compatibility/neighbours.md: devices, guiders, samplers and packs of others that a run may meet.

What stands for them here has their shape and nothing else of theirs: no other pack and no second GPU is needed.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ertacache.erta.plan_file import plan_from_json
from ertacache.erta.settings import Settings
from ertacache.tests.comfy import traps
from ertacache.tests.comfy.traps import cached, codes, error, levels, profile, render, smooth

pytestmark = pytest.mark.usefixtures("comfy_pack")


def recording(store: Any, model: Any = None, **settings: Any) -> tuple[Any, Any]:
    """(the model with a cache that records where it has no profile, what it reports)."""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach

    reports: list[Any] = []
    return attach(model or smooth(), Caching(Settings(**settings), store, reports.append)), reports


def samplers() -> Any:
    import comfy.samplers

    return comfy.samplers


def guider_of(cls: Any, model: Any, cfg: float = traps.GUIDANCE) -> Any:
    guider = cls(model)
    guider.set_conds(traps.phrase(0), traps.phrase(-1))
    guider.set_cfg(cfg)
    return guider


# A device without float64


class NoDouble(torch.Tensor):
    """Refuses float64 as a tensor on Apple's devices does, in the same call that copies it to the host too."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = [*args[1:], *(kwargs or {}).values()]
        converts = func in (torch.Tensor.to, torch.Tensor.type) and any(a is torch.float64 for a in asked)
        if converts or func is torch.Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        result = super().__torch_function__(func, types, args, kwargs)
        # By name: torch.device("cpu") is the stand-in's own device.
        to_host = func is torch.Tensor.to and any(isinstance(a, str) and a == "cpu" for a in asked)
        copied = func is torch.Tensor.cpu or to_host
        return result.as_subclass(torch.Tensor) if copied and isinstance(result, torch.Tensor) else result


def on_such_a_device(tensor: torch.Tensor) -> Any:
    return tensor.as_subclass(NoDouble)


@pytest.fixture
def no_float64(monkeypatch: Any) -> Any:
    """Sigmas, latents and with them all features of every run lie on such a device."""
    real, loaded = samplers().CFGGuider.outer_sample, samplers().KSampler.calculate_sigmas

    def outer_sample(guider: Any, noise: Any, latent: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any) -> Any:
        noise, latent, sigmas = map(on_such_a_device, (noise, latent, sigmas))
        return real(guider, noise, latent, sampler, sigmas, *args, **kwargs)

    monkeypatch.setattr(samplers().CFGGuider, "outer_sample", outer_sample)
    monkeypatch.setattr(samplers().KSampler, "calculate_sigmas", lambda s, n: on_such_a_device(loaded(s, n)))


def custom(model: Any) -> Any:
    sigmas = traps.node("nodes_custom_sampler", "BasicScheduler", model, "simple", traps.STEPS, 1.0)
    return traps.with_guider(traps.cfg_guider(model), on_such_a_device(sigmas))


@levels
@pytest.mark.parametrize("sample", [render, custom])
def test_a_device_without_float64_records_and_reuses(level: str, sample: Any, store: Any, no_float64: Any) -> None:
    model, reports = recording(store, level=level, speed=2.0)
    full = sample(smooth())
    assert isinstance(full, torch.Tensor) and torch.equal(sample(model), full)
    assert "recorded" in codes(reports[0]), reports[0].as_text()
    assert error(sample(model), full) < 0.05
    assert reports[1].reused == traps.STEPS // 2, reports[1].as_text()


@levels
def test_a_device_without_float64_follows_the_built_in_plan_and_the_papers(level: str, no_float64: Any) -> None:
    full = render()
    for mode in ("planned", "paper"):
        model, reports = cached(None, speed=2.0, level=level, mode=mode)
        assert error(render(model), full) < 0.3 and reports[0].reused


def test_a_profile_is_measured_on_a_device_without_float64(no_float64: Any) -> None:
    """With its perturbed run."""
    known = traps.measure(lambda model, run: render(model, seed=40 + run), "output", smooth())
    assert known.tables[0].gain is not None


def test_pictures_on_a_device_without_float64_are_compared(comfy_pack: Any) -> None:
    from ertacache.erta import metrics

    one, other = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    for measure in (metrics.frame_psnr, metrics.ssim):
        there = measure(on_such_a_device(one), on_such_a_device(other), 1.0)
        assert torch.equal(there, measure(one, other, 1.0))


# Guiders that give more than one prediction


def pair(one: torch.Tensor) -> Any:
    return one, one


def widened(one: torch.Tensor) -> Any:
    return torch.cat([one, one], dim=1)


@functools.cache
def double_guider(twice: Any) -> Any:
    """As LanPaint's: its own sampler takes apart what it gives."""

    class Doubled(samplers().CFGGuider):
        def predict_noise(self, *args: Any, **kwargs: Any) -> Any:
            return twice(super().predict_noise(*args, **kwargs))

    return Doubled


def first_of_two(model: Any, x: Any, sigmas: Any, **kwargs: Any) -> Any:
    def only(*args: Any, **more: Any) -> Any:
        out = model(*args, **more)
        return out[0] if isinstance(out, tuple) else out[:, : x.shape[1]]

    return samplers().k_diffusion_sampling.sample_euler(only, x, sigmas, **kwargs)


@pytest.mark.parametrize("twice", [pair, widened])
@pytest.mark.parametrize("how", ["record", "built-in", "profile"])
def test_more_than_one_prediction_is_handed_on_untouched_with_one_line(how: str, twice: Any, store: Any) -> None:
    def sample(model: Any) -> Any:
        return traps.with_guider(guider_of(double_guider(twice), model), sampler=samplers().KSAMPLER(first_of_two))

    known = profile() if how == "profile" else None
    model, reports = recording(store) if how == "record" else cached(None, known, speed=2.0)
    assert torch.equal(sample(model), sample(smooth()))
    (told,) = [one for one in reports[0].notes if one.code == "unknown_answer"]
    assert told.values["call"] == "0" and ("tuple" if twice is pair else "(1, 32, 2, 8, 8)") in told.text
    assert not reports[0].reused and not store.names()


# Samplers that ask the guider for its scale


def daemon(model: Any, x: Any, sigmas: Any, **kwargs: Any) -> Any:
    """As Detail Daemon: by the guider's scale it shows the model a little less noise in the middle of the run."""
    cfg, last = float(getattr(model.inner_model, "cfg", 1.0)), float(sigmas[0])

    def shown(x: Any, sigma: Any, **extra: Any) -> Any:
        return model(x, sigma * (1.0 - 0.005 * cfg * (0.3 < float(sigma[0]) / last < 0.97)), **extra)

    return samplers().k_diffusion_sampling.sample_euler(shown, x, sigmas, **kwargs)


def test_a_sampler_that_asks_the_guider_for_its_scale_is_foreseen(store: Any) -> None:
    def sample(model: Any) -> Any:
        return traps.with_guider(traps.cfg_guider(model), sampler=samplers().KSAMPLER(daemon))

    model, reports = recording(store)
    full = sample(model)
    assert "recorded" in codes(reports[0]), reports[0].as_text()
    assert error(sample(model), full) < 0.05 and reports[1].reused == traps.STEPS // 2


def test_the_probe_shows_a_guiders_plain_attributes_and_runs_nothing_of_it() -> None:
    from ertacache.comfy_erta import probing

    class Untouchable:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError

    class Guider:
        scale = 2.0

        def __init__(self) -> None:
            self.cfg, self.steps, self.mask, self.conds = [1.0, 2.0], 3, torch.zeros(2), {"positive": []}

        @property
        def touched(self) -> float:
            raise AssertionError

    guider = Guider()
    guider.models = [Untouchable()]
    shown = vars(probing._ProbedModel(lambda x, sigma: x, smooth(), "its sampler", guider).inner_model)
    assert sorted(shown) == ["cfg", "inner_model", "mask", "model_patcher", "models", "scale", "steps"]
    shown["cfg"].clear(), shown["mask"].fill_(1.0)
    assert guider.cfg == [1.0, 2.0] and not guider.mask.any()


# Caches of other names


def every_other(kept: dict[str, Any], sigma: float, compute: Any) -> Any:
    """From the fourth model call on every other one is answered by what was computed last."""
    if sigma > kept.get("sigma", 0.0):
        kept.clear()
    if sigma != kept.get("sigma"):
        kept.update(sigma=sigma, calls=kept.get("calls", 0) + 1)
    if kept["calls"] > 3 and kept["calls"] % 2:
        return kept["out"]
    kept["out"] = compute()
    return kept["out"]


def around_the_model() -> Any:
    """As ComfyUI-TaylorSeer: in the one slot for a function around the model."""
    model, kept = smooth().clone(), {}

    def around(apply: Any, given: Any) -> Any:
        sigma = float(given["timestep"][0])
        return every_other(kept, sigma, lambda: apply(given["input"], given["timestep"], **given["c"]))

    model.set_model_unet_function_wrapper(around)
    return model


def inside_the_model() -> Any:
    """As EasyCache: a wrapper inside of what ComfyUI does around the model."""
    kept: dict[str, Any] = {}

    def inside(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return every_other(kept, float(args[1].reshape(-1)[0]), lambda: executor(*args, **kwargs))

    return traps.wrapped(smooth(), "diffusion_model", inside)


def around_the_guidance() -> Any:
    """As LazyCache."""
    kept: dict[str, Any] = {}

    def inside(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return every_other(kept, float(args[3].reshape(-1)[0]), lambda: executor(*args, **kwargs))

    return traps.wrapped(smooth(), "calc_cond_batch", inside)


def in_place_of_the_blocks() -> Any:
    """As first block caches: the blocks behind the first are left out, and what they added is added again."""
    model, kept = smooth().clone(), {}

    def patch(args: Any, extra: Any) -> Any:
        sigma = float(args["transformer_options"]["sigmas"][0])
        added = every_other(kept, sigma, lambda: extra["original_block"](args)["img"] - args["img"])
        return {"img": args["img"] + added}

    model.set_model_patch_replace(patch, "dit", "double_block", 1)
    return model


OTHERS = [around_the_model, inside_the_model, around_the_guidance, in_place_of_the_blocks]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("how", ["record", "built-in"])
def test_a_cache_of_any_name_is_noticed_by_what_it_does(how: str, other: Any, store: Any) -> None:
    """torch.compile is loaded: ComfyUI does that at its start."""
    import torch._dynamo

    assert torch._dynamo.__name__ in sys.modules
    alone = render(other())
    base = other()
    model, reports = recording(store, base) if how == "record" else cached(base, speed=1.2)
    result = render(model)
    assert "answered_elsewhere" in codes(reports[0]), reports[0].as_text()
    assert not store.names()
    assert error(result, alone) < (1e-6 if how == "record" else 0.05)


def by_the_node(model: Any) -> Any:
    return traps.node("nodes_torch_compile", "TorchCompileModel", model, "eager")


def by_an_object_patch(model: Any) -> Any:
    patched = model.clone()
    patched.add_object_patch("diffusion_model", torch.compile(model.model.diffusion_model, backend="eager"))
    return patched


@pytest.mark.parametrize("compiled", [by_the_node, by_an_object_patch])
def test_around_a_compiled_model_a_cache_is_noticed_too(compiled: Any, store: Any) -> None:
    model, reports = recording(store, compiled(around_the_model()))
    render(model)
    assert "answered_elsewhere" in codes(reports[0]) and not store.names()


def test_ranges_passes_and_windows_are_no_cache() -> None:
    """A model call with fewer conds, with other passes or with windows is a computed one."""
    from ertacache.tests.comfy.test_traps_owner import skip_layer, windowed

    cases = [
        (smooth(), {"negative": traps.phrase(-1, start_percent=0.0, end_percent=0.5)}),
        (skip_layer(0.3, 0.7), {}),
        (skip_layer(0.0, 1.0, "0, 1"), {}),
        (windowed("standard_uniform"), {"latent": traps.empty(frames=13, height=4, width=4)}),
    ]
    for base, inputs in cases:
        model, reports = cached(base, speed=1.5)
        render(model, **inputs)
        assert "answered_elsewhere" not in codes(reports[0]) and reports[0].reused


def test_the_name_of_a_function_around_the_model_is_known() -> None:
    from ertacache.comfy_erta.run import other_caches

    def around(apply: Any, given: Any) -> Any:
        return apply(given["input"], given["timestep"], **given["c"])

    around.__module__ = "ComfyUI-TaylorSeer.nodes"
    assert other_caches({"model_function_wrapper": around}) == ("taylorseer",)


# Guiders that keep a range, a scale for each step or a switch


@functools.cache
def scheduled_guider() -> Any:
    """As KJNodes' ScheduledCFGGuidance: guidance within a range of the steps, by a scale or by a list of them."""

    class Scheduled(samplers().CFGGuider):
        def set_cfg(self, cfg: Any, start_percent: float = 0.0, end_percent: float = 1.0) -> None:
            self.cfg, self.start_percent, self.end_percent = cfg, start_percent, end_percent

        def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
            steps = model_options["transformer_options"]["sample_sigmas"]
            at = int((steps - timestep[0]).abs().argmin())
            within = self.start_percent <= at / (len(steps) - 1) <= self.end_percent
            scale = self.cfg[at] if isinstance(self.cfg, (list, torch.Tensor)) else self.cfg
            kept, self.cfg = self.cfg, float(scale) if within else 1.0
            try:
                return super().predict_noise(x, timestep, model_options, seed)
            finally:
                self.cfg = kept

    return Scheduled


def with_schedule(model: Any, *schedule: Any) -> Any:
    guider = guider_of(scheduled_guider(), model)
    guider.set_cfg(*schedule)
    return traps.with_guider(guider)


HALVES = [6.0] * 6 + [1.0] * 6
SCHEDULES = {
    "a range": ((6.0, 0.25, 0.6), {3, 8}),
    "a range between steps": ((6.0, 0.3, 0.62), {4, 8}),
    "a list": ((HALVES,), {6}),
    "a tensor": ((torch.tensor(HALVES),), {6}),
    "a list that falls evenly": (([6.0 - 0.4 * i for i in range(12)],), set()),
}


@levels
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_range_or_a_scale_for_each_step_that_a_guider_keeps_is_an_edge(level: str, name: str) -> None:
    schedule, edges = SCHEDULES[name]
    model, reports = cached(None, profile(level), speed=1.5, level=level)
    result, full = with_schedule(model, *schedule), with_schedule(smooth(), *schedule)
    assert edges <= set(plan_from_json(reports[0].plan).resets), "reuse goes on across the edge"
    assert bool(edges) or len(plan_from_json(reports[0].plan).resets) == 1
    assert error(result, full) < 0.03 and reports[0].reused > 0


@functools.cache
def adaptive_guider() -> Any:
    """As Adaptive Guidance: where the two predictions are alike, guidance ends for the rest of the run."""

    class Adaptive(samplers().CFGGuider):
        threshold, threshold_timestep = 0.0, 0.0

        def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
            sigma = float(timestep[0])
            if self.threshold_timestep > sigma:
                kept, self.cfg = self.cfg, 1.0
                try:
                    return super().predict_noise(x, timestep, model_options, seed)
                finally:
                    self.cfg = kept
            if sigma < self.threshold:  # what is seen there stands for the likeness of the two
                self.threshold_timestep = sigma
            return super().predict_noise(x, timestep, model_options, seed)

    return Adaptive


@pytest.mark.parametrize("how", ["record", "built-in"])
def test_a_guider_that_switches_on_the_way_is_noticed(how: str, store: Any) -> None:
    def sample(model: Any) -> Any:
        guider = guider_of(adaptive_guider(), model)
        guider.threshold = 0.93
        return traps.with_guider(guider)

    full = sample(smooth())
    model, reports = recording(store) if how == "record" else cached(None, speed=1.5)
    assert error(sample(model), full) < 0.03
    (told,) = [one for one in reports[0].notes if one.code == "guidance_remembers"]
    assert told.values["name"] == "threshold_timestep of Adaptive" and not store.names()


# Guidance with a memory


def by_a_closure(momentum: float) -> Any:
    """ComfyUI's own."""
    return traps.node("nodes_apg", "APG", smooth(), 0.5, 5.0, momentum)


class Averaged:
    """The same as an object that is called, whose mean lies one object deeper."""

    def __init__(self, momentum: float) -> None:
        self.momentum, self.kept = momentum, {"mean": None, "sigma": 0.0}

    def __call__(self, args: dict[str, Any]) -> torch.Tensor:
        moved, sigma = args["cond_denoised"] - args["uncond_denoised"], float(args["sigma"][0])
        mean = None if sigma > self.kept["sigma"] else self.kept["mean"]
        self.kept["sigma"] = sigma
        if self.momentum:
            self.kept["mean"] = moved if mean is None else moved + self.momentum * mean
        return args["denoised"] + 0.3 * (self.kept["mean"] if self.momentum else moved)


def by_an_object(momentum: float) -> Any:
    model = smooth().clone()
    model.set_model_sampler_post_cfg_function(Averaged(momentum))
    return model


def by_the_options(momentum: float) -> Any:
    """As sd-perturbed-attention's MomentumGuidance: among the options that come with each model call."""
    model = smooth().clone()

    def guide(args: dict[str, Any]) -> torch.Tensor:
        kept = args["model_options"].setdefault("momentum of others", {})
        moved = args["cond_denoised"] - args["uncond_denoised"]
        sigma, mean = float(args["sigma"][0]), kept.get("mean", moved)
        kept.update({"sigma": sigma} if not momentum else {"sigma": sigma, "mean": moved + momentum * mean})
        return args["denoised"] + 0.3 * (kept["mean"] if momentum else moved)

    model.set_model_sampler_post_cfg_function(guide)
    return model


MEMORIES = {
    by_a_closure: "running_avg of APG",
    by_an_object: "mean in kept of Averaged",
    by_the_options: "mean in momentum of others in the model's options",
}


@pytest.mark.parametrize("odd", [10**400, float("nan"), -float("inf"), [float("nan")] * 12, [10**400] * 12])
def test_numbers_that_cannot_be_compared_are_no_memory_and_no_edge(odd: Any) -> None:
    def sample(model: Any) -> Any:
        guider = traps.cfg_guider(model)
        guider.sigma_of_its_own = guider.weights = odd
        return traps.with_guider(guider)

    model, reports = cached(None, speed=2.0)
    assert error(sample(model), sample(smooth())) < 0.05 and reports[0].reused == traps.STEPS // 2


@pytest.mark.parametrize("make", MEMORIES)
def test_a_run_whose_guidance_remembers_is_computed_in_full_and_named(make: Any, store: Any) -> None:
    base = make(-0.75)
    full = render(base)
    model, reports = recording(store, base)
    for _ in range(2):
        assert torch.equal(render(model), full)
        (told,) = [one for one in reports[-1].notes if one.code == "guidance_remembers"]
        assert MEMORIES[make] == told.values["name"]
    assert not store.names()


@pytest.mark.parametrize("make", MEMORIES)
@pytest.mark.parametrize("known", [False, True])
def test_a_memory_is_noticed_within_a_run_that_reuses(make: Any, known: bool) -> None:
    base = make(-0.75)
    model, reports = cached(base, profile() if known else None, speed=2.0)
    assert torch.equal(render(model), render(base))
    assert "guidance_remembers" in codes(reports[0]) and not reports[0].reused


@pytest.mark.parametrize("make", MEMORIES)
def test_a_clock_and_what_the_first_call_sets_up_are_no_memory(make: Any, store: Any) -> None:
    """Both keep the last sigma, to see a new run begin."""
    model, reports = recording(store, make(0.0))
    full = render(model)
    assert "recorded" in codes(reports[0]), reports[0].as_text()
    assert error(render(model), full) < 0.03 and reports[1].reused == traps.STEPS // 2


def test_a_count_down_with_the_timestep_is_no_memory(store: Any) -> None:
    """As sd-dynamic-thresholding does: it asks how far the run is. One more model call is computed to see that."""
    base, kept = smooth().clone(), {"step": 0.0}

    def guide(args: dict[str, Any]) -> torch.Tensor:
        kept["step"] = 999.0 - float(base.model.model_sampling.timestep(args["sigma"])[0])
        return args["denoised"]

    base.set_model_sampler_post_cfg_function(guide)
    model, reports = recording(store, base)
    full = render(model)
    assert "recorded" in codes(reports[0]), reports[0].as_text()
    assert error(render(model), full) < 0.03 and reports[1].reused >= traps.STEPS // 2 - 1


def test_blocks_level_runs_all_guidance_and_leaves_its_memory_alone() -> None:
    base = by_a_closure(-0.5)
    model, reports = cached(base, profile("blocks"), speed=2.0, level="blocks")
    assert error(render(model), render(base)) < 0.03 and reports[0].reused == traps.STEPS // 2


# Conds in threads, on several devices


@functools.cache
def pool() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(2)


def split_in_threads() -> Any:
    """As ComfyUI's MultiGPU CFG Split: each cond in a thread of its own. Within each block one waits for the other."""

    base, meet = smooth().clone(), threading.Barrier(2, timeout=20)

    def in_threads(executor: Any, model: Any, conds: Any, x: Any, timestep: Any, options: Any) -> Any:
        def one(n: int) -> Any:
            alone = [cond if k == n else [] for k, cond in enumerate(conds)]
            with torch.inference_mode():
                return executor(model, alone, x.clone(), timestep, options)[n]

        return list(pool().map(one, range(len(conds))))

    def patch(args: Any, extra: Any) -> Any:
        meet.wait()
        return extra["original_block"](args)

    for block in range(2):
        base.set_model_patch_replace(patch, "dit", "double_block", block)
    return traps.wrapped(base, "calc_cond_batch", in_threads)


@functools.cache
def batched(level: str) -> list[float]:
    """Sizes of what is recorded where both conds come in one batch."""
    from ertacache.comfy_erta.recording import Recording
    from ertacache.comfy_erta.run import attach

    found: list[float] = []

    def keep(measured: Any, tables: Any) -> tuple[()]:
        found.extend(sorted(float(table.gram.trace()) for table in tables))
        return ()

    render(attach(smooth(), Recording(level, 0, keep, lambda report: None)))
    return found


@levels
@pytest.mark.parametrize("how", ["plan", "record"])
def test_conds_in_threads_give_the_picture_of_conds_in_a_batch(level: str, how: str, store: Any) -> None:
    def cache(base: Any = None) -> tuple[Any, Any]:
        known = {"level": level, "speed": 2.0}
        return cached(base, profile(level), **known) if how == "plan" else recording(store, base, **known)

    expected = render(cache()[0]) if how == "plan" else render()
    for _ in range(3):
        model, reports = cache(split_in_threads())
        result = render(model)
        assert reports[0].complete and reports[0].computed == traps.STEPS // (2 if how == "plan" else 1)
        assert error(result, expected) < 1e-4, "one thread's tokens went to the other"
        for name in store.names():
            found = sorted(float(table.gram.trace()) for table in store.load(name).tables)
            (store.user_dir / f"{name}.safetensors").unlink()
            assert found == pytest.approx(batched(level), rel=1e-3), "one thread's tokens went to the other"


def test_conds_of_which_a_forward_gets_a_part_are_left_alone(store: Any) -> None:
    """As raylight hands them out: both names, and the batch of one of them."""

    def halved(executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = next(arg for arg in args if isinstance(arg, dict))
        if len(options["uuids"]) == 1:
            return executor(*args, **kwargs)
        whole = len(options["uuids"])

        def part(n: int) -> list[Any]:
            return [arg[n : n + 1] if isinstance(arg, torch.Tensor) and len(arg) == whole else arg for arg in args]

        return torch.cat([executor(*part(n), **kwargs) for n in range(whole)])

    base = traps.wrapped(smooth(), "diffusion_model", halved)
    full = render(base)
    for model, reports in (recording(store, base, level="blocks"), cached(base, speed=2.0, level="blocks")):
        assert error(render(model), full) < 1e-5
        assert codes(reports[0]).count("batch_unknown") == 1 and not reports[0].reused
    assert not store.names()


# Models that open a memory graph before what is put around their forward (trap T25)


class Graph:
    """Stands for ComfyUI's compiler: what runs on the thread between begin and end is recorded."""

    def __init__(self) -> None:
        self.MALLOC_GRAPHS: dict[int, Any] = {}
        self.enabled, self.recorded = True, []

    def malloc_graph_enabled(self, device: Any) -> bool:
        return self.enabled

    def malloc_graph_begin(self, device: Any) -> None:
        graph = self

        class Recording(TorchDispatchMode):
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                graph.recorded[-1].append(str(function))
                return function(*args, **(kwargs or {}))

        self.recorded.append([])
        self.mode = Recording()
        self.mode.__enter__()
        self.MALLOC_GRAPHS[threading.get_ident()] = self

    def malloc_graph_end(self) -> None:
        self.mode.__exit__(None, None, None)


@pytest.fixture
def graph(monkeypatch: Any) -> Any:
    """A ComfyUI whose Wan opens a graph, as its newer models do."""
    import sys

    import comfy

    prefetch, model = Graph(), type(smooth().model.diffusion_model)
    plain = model.forward

    def forward(wan: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        comfy.model_prefetch.malloc_graph_begin(x.device)
        try:
            return plain(wan, x, *args, **kwargs)
        finally:
            comfy.model_prefetch.malloc_graph_end()

    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", prefetch)
    monkeypatch.setattr(comfy, "model_prefetch", prefetch, raising=False)
    monkeypatch.setattr(model, "forward", forward)
    return prefetch


def test_t25_output_level_runs_nothing_inside_a_forward(graph: Any, store: Any) -> None:
    full = render()
    plain = graph.recorded[0]
    assert plain and all(ops == plain for ops in graph.recorded)
    graph.recorded.clear()
    model, reports = recording(store)
    assert torch.equal(render(model), full) and error(render(model), full) < 0.03
    assert reports[1].reused == traps.STEPS // 2 and len(graph.recorded) == traps.STEPS * 3 // 2
    assert all(ops == plain for ops in graph.recorded)


def test_t25_level_blocks_is_refused_and_paper_mode_goes_on_at_level_output(graph: Any) -> None:
    from ertacache.nodes.options import Options

    full = render()
    model, reports = cached(None, speed=2.0, level="blocks")
    assert torch.equal(render(model), full)
    (told,) = reports[0].notes
    assert told.code == "computed_all" and "--disable-comfy-compiler" in told.text
    assert Options.of(mode="paper").settings(2.0, smooth()).level == "output"
    graph.enabled = False
    assert Options.of(mode="paper").settings(2.0, smooth()).level == "blocks"


def test_t25_a_graph_that_is_seen_only_when_it_is_open_is_left_alone(graph: Any, store: Any) -> None:
    full = render()
    plain = graph.recorded[0]
    graph.recorded.clear()
    graph.enabled = False  # as in a version that asks in another way
    graph.MALLOC_GRAPHS.clear()
    for model, reports in (recording(store, level="blocks"), cached(None, speed=2.0, level="blocks")):
        assert torch.equal(render(model), full)
        assert codes(reports[0]).count("memory_graph") == 1 and not reports[0].reused
    assert all(ops == plain for ops in graph.recorded) and not store.names()
