"""Published lists of computed steps (LeMiCa, BudCache, MeanCache, TeaCache's mode), stretched to the run's length.

The lists are those of profiles/presets.json, which names their sources. They are held, as published, or filled with
the pack's own lines and corrector, which is an ablation of ours: their schedule with our prediction.

Tuned: the list, of all that spend the budget or up to a tenth less, whatever model they were searched for; where it is
held, also the level. rivals.published_lists takes only lists for the run's own number of steps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from ..comfy_erta.presets import preset_names, preset_steps
from ..erta.schedules import Schedule, preset
from ..erta.settings import Settings
from .following import follow
from .methods import Place, Proposals, Setting
from .ours import cached
from .skipping import levels


def stretched(count: int, budget: int) -> Iterator[tuple[str, Schedule]]:
    """(name, schedule of ``count`` model calls) of the lists that spend the budget, or up to a tenth less. Of lists
    that come out alike the first."""
    seen = set()
    for name in preset_names():
        compute = preset(*preset_steps(name), count)
        if 0.9 * budget <= sum(compute) <= budget and compute not in seen:
            seen.add(compute)
            yield name, compute


def held(place: Place) -> Proposals:
    """As published: features held, at either level."""
    for name, compute in stretched(place.steps, place.budget):
        for level in levels(place.rig.model):
            yield Setting(f"{name}, {level}", functools.partial(follow, compute=compute, level=level))


def with_lines(place: Place) -> Proposals:
    """The same schedules through the planner: a line through the two newest derivatives, and corrections."""
    for name, _ in stretched(place.steps, place.budget):
        steps, published_for = preset_steps(name)
        settings = Settings(speed=place.speed, predictor="linear", preset=steps, preset_steps=published_for)
        scheduler = place.rig.config.scheduler
        yield Setting(name, functools.partial(cached, settings=settings, profile=None, scheduler=scheduler))
