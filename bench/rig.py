"""The rig: one model in this process, and one call that samples it and says what that cost."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch

import nodes

from .config import Config
from .subjects import RECORDED, TUNED, Conditioning, Subject, load_model, make_subject

# First seeds; prompt n of a group is rendered with the n-th seed from there, whatever the method.
TEST_SEED, TUNING_SEED, PROFILE_SEED = 100, 5000, 9000


@dataclass(frozen=True)
class Job:
    """One thing to render. key: stable between runs of the program."""

    key: str
    positive: Conditioning
    seed: int


@dataclass(frozen=True)
class Sample:
    """latent: (1, C, T, h, w) as a sampler gives it. model calls: counted at the model, 1 = all conds once."""

    latent: torch.Tensor
    seconds: float
    calls: float


class Rig:
    """A model and what is rendered with it: test, tuning and profiling jobs."""

    def __init__(self, config: Config, prompts: int, subject: Subject | None = None, model: Any = None) -> None:
        """subject, model: in place of what the config names."""
        self.config = config
        self.subject = subject or make_subject(config)
        self.model = model or load_model(config)
        comfy.utils.set_progress_bar_enabled(False)
        every = self.subject.prompts
        most = len(every) - RECORDED - TUNED
        if not 1 <= prompts <= most:
            raise ValueError(f"{prompts} prompts: {config.name} has {most} to compare on, beside those for tuning")
        self.test = self._jobs(every[:prompts], TEST_SEED)
        self.tuning = self._jobs(every[most : most + TUNED][: config.tuning_prompts], TUNING_SEED)
        self.profiling = self._jobs(every[-RECORDED:][: config.profile_runs], PROFILE_SEED)

    def _jobs(self, prompts: Sequence[Any], seed: int) -> tuple[Job, ...]:
        return tuple(
            Job(f"{seed + n}: {prompt}", self.subject.encode(prompt), seed + n) for n, prompt in enumerate(prompts)
        )

    @property
    def steps(self) -> int:
        return self.config.steps

    def sample(self, model: Any, job: Job, steps: int = 0, sampler: str = "") -> Sample:
        """Render a job. 0 steps and no sampler mean the config's."""
        stack = last_block(model)
        rows = 0

        def count(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            nonlocal rows
            rows += output.shape[0]

        config = self.config
        counter = stack.register_forward_hook(count)
        began = now()
        try:
            (result,) = nodes.common_ksampler(
                model,
                job.seed,
                steps or config.steps,
                config.guidance,
                sampler or config.sampler,
                config.scheduler,
                job.positive,
                self.subject.negative,
                {"samples": self.subject.latent()},
            )
        finally:
            counter.remove()
        return Sample(result["samples"], now() - began, rows / self._rows())

    def _rows(self) -> float:
        """Batch rows that pass the blocks in one model call: the conds, usually 2."""
        return 1.0 if self.config.guidance == 1.0 else 2.0

    def full_seconds(self, sampler: str = "", runs: int = 3) -> float:
        """What a full run takes just now: median of some."""
        seconds = sorted(self.sample(self.model, self.test[0], sampler=sampler).seconds for _ in range(runs))
        return seconds[len(seconds) // 2]

    def inner(self, latent: torch.Tensor) -> torch.Tensor:
        """A latent in the model's own units, float32."""
        inner: torch.Tensor = self.model.get_model_object("latent_format").process_in(latent.float())
        return inner

    @functools.cached_property
    def device(self) -> str:
        device = self.model.load_device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def now() -> float:
    """Seconds, after everything that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def last_block(model: Any) -> torch.nn.Module:
    """The last transformer block: what a model call that is really computed must pass."""
    for child in model.model.diffusion_model.children():
        if isinstance(child, torch.nn.ModuleList) and len(child):
            last: torch.nn.Module = child[-1]
            return last
    raise ValueError(f"{type(model.model.diffusion_model).__name__} has no list of blocks to count model calls at")
