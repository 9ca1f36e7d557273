"""The sampler's impulse response in ComfyUI: run its own function on unit impulses, leaving no trace."""

import copy
import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import numpy as np
import torch
from comfy.model_management import InterruptProcessingException

from ..erta.response import Denoise, ImpulseResponse, UnknownResponse, probe
from .describing import plain_attributes


class _ProbedModel:
    """What a sampler function sees as its model: callable, and with the paths on which functions look for facts."""

    def __init__(self, denoise: Denoise, model_patcher: Any, sampler: str, guider: Any) -> None:
        self._denoise, self._sampler = denoise, sampler
        sampling = model_patcher.get_model_object("model_sampling")
        # Samplers of other packs ask where the model computes, and for marks on its modules, of which there are none.
        base = SimpleNamespace(model_sampling=sampling, device=torch.device("cpu"), diffusion_model=SimpleNamespace())
        # They ask the guider for its scale too (Detail Daemon).
        facts = {name: _copied(value) for name, value in plain_attributes(guider).items()}
        self.inner_model = SimpleNamespace(**facts | {"model_patcher": model_patcher, "inner_model": base})

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        # Some would even seem linear here: they start from a zero where no unconditional prediction arrives.
        if any(name.startswith("sampler_") for name in kwargs.get("model_options", {})):
            reads = "reads predictions from within guidance, which a reused model call does not have"
            raise UnknownResponse(f"{self._sampler} {reads}")
        return self._denoise(x, sigma)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)


def sampler_response(sampler: Any, schedule: np.ndarray, model_patcher: Any, guider: Any = None) -> ImpulseResponse:
    """Impulse response of a ComfyUI sampler object on a schedule (N + 1,). Raises UnknownResponse with the reason.

    guider: whose plain attributes, such as the guidance scale, the function may read. Random states are restored, noise
    is silenced, no callback or progress bar is called, and the options that the function gets are copies.
    """
    plain = isinstance(sampler, comfy.samplers.KSAMPLER) and type(sampler).sample is comfy.samplers.KSAMPLER.sample
    if not plain:
        raise UnknownResponse(f"sampler {type(sampler).__name__} is no plain sampler function")
    unknown = ""
    for dtype in (torch.float64, torch.float32):  # some functions mix in float32 constants
        try:
            return _probe(sampler, schedule, (model_patcher, sampler_name(sampler), guider), dtype)
        except (UnknownResponse, InterruptProcessingException):
            raise
        except Exception as error:  # noqa: BLE001 - foreign code on made-up input: whatever it raises means "not known"
            unknown = f"{type(error).__name__}: {str(error)[:80]}"
    raise UnknownResponse(f"{sampler_name(sampler)} cannot be probed ({unknown})")


def sampler_name(sampler: Any) -> str:
    """The name of a ComfyUI sampler object's function, or of its class where it has none."""
    return str(getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__))


def _probe(sampler: Any, schedule: np.ndarray, shown: tuple[Any, ...], dtype: torch.dtype) -> ImpulseResponse:
    function = sampler.sampler_function
    parameters = inspect.signature(function).parameters
    asked_for_noise = False

    def run(denoise: Denoise, x: torch.Tensor) -> torch.Tensor:
        def silence(*_: Any) -> torch.Tensor:
            nonlocal asked_for_noise
            asked_for_noise = True
            return torch.zeros_like(x)

        options = dict(sampler.extra_options)
        if "noise_sampler" in parameters:
            options["noise_sampler"] = silence
        extra_args = {"model_options": {"transformer_options": {}}, "seed": 0, "denoise_mask": None}
        # The schedule is made anew each time: uni_pc writes into it.
        sigmas = torch.tensor(schedule, dtype=dtype)
        model = _ProbedModel(denoise, *shown)
        return function(model, x, sigmas, extra_args=extra_args, callback=None, disable=True, **options)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return replace(probe(run, dtype), stochastic=asked_for_noise)
