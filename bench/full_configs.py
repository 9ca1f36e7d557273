"""What is measured at full size: one configuration per question, and the same made small for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .full_model import REDUCED, SIZES, TINY, Clip, Size
from .full_run import BLOCKS, EASYCACHE, FULL, OFFLOADED, OUTPUT, RECORD, RECORD_BLOCKS, SMALL

SPEED, WHOLE, GROWTH, STREAMING = "speed", "whole", "growth", "streaming"
RECORDING, COUNTS, BREAKS = "recording", "counts", "breaks"

STEPS, COMPUTED = 50, (34, 25, 20, 16)

# Enough steps for a median of either kind; what a step costs does not depend on how many there are.
SHORT, SHORT_COMPUTED = 8, (4,)

P480, P720, P1080 = Clip(81, 832, 480), Clip(81, 1280, 720), Clip(81, 1920, 1080)
SIDE = {(832, 480): "480p", (1280, 720): "720p", (1920, 1080): "1080p"}

FULL_SIZE, ON_CPU, DRY = "full size", "reduced size", "dry run"


@dataclass(frozen=True)
class Config:
    """One question. clip: what it is about, and shown: what is rendered in its place where that is made small."""

    kind: str
    model: str
    clip: Clip
    methods: tuple[str, ...]
    size: Size
    shown: Clip
    steps: int = SHORT
    computed: tuple[int, ...] = SHORT_COMPUTED
    rounds: int = 1

    @property
    def name(self) -> str:
        clip = self.clip
        parts = [self.kind, self.model, SIDE[clip.width, clip.height], f"{clip.frames} frames"]
        parts += [f"batch {clip.batch}"] if clip.batch > 1 else []
        return " ".join([*parts, *(self.methods if self.kind in (SPEED, WHOLE, RECORDING) else ())])

    @property
    def effort(self) -> int:
        """Steps that it computes, about: what it costs in units of the step that the warm-up takes."""
        if self.kind == BREAKS:
            return 0
        each = {FULL: self.steps, RECORD: self.steps, RECORD_BLOCKS: self.steps}
        once = sum(each.get(method, sum(self.computed)) for method in self.methods)
        return self.rounds * (once + (self.steps if FULL not in self.methods else 0))


def every(how: str) -> list[Config]:
    """All configurations, those of one model together."""
    configs = [_made(config, how) for model in SIZES for config in _of_model(model)]
    return [*configs, _deep()] if how == ON_CPU else configs


def _deep() -> Config:
    """As many blocks as the real model has: what a reused step at level blocks still runs lies outside of them."""
    shallow = _made(Config(SPEED, "1.3B", P480, (BLOCKS,), SIZES["1.3B"], P480), ON_CPU)
    layers = SIZES["1.3B"].layers
    return replace(shallow, model=f"1.3B, {layers} layers", size=replace(shallow.size, layers=layers))


def _of_model(model: str) -> list[Config]:
    def config(kind: str, clip: Clip, *methods: str, **changes: int | tuple[int, ...]) -> Config:
        return replace(Config(kind, model, clip, methods, SIZES[model], clip), **changes)

    small = model == "1.3B"
    rounds = 2 if small else 1
    cached = (OUTPUT, BLOCKS, EASYCACHE)
    timed = (*cached, OFFLOADED)
    found = [config(SPEED, P480, method, rounds=rounds) for method in timed]
    # A step of 14B at 720p takes half a minute on a fast card, and a configuration must fit into less than ten.
    few = {} if small else {"steps": 6, "computed": (3,)}
    found += [config(SPEED, P720, method, rounds=rounds, **few) for method in timed]
    clip, steps = (P480, SHORT) if small else (P720, 4)
    found += [config(RECORDING, clip, method, rounds=rounds, steps=steps) for method in (RECORD, RECORD_BLOCKS)]
    found += [config(COUNTS, P480, FULL, *timed)]
    if small:
        found += [config(WHOLE, P480, method, steps=STEPS, computed=COMPUTED) for method in cached]
        found += [config(GROWTH, clip, OUTPUT) for clip in growing()]
        found += [config(BREAKS, P480, FULL, *cached)]
    else:
        found += [config(STREAMING, P480, OUTPUT)]
    return found


def growing() -> list[Clip]:
    frames = [replace(P480, frames=count) for count in (17, 49, 81, 121, 161)]
    return [*frames, P720, P1080, *(replace(P480, batch=batch) for batch in (2, 4))]


def _made(config: Config, how: str) -> Config:
    """For a CPU: fewer and narrower blocks and smaller pictures; in a dry run as little as goes through it all."""
    if how == FULL_SIZE:
        return config
    if how == DRY:
        shown = Clip(5, 64, 64, config.clip.batch)
        steps, size = min(config.steps, SHORT), TINY[config.model]
    else:
        # A fifth of either side, in whole patches.
        width, height = (-(-side // 5 // 16) * 16 for side in (config.clip.width, config.clip.height))
        shown = replace(config.clip, width=width, height=height)
        steps, size = min(config.steps, 20), REDUCED[config.model]
    if config.kind == BREAKS:
        size, shown = TINY[config.model], SMALL
    computed = tuple(dict.fromkeys(max(2, round(k * steps / config.steps)) for k in config.computed))
    changed = replace(config, size=size, shown=shown, steps=steps, computed=computed)
    if how == DRY:
        methods = config.methods[:2] if config.kind == BREAKS else config.methods  # each takes Dynamo some seconds
        changed = replace(changed, methods=methods, rounds=1)
    return changed
