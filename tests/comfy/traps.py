"""What the trap tests share: two models, one call that renders with them, and eyes on what happens inside.

`smooth` has random weights, and its pictures follow the prompts: what is reused costs it less than a hundredth, what
is given to the wrong cond all there is. `trained` is the demo's model, where the sizes of errors mean something.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ertacache.erta.plan import Plan
from ertacache.erta.profile import Profile
from ertacache.erta.replay import Replay
from ertacache.erta.settings import Settings

STEPS, GUIDANCE = 12, 5.0

LEVELS = ("output", "blocks")
levels = pytest.mark.parametrize("level", LEVELS)

Conditioning = list[list[Any]]
Reports = list[Any]


@functools.cache
def smooth() -> Any:
    """ModelPatcher of a tiny Wan whose random weights heed the prompt more than most."""
    import comfy.sd

    from ertacache.tests.comfy.conftest import wan_weights

    weights = wan_weights()
    for name in weights:
        if name.endswith("weight") and ("cross_attn.v" in name or "cross_attn.o" in name or "text_embedding" in name):
            weights[name] *= 3.0
    return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})


@functools.cache
def trained(dtype: torch.dtype | None = None) -> Any:
    """ModelPatcher of the demo's tiny Wan, with its shift; one per dtype of the weights."""
    import comfy.sd
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    from ertacache.bench.config import read_config
    from ertacache.bench.subjects import model_file

    config = read_config("tiny_wan")
    options = {} if dtype is None else {"dtype": dtype}
    model = comfy.sd.load_diffusion_model(str(model_file(config)), model_options=options)
    return ModelSamplingSD3().patch(model, config.shift)[0] if config.shift else model


def phrase(number: int, **values: Any) -> Conditioning:
    """Random conditioning; values as ComfyUI's conditioning nodes set them. 0 is what ``render`` takes by itself."""
    generator = torch.Generator().manual_seed(100 + number)
    return [[torch.randn(1, 4, 4096, generator=generator), dict(values)]]


@functools.cache
def _encoded(number: int) -> Any:
    from ertacache.bench.subjects import TinyWan

    subject = TinyWan()
    return subject.negative[0][0] if number < 0 else subject.encode(subject.prompts[number])[0][0]


def words(number: int) -> Conditioning:
    """A prompt that the trained model has not seen, -1 for the empty one."""
    return [[_encoded(number), {}]]


def empty(batch: int = 1, frames: int = 2, height: int = 8, width: int = 8) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(batch, 16, frames, height, width)}


@torch.inference_mode()  # as ComfyUI runs its nodes
def render(model: Any = None, **changed: Any) -> torch.Tensor:
    """The final latent by way of ComfyUI's common_ksampler; with the smooth model where none is given."""
    import nodes

    inputs = {
        "seed": 5,
        "steps": STEPS,
        "cfg": GUIDANCE,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": phrase(0),
        "negative": phrase(-1),
        "latent": empty(),
        **changed,
    }
    result: torch.Tensor = nodes.common_ksampler(smooth() if model is None else model, **inputs)[0]["samples"]
    return result


def render_trained(model: Any, prompt: int = 0, **changed: Any) -> torch.Tensor:
    """The trained model's kind of picture."""
    inputs = {"positive": words(prompt), "negative": words(-1), "latent": empty(frames=5), **changed}
    return render(model, **inputs)


def node(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """First output of a node of comfy_extras, old style or new."""
    cls = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    if hasattr(cls, "FUNCTION") and not hasattr(cls, "execute"):
        return getattr(cls(), cls.FUNCTION)(*args, **kwargs)[0]
    return cls.execute(*args, **kwargs).result[0]


@torch.inference_mode()
def with_guider(guider: Any, sigmas: torch.Tensor | None = None, sampler: Any = "euler", latent: Any = None) -> Any:
    """Rendered as SamplerCustomAdvanced does; on 12 simple steps where no sigmas are given."""
    custom = "nodes_custom_sampler"
    if sigmas is None:
        sigmas = node(custom, "BasicScheduler", guider.model_patcher, "simple", STEPS, 1.0)
    noise = node(custom, "RandomNoise", 5)
    picked = node(custom, "KSamplerSelect", sampler) if isinstance(sampler, str) else sampler
    found = node(custom, "SamplerCustomAdvanced", noise, guider, picked, sigmas, latent or empty())
    return found["samples"]


def cfg_guider(model: Any) -> Any:
    return node("nodes_custom_sampler", "CFGGuider", model, phrase(0), phrase(-1), GUIDANCE)


@functools.cache
def profile(level: str = "output") -> Profile:
    """Of the smooth model, on two prompts that nothing else renders."""
    return measure(lambda model, run: render(model, seed=40 + run, positive=phrase(10 + run)), level, smooth())


def measure(sample: Callable[[Any, int], Any], level: str, model: Any) -> Profile:
    from ertacache.comfy_erta.measuring import measure_profile

    return measure_profile(model, sample, 2, level, "simple", lambda report: None)


def cached(model: Any = None, known: Profile | None = None, **settings: Any) -> tuple[Any, Reports]:
    """(the model with the cache on it, what it reports): by a profile, or else by the built-in plan."""
    from ertacache.comfy_erta.caching import Caching
    from ertacache.comfy_erta.run import attach
    from ertacache.comfy_erta.store import Store

    reports: Reports = []
    nowhere = Store(Path("nowhere"))
    task = Caching(Settings(**settings), nowhere, reports.append, known, without_profile="built-in plan")
    return attach(model or smooth(), task), reports


@dataclass(frozen=True)
class Following:
    """A task that follows one plan, whatever the run is; for plans that nobody would make."""

    plan: Plan
    on_report: Callable[[Any], None]
    observe: Callable[[Plan], Replay] = Replay

    def begin(self, context: Any) -> Any:
        from ertacache.comfy_erta.task import Start

        sigmas, level = self.plan.sigmas, self.plan.settings.level
        return Start(self.observe(self.plan), level, sigmas, self.plan, finish=self._finish)

    def _finish(self, report: Any, samples: Any) -> None:
        self.on_report(report)


def follow(model: Any, plan: Plan, observe: Callable[[Plan], Replay] = Replay) -> tuple[Any, Reports]:
    from ertacache.comfy_erta.run import attach

    reports: Reports = []
    return attach(model, Following(plan, reports.append, observe)), reports


def wrapped(model: Any, kind: str, wrapper: Callable[..., Any]) -> Any:
    """A clone with one more wrapper of a kind of WrappersMP. Put on before the cache it lies around it."""
    clone = model.clone()
    clone.add_wrapper_with_key(kind, "watched by the tests", wrapper)
    return clone


def counted(model: Any) -> tuple[Any, list[float]]:
    """(a clone, sigma of each call): what the model itself was asked, whatever the cache says about it."""
    calls: list[float] = []

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(float(args[1].reshape(-1)[0]))
        return executor(*args, **kwargs)

    return wrapped(model, "apply_model", count), calls


def kept_apart(monkeypatch: Any, model: Any) -> None:
    """Guidance in separate calls: as if memory were short."""
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)


def codes(report: Any) -> list[str]:
    """Of a report's notes: what they say, whatever the wording."""
    return [note.code for note in report.notes]


def error(result: torch.Tensor, full: torch.Tensor) -> float:
    return float((result - full).norm() / full.norm())
