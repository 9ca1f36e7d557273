"""Every sampler and scheduler that ComfyUI lists, and every way of calling them.

What becomes of each sampler is the table in docs/compatibility/samplers.md. It is made by this test and compared with
what happens here; after a change that is meant: ERTA_RENEW_TABLES=1 python -P -m pytest tests/comfy/test_samplers.py
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ertacache.demo.comfyui import VERSION, version
from ertacache.erta.planner import MIN_CALLS
from ertacache.tests.comfy.traps import (
    STEPS,
    cached,
    cfg_guider,
    codes,
    empty,
    error,
    levels,
    node,
    phrase,
    profile,
    render,
    smooth,
    with_guider,
)

pytestmark = pytest.mark.usefixtures("comfy_pack")

TABLE = Path(__file__).parents[2] / "docs" / "compatibility" / "samplers.md"
HEADING = f"""# Samplers

What ERTACache does with each sampler that ComfyUI lists, at {STEPS} steps and speed 2. Made by a test that compares it
with what really happens (`tests/comfy/test_samplers.py`). It holds for every scheduler: a plan is made for the sigmas
of the run, whichever node they come from.

"Model calls" are calls of the sampler to its model; some samplers make more than one per step. "passed through" means
that everything is computed, to the bit as without the cache, and the report says why.

