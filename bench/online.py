"""Rules that look at the run while it goes on: what a rival needs around each model call, and nothing left afterwards.

following.py serves rivals whose schedule is known before the run. These here decide, or weigh, by what they see.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP

from ..comfy_erta.probing import sampler_response
from ..erta.schedules import Schedule
from .methods import Place, Proposals, Setting

KEY = "erta_bench_online"

# How often an interval of thresholds is halved towards the budget. SeaCache on the tiny Wan goes from 29 to 23 computed
# calls within 8 % of the threshold, too little for the 7 of EasyCache.
HALVINGS = 9

Executor = Callable[..., torch.Tensor]


class Rule(Protocol):
    """A rule in one run. A new one is made for every run."""

    def prepare(self, model_options: dict[str, Any]) -> None:
        """Put what the rule needs into the options of this run."""

    def call_model(self, executor: Executor, x: torch.Tensor, sigma: torch.Tensor, *rest: Any) -> torch.Tensor:
        """One model call after guidance: x (B, ...), sigma (B,) -> denoised (B, ...)."""


Make = Callable[[tuple[float, ...], Any], Rule]
"""(sigmas of the model calls and the last one of the schedule, the guider's ModelPatcher) -> the rule of a run."""


def online(model: Any, make: Make) -> Any:
    """A clone whose runs each get a rule of their own. The model and its options are as before when a run is over."""
    clone = model.clone()
    known: dict[bytes, tuple[float, ...]] = {}

    def outer_sample(executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Any, *args: Any, **kw: Any) -> Any:
        guider = executor.class_obj
        schedule = sigmas.detach().to("cpu", torch.float64).numpy()
        if schedule.tobytes() not in known:  # probed once, so that no rival's time pays for it at every run
            calls = sampler_response(sampler, schedule, guider.model_patcher).sigmas
            known[schedule.tobytes()] = (*map(float, calls), float(schedule[-1]))
        rule = make(known[schedule.tobytes()], guider.model_patcher)
        options = guider.model_options
        guider.model_options = comfy.model_patcher.create_model_options_clone(options)
        _wrap(WrappersMP.PREDICT_NOISE, rule.call_model, guider.model_options)
        rule.prepare(guider.model_options)
        try:
            return executor(noise, latent, sampler, sigmas, *args, **kw)
        finally:
            guider.model_options = options

    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    return clone


def _wrap(kind: str, function: Callable[..., Any], model_options: dict[str, Any]) -> None:
    comfy.patcher_extension.add_wrapper_with_key(kind, KEY, function, model_options, is_model_options=True)


def wrap_forward(forward: Callable[..., Any], model_options: dict[str, Any]) -> None:
    """Put ``forward(executor, *args, **kwargs)`` around the diffusion model of this run."""
    _wrap(WrappersMP.DIFFUSION_MODEL, forward, model_options)


class OutputRule:
    """A rule that predicts what the model gives after guidance. Where it predicts nothing the result is untouched."""

    def __init__(self) -> None:
        self._call = -1

    def prepare(self, model_options: dict[str, Any]) -> None:
        """Nothing: the wrapper that every run has is enough."""

    def call_model(self, executor: Executor, x: torch.Tensor, sigma: torch.Tensor, *rest: Any) -> torch.Tensor:
        self._call += 1
        i = self._call
        predicted = self.predict(i, x)
        if predicted is not None:
            return predicted.to(x.dtype)
        denoised = executor(x, sigma, *rest)
        self.observe(i, x, denoised)
        return denoised

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor | None:
        """Denoised of model call i, or None where it is to be computed."""
        raise NotImplementedError

    def observe(self, i: int, x: torch.Tensor, denoised: torch.Tensor) -> None:
        """What was computed at model call i."""
        raise NotImplementedError


def halved(place: Place, low: float, high: float, make: Callable[[float], Setting]) -> Proposals:
    """A threshold halved towards the budget, on a logarithmic scale; a larger one computes less."""
    for _ in range(HALVINGS):
        threshold = float(f"{math.sqrt(low * high):.4g}")
        trial = yield make(threshold)
        low, high = (threshold, high) if trial.calls > place.budget else (low, threshold)


def spread(count: int, computed: int, first: int) -> Schedule:
    """The ``first`` ones computed, the others spread evenly up to the last. computed: at least ``first``."""
    others = computed - first
    places = {*range(first), *(first - 1 + round(n * (count - first) / others) for n in range(1, others + 1))}
    return tuple(i in places for i in range(count))


def checked(compute: Schedule, grid: tuple[float, ...]) -> Schedule:
    """The schedule. Raises ValueError where the run has another number of model calls."""
    if len(compute) != len(grid) - 1:
        raise ValueError(f"a schedule of {len(compute)} model calls for a run of {len(grid) - 1}")
    return compute
