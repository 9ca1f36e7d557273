"""Methods that are not ours, each at its best: its own settings searched on prompts that nothing is compared on."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

from ..comfy_erta.presets import preset_names, preset_steps
from ..demo.tiny_wan.nodes import ERTADemoCopyForEasyCache
from . import embeddings, magnitudes, published, taylor
from .following import follow
from .fsampler import fsampler
from .geoshrink import geoshrink
from .methods import ABLATION, RIVAL, Method, Place, Proposals, Setting, single
from .seacache import seacache
from .skipping import levels

# Thresholds between which EasyCache and LazyCache are searched, and how often the interval is halved.
LOWEST, HIGHEST, HALVINGS = 0.002, 2.0, 7


def fewer_steps(place: Place) -> Setting:
    return Setting(f"{place.budget} steps", steps=place.budget)


def fewer_steps_of(sampler: str) -> Method:
    """Fewer steps of a sampler of higher order, which is compared with its own full run and with the config's."""

    def make(place: Place) -> Setting:
        return Setting(f"{place.budget} steps of {sampler}", steps=place.budget, sampler=sampler)

    return Method(f"fewer steps, {sampler}", RIVAL, single(make), whole=True)


def easycache(model: Any, threshold: float, start: float, subsample: int) -> Any:
    """ComfyUI's node. It adds into its input, which in fp32 flow models is the sampler's own latent: it gets a copy.

    subsample: it looks at every n-th pixel of the latent, 8 by default; on a tiny latent that is one pixel.
    """
    protected = ERTADemoCopyForEasyCache.execute(model).result[0]
    return _with_subsample(EasyCacheNode.execute(protected, threshold, start, 0.95, False).result[0], subsample)


def lazycache(model: Any, threshold: float, start: float, subsample: int) -> Any:
    """ComfyUI's node; see ``easycache``. It adds out of place."""
    return _with_subsample(LazyCacheNode.execute(model, threshold, start, 0.95, False).result[0], subsample)


def _with_subsample(model: Any, subsample: int) -> Any:
    model.model_options["transformer_options"]["easycache"].subsample_factor = subsample
    return model


def thresholds(patch: Any, place: Place) -> Proposals:
    """The threshold halved towards the budget, for the node's own start of 15 % and for 5 %, and also looking at every
    pixel where the latent has fewer than 16 across."""
    small = place.rig.subject.latent().shape[-1] < 16
    looks = [(0.15, 8), *([(0.15, 1), (0.05, 1)] if small else [(0.05, 8)])]
    for start, subsample in looks:
        low, high = LOWEST, HIGHEST
        for _ in range(HALVINGS):
            threshold = round(math.sqrt(low * high), 5)
            label = f"threshold {threshold:g}, start {start:g}" + (f", subsample {subsample}" if subsample != 8 else "")
            how = functools.partial(patch, threshold=threshold, start=start, subsample=subsample)
            trial = yield Setting(label, how)
            low, high = (threshold, high) if trial.calls > place.budget else (low, threshold)


def magcache(place: Place) -> Proposals:
    for threshold, most, compute in magnitudes.schedules(place.calibration.ratios, place.budget):
        how = functools.partial(follow, compute=compute, level="blocks")
        yield Setting(f"threshold {threshold:.4g}, K {most}", how)


def teacache(place: Place) -> Proposals:
    for threshold, first, last, compute in embeddings.schedules(place.calibration.distances, place.budget):
        how = functools.partial(follow, compute=compute, level="blocks")
        yield Setting(f"threshold {threshold:.4g}, {first} first and {last} last computed", how)


def published_lists(place: Place) -> Proposals:
    """LeMiCa's lists of this number of steps, whatever model they are for, held, at either level."""
    for name, steps in fitting_lists(place.steps, place.budget):
        for level in levels(place.rig.model):
            compute = tuple(i in steps for i in range(place.steps))
            yield Setting(f"{name}, {level}", functools.partial(follow, compute=compute, level=level))


def fitting_lists(count: int, budget: int) -> Iterator[tuple[str, frozenset[int]]]:
    """Those published for ``count`` steps that spend the budget, or up to a tenth less."""
    for name in preset_names():
        steps, published_for = preset_steps(name)
        if published_for == count and 0.9 * budget <= len(steps) <= budget:
            yield name, frozenset(steps)


def extrapolation(level: str, weights: Any) -> Any:
    def propose(place: Place) -> Proposals:
        for interval, first, compute in taylor.schedules(place.steps, place.budget):
            how = functools.partial(follow, compute=compute, level=level, weights=weights)
            yield Setting(f"interval {interval}, {first} first computed", how)

    return propose


def _taylor(order: int, level: str) -> Any:
    return extrapolation(level, functools.partial(taylor.taylor_weights, order=order))


def rivals(other_samplers: Sequence[str]) -> list[Method]:
    """All that are not ours, and their predictors moved to our level, which makes them ablations of ours."""
    return [
        Method("fewer steps", RIVAL, single(fewer_steps), whole=True),
        *(fewer_steps_of(sampler) for sampler in other_samplers),
        Method("EasyCache", RIVAL, functools.partial(thresholds, easycache), tuned=True, effort=3 * HALVINGS),
        Method("LazyCache", RIVAL, functools.partial(thresholds, lazycache), tuned=True, effort=3 * HALVINGS),
        Method("TeaCache", RIVAL, teacache, tuned=True, effort=2),
        Method("MagCache", RIVAL, magcache, tuned=True, effort=5),
        Method("LeMiCa lists", RIVAL, published_lists, tuned=True, effort=6),
        Method("SeaCache", RIVAL, seacache, tuned=True, effort=18),
        Method("FSampler", RIVAL, fsampler, tuned=True, effort=24),
        Method("GeoShrink", RIVAL, geoshrink, tuned=True, effort=2),
        Method("published lists, stretched", RIVAL, published.held, tuned=True, effort=16),
        Method("published lists, our lines", ABLATION, published.with_lines, tuned=True, effort=8),
        Method("TaylorSeer 1", RIVAL, _taylor(1, "blocks"), tuned=True, effort=4),
        Method("TaylorSeer 2", RIVAL, _taylor(2, "blocks"), tuned=True, effort=4),
        Method("TaylorSeer 1, output level", ABLATION, _taylor(1, "output"), tuned=True, effort=4),
        Method("TaylorSeer 2, output level", ABLATION, _taylor(2, "output"), tuned=True, effort=4),
        Method("HiCache, output level", ABLATION, extrapolation("output", taylor.hermite_weights), True, 4),
    ]