| Sampler | Model calls | Computed at 2x | What happens |
|---|---|---|---|
"""

WHY = {
    "how often or where": "passed through: how often and where it calls the model depends on the model's output",
    "from within guidance": "passed through: it reads the unconditional prediction, which a reused model call lacks",
}


def sampler_names() -> list[str]:
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS)


# These amplify errors by the steps before: they left 0.37 and 0.27, all others less than 0.13.
AMPLIFYING = ("lms", "ipndm_v")


@functools.cache
def outcome(name: str) -> tuple[str, str, str]:
    """A row of the table without its name, from a run with the cache and one without."""
    model, reports = cached(speed=2.0)
    result, full = render(model, sampler_name=name), render(sampler_name=name)
    (report,) = reports
    assert report.computed + report.reused == report.calls
    if report.reused:
        # Fresh noise is the same with and without, but what it is added to is not.
        assert report.complete and error(result, full) < (0.5 if name in AMPLIFYING else 0.15)
        what = "reused; it amplifies errors, so it wants less speed" if name in AMPLIFYING else "reused"
        return str(report.calls), str(report.computed), what
    assert torch.equal(result, full)
    (note,) = report.notes
    return "–", "all", next((text for part, text in WHY.items() if part in note.text), note.text)


def row(name: str) -> str:
    return f"| {' | '.join((name, *outcome(name)))} |"


def rows() -> dict[str, str]:
    """The table as it is written, by sampler."""
    text = TABLE.read_text(encoding="utf-8")
    assert text.startswith(HEADING)
    return {line.split("|")[1].strip(): line for line in text.removeprefix(HEADING).splitlines()}


def known_names() -> list[str]:
    """Samplers with a row that the ComfyUI at hand lists: an older one lists fewer, a newer one has others as well."""
    return [name for name in sampler_names() if name in rows()]


def test_the_table_of_samplers_is_what_happens(comfy_path):
    if os.environ.get("ERTA_RENEW_TABLES"):
        TABLE.write_text(HEADING + "\n".join(map(row, sampler_names())) + "\n", encoding="utf-8")
    missing = set(sampler_names()) - set(rows())
    assert not missing or version(comfy_path) != VERSION, f"not in {TABLE.name}: {missing}. {__doc__}"
    written = rows()
    assert {name: written[name] for name in known_names()} == {name: row(name) for name in known_names()}


def test_a_sampler_of_a_newer_comfyui_fails_no_test_for_want_of_a_row(comfy, monkeypatch):
    import comfy.samplers

    monkeypatch.setattr(comfy.samplers.KSampler, "SAMPLERS", [*sampler_names(), "cfgpp_ud10_ab"])
    assert "cfgpp_ud10_ab" in sampler_names() and "cfgpp_ud10_ab" not in known_names()


def test_most_samplers_are_reused():
    passed = {name for name in known_names() if outcome(name)[1] == "all"}
    assert passed == {name for name in known_names() if "cfg_pp" in name or name == "dpm_adaptive"}


def schedulers() -> list[str]:
    return "simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal".split()


def test_every_scheduler_is_tried(comfy_path):
    import comfy.samplers

    assert not set(comfy.samplers.KSampler.SCHEDULERS) - set(schedulers()) or version(comfy_path) != VERSION


@pytest.mark.parametrize("scheduler", schedulers())
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "uni_pc"])
def test_every_scheduler_is_reused(sampler, scheduler):
    model, reports = cached(speed=2.0)
    inputs = {"sampler_name": sampler, "scheduler": scheduler}
    found = error(render(model, **inputs), render(**inputs))
    assert reports[0].reused and reports[0].complete
    assert found < 0.15


@levels
def test_previews_and_progress_are_those_of_the_plain_sampler(level):
    """The callback comes for each step with a picture, reused or not."""
    import comfy.sample

    seen: list[list[tuple[int, int, torch.Size]]] = []
    model, reports = cached(speed=2.0, level=level)
    latent = empty()["samples"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    for one in (model, smooth()):
        steps: list[tuple[int, int, torch.Size]] = []
        seen.append(steps)

        def note(step: int, x0: torch.Tensor, x: torch.Tensor, total: int, steps=steps) -> None:
            steps.append((step, total, x0.shape))

        settings = (STEPS, 5.0, "euler", "simple", phrase(0), phrase(-1), latent)
        comfy.sample.sample(one, noise, *settings, callback=note, disable_pbar=True)
    assert seen[0] == seen[1] and len(seen[0]) == STEPS
    assert reports[0].reused == STEPS // 2


def advanced(model: Any, latent: Any, start: int, end: int, noise: bool, leftover: bool, steps: int) -> Any:
    import nodes

    names = ("disable", "enable")
    settings = (names[noise], 5, steps, 5.0, "euler", "simple", phrase(0), phrase(-1), latent)
    return nodes.KSamplerAdvanced().sample(model, *settings, start, end, names[leftover])[0]


@levels
def test_ranges_with_leftover_noise_are_two_cached_runs(level):
    model, reports = cached(None, profile(level), speed=1.5, level=level)
    results = []
    for one in (model, smooth()):
        first = advanced(one, empty(), 0, 8, True, True, 16)
        results.append(advanced(one, first, 8, 16, False, False, 16)["samples"])
    assert error(*results) < 0.05
    assert [report.calls for report in reports] == [8, 8]
    assert all(report.reused for report in reports)
    whole = render(steps=16)
    assert error(results[1], whole) < 1e-5, "the halves are the whole"


@levels
def test_sampler_custom(level):
    model, reports = cached(None, profile(level), speed=2.0, level=level)
    custom = "nodes_custom_sampler"
    sigmas = node(custom, "BasicScheduler", smooth(), "simple", STEPS, 1.0)
    high, low = node_outputs(custom, "SplitSigmas", sigmas, 6)
    picked = node(custom, "KSamplerSelect", "euler")
    results = []
    for one in (model, smooth()):
        first = node(custom, "SamplerCustom", one, True, 5, 5.0, phrase(0), phrase(-1), picked, high, empty())
        results.append(node(custom, "SamplerCustom", one, False, 5, 5.0, phrase(0), phrase(-1), picked, low, first))
    assert error(*(result["samples"] for result in results)) < 0.1
    assert [report.calls for report in reports] == [6, 6]


def node_outputs(module: str, name: str, *args: Any) -> Any:
    import importlib

    return getattr(importlib.import_module(f"comfy_extras.{module}"), name).execute(*args).result


CUSTOM = {
    "SamplerDPMPP_2M_SDE": ("midpoint", 1.0, 1.0, "cpu"),
    "SamplerDPMPP_SDE": (1.0, 1.0, 0.5, "cpu"),
    "SamplerEulerAncestral": (1.0, 1.0),
    "SamplerER_SDE": ("ER-SDE", 3, 1.0, 1.0),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_sampler_nodes_with_settings_of_their_own(name):
    sampler = node("nodes_custom_sampler", name, *CUSTOM[name])
    model, reports = cached(speed=2.0)
    result, full = (with_guider(cfg_guider(one), sampler=sampler) for one in (model, smooth()))
    assert reports[0].reused and reports[0].complete
    assert error(result, full) < 0.1


@levels
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_each_picture_of_a_batch_is_right(level, batch):
    model, reports = cached(None, profile(level), speed=2.0, level=level)
    results, full = render(model, latent=empty(batch)), render(latent=empty(batch))
    assert max(error(one, other) for one, other in zip(results, full, strict=True)) < 0.03
    assert reports[0].computed == STEPS // 2


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6, 7, 9, 20, 33, 100])
def test_from_1_to_100_steps(steps):
    """From the first count that leaves something to reuse on, half is computed and the picture stays."""
    model, reports = cached(speed=2.0)
    found = error(render(model, steps=steps), render(steps=steps))
    expected = steps if steps < MIN_CALLS else round(steps / 2)
    assert reports[0].computed == expected
    assert found == 0.0 if steps < MIN_CALLS else found < (0.1 if steps > 6 else 0.3)


@pytest.mark.parametrize("sampler", ["euler", "lcm", "dpmpp_sde", "res_multistep"])
@pytest.mark.parametrize("steps", [4, 8])
def test_settings_of_few_step_loras(sampler, steps):
    """Guidance 1 and 4 or 8 steps: 4 are passed through with a line, 8 gain something, and both are right."""
    model, reports = cached(speed=1.5)
    inputs = {"sampler_name": sampler, "steps": steps, "cfg": 1.0, "scheduler": "sgm_uniform"}
    found = error(render(model, **inputs), render(**inputs))
    (report,) = reports
    if report.calls < MIN_CALLS:
        assert found == 0.0 and "too_few_calls" in codes(report)
    else:
        assert report.reused and found < 0.25


def masked(frames: int = 2) -> dict[str, torch.Tensor]:
    """A latent whose left half is kept."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1.0
    generator = torch.Generator().manual_seed(2)
    return {"samples": torch.randn(1, 16, frames, 8, 8, generator=generator), "noise_mask": mask}


