"""A method on a run of several stages, each a run of its own to it: with its own cache, plan and profile."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from .methods import Method, Place, Proposals, Setting, Trial


def proposals_in_stages(method: Method, place: Place) -> Proposals:
    """The method's settings for the run. In several stages they are what it proposes for each, tried together."""
    parts = place.parts()
    return method.propose(place) if method.whole or len(parts) == 1 else _together(method, place, parts)


def _together(method: Method, place: Place, parts: Sequence[Place]) -> Proposals:
    """The n-th proposals of all stages are one setting; a stage with fewer keeps its last. A search in each stage is
    told its budget's share of the model calls that were taken, so that all stages come to the same threshold."""
    each = [method.propose(part) for part in parts]
    settings = [next(proposals, None) for proposals in each]
    while all(settings):
        trial = yield joined([setting for setting in settings if setting])
        shares = [replace(trial, calls=trial.calls * part.budget / place.budget) for part in parts]
        found = [_sent(proposals, share) for proposals, share in zip(each, shares, strict=True)]
        if not any(found):
            return
        settings = [new or old for new, old in zip(found, settings, strict=True)]


def _sent(proposals: Generator[Setting, Trial, None], trial: Trial) -> Setting | None:
    """What is proposed next, None where nothing is left."""
    try:
        return proposals.send(trial)
    except StopIteration:
        return None


def joined(settings: Sequence[Setting]) -> Setting:
    """One setting with a model for each stage. Its label names each, or all where they are alike."""
    labels = [setting.label for setting in settings]

    def patch(model: Any) -> tuple[Any, ...]:
        return tuple(setting.patch(model) for setting in settings)

    return Setting(labels[0] if len(set(labels)) == 1 else ", then ".join(labels), patch)
