"""The best setting of a method at or under a budget of model calls, on prompts that nothing is compared on."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from .methods import Method, Place, Setting, Trial
from .quality import psnr
from .reference import References
from .stages import proposals_in_stages


def tuned(method: Method, place: Place, references: References, memory: dict[str, Trial]) -> Setting | None:
    """None where the method has no setting that keeps to the budget. memory: trials by label, kept between budgets."""
    proposals = proposals_in_stages(method, place)
    if not method.tuned:
        return next(proposals, None)
    trials: list[Trial] = []
    try:
        setting = next(proposals)
        while True:
            if setting.label not in memory:
                memory[setting.label] = attempt(setting, place, references)
            trials.append(memory[setting.label])
            setting = proposals.send(trials[-1])
    except StopIteration:
        return best(trials, place.budget)


def best(trials: Iterable[Trial], budget: int) -> Setting | None:
    """Highest median PSNR among those whose mean number of model calls is within the budget."""
    fitting = [trial for trial in trials if trial.calls <= budget]
    return max(fitting, key=lambda trial: trial.psnr).setting if fitting else None


def attempt(setting: Setting, place: Place, references: References) -> Trial:
    """Render the tuning prompts with a setting."""
    rig = place.rig
    model = setting.patch(rig.model)
    calls, values = [], []
    for job in rig.tuning:
        sample = rig.sample(model, job, setting.steps, setting.sampler)
        calls.append(sample.calls)
        values.append(psnr(rig.subject.frames(sample.latent), references.frames(job)))
    return Trial(setting, statistics.mean(calls), statistics.median(values))