@levels
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_inpainting_keeps_what_the_mask_protects(level, sampler, denoise):
    model, reports = cached(speed=2.0, level=level)
    inputs = {"latent": masked(), "sampler_name": sampler, "denoise": denoise}
    result, full = render(model, **inputs), render(**inputs)
    assert reports[0].reused and reports[0].complete
    assert error(result, full) < 0.1
    assert (result - masked()["samples"])[..., :4].abs().max() < 1e-4


@levels
def test_differential_diffusion_is_right(level):
    """The mask changes from step to step, and what it protects comes back with other noise each time."""
    latent = masked()
    latent["noise_mask"] = torch.linspace(0.0, 1.0, 8).expand(1, 1, 8, 8).clone()
    with_mask = node("nodes_differential_diffusion", "DifferentialDiffusion", smooth())
    model, reports = cached(with_mask, speed=2.0, level=level)
    assert error(render(model, latent=latent), render(with_mask, latent=latent)) < 0.1
    assert reports[0].reused


def test_a_sampler_that_gets_along_with_no_unconditional_prediction_is_seen(monkeypatch):
    """One of the cfg_pp samplers starts from a zero for it, so that its result looks linear: the error was 21."""
    from ertacache.comfy_erta import probing

    monkeypatch.setattr(probing._ProbedModel, "__call__", lambda self, x, sigma, **kwargs: self._denoise(x, sigma))
    outcome.cache_clear()
    with pytest.raises(AssertionError):
        outcome("dpmpp_2s_ancestral_cfg_pp")
