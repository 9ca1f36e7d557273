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
TEST_SEED, TUNING_SEED, PROFILE_SEED, OTHER_SEED = 100, 5000, 9000, 20000


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
    """A model and what is rendered with it: test, tuning and profiling jobs, and the test prompts with other seeds."""

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
        self.reseeded = self._jobs(every[:prompts], OTHER_SEED)
        self.tuning = self._jobs(every[most : most + TUNED][: config.tuning_prompts], TUNING_SEED)
        self.profiling = self._jobs(every[-RECORDED:][: config.profile_runs], PROFILE_SEED)

    def _jobs(self, prompts: Sequence[Any], seed: int) -> tuple[Job, ...]:
        return tuple(
            Job(f"{seed + n}: {prompt}", self.subject.encode(prompt), seed + n) for n, prompt in enumerate(prompts)
        )

    @property
    def steps(self) -> int:
        return self.config.steps

    @property
    def stages(self) -> tuple[range, ...]:
        """The steps of each stage of a full run."""
        return self.config.stages()

    def only(self, stage: int, model: Any) -> tuple[Any, ...]:
        """For ``sample``: a model in one stage, the plain one in the others."""
        return tuple(model if n == stage else self.model for n in range(len(self.stages)))

    def sample(self, model: Any, job: Job, steps: int = 0, sampler: str = "") -> Sample:
        """Render a job. model: one for all stages, or one for each. 0 steps and no sampler mean the config's."""
        stages = self.config.stages(steps)
        models = model if isinstance(model, tuple) else (model,) * len(stages)
        stack = last_block(models[0])
        rows = 0

        def count(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            nonlocal rows
            rows += output.shape[0]

        counter = stack.register_forward_hook(count)
        began = now()
        try:
            latent = self.subject.latent()
            for patched, stage in zip(models, stages, strict=True):
                latent = self._sample_stage(patched, job, latent, stage, stages[-1].stop, sampler)
        finally:
            counter.remove()
        return Sample(latent, now() - began, rows / self._rows())

    def _sample_stage(
        self, model: Any, job: Job, latent: torch.Tensor, stage: range, steps: int, sampler: str
    ) -> torch.Tensor:
        """The stage's steps of ``steps`` in all, as KSampler Advanced does it: noise is added at the first step alone,
        and what is left of it before the last one is handed on."""
        config = self.config
        (result,) = nodes.common_ksampler(
            model,
            job.seed,
            steps,
            config.guidance,
            sampler or config.sampler,
            config.scheduler,
            job.positive,
            self.subject.negative,
            {"samples": latent},
            disable_noise=stage.start > 0,
            start_step=stage.start,
            last_step=stage.stop,
            force_full_denoise=stage.stop == steps,
        )
        sampled: torch.Tensor = result["samples"]
        return sampled

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
