"""One row of the comparison: a method at a speed, its setting tuned, then every test prompt rendered and scored."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .methods import Method, Place, Setting, Trial
from .quality import psnr, score
from .reference import References
from .rig import Rig, Sample
from .tuning import tuned

Row = dict[str, Any]
"""JSON-able: method, family, speed, budget; setting, "" where the method cannot do the budget; sampler; model calls and
seconds per prompt; full_seconds; against: sampler whose full run is the reference -> metric -> values per prompt, the
row's own sampler first."""


def row(method: Method, place: Place, speed: float, references: References, memory: dict[str, Trial]) -> Row:
    head: Row = {"method": method.name, "family": method.family, "speed": speed, "budget": place.budget}
    setting = tuned(method, place, references, memory)
    if setting is None:
        return {**head, "setting": "", "tried": len(memory)}
    rig = place.rig
    own = setting.sampler or rig.config.sampler
    full_seconds = rig.full_seconds(own)
    samples = list(renders(place, setting))
    scores = {
        sampler: [_score(place, sample, n, sampler, references) for n, sample in enumerate(samples)]
        for sampler in dict.fromkeys((own, rig.config.sampler))
    }
    return {
        **head,
        "setting": setting.label,
        "tried": len(memory),
        "sampler": own,
        "calls": [sample.calls for sample in samples],
        "seconds": [round(sample.seconds, 4) for sample in samples],
        "full_seconds": round(full_seconds, 4),
        "against": {sampler: _by_metric(found) for sampler, found in scores.items()},
    }


def renders(place: Place, setting: Setting) -> Iterator[Sample]:
    """Every test prompt, after one render that is not counted: whatever is set up once is not part of the time."""
    rig = place.rig
    model = setting.patch(rig.model)
    rig.sample(model, rig.test[0], setting.steps, setting.sampler)
    for job in rig.test:
        yield rig.sample(model, job, setting.steps, setting.sampler)


def _score(place: Place, sample: Sample, n: int, sampler: str, references: References) -> dict[str, float]:
    rig, job = place.rig, place.rig.test[n]
    reference = references.latent(job, sampler)
    found = score(
        rig.subject.frames(sample.latent),
        references.frames(job, sampler),
        rig.inner(sample.latent),
        rig.inner(reference),
    )
    return asdict(found)


def _by_metric(scores: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [round(one[name], 6) for one in scores] for name in scores[0]}


def other_seed(rig: Rig, references: References) -> list[float]:
    """PSNR per test prompt between two full runs that differ in the seed: they share the prompt and nothing else."""
    pairs = zip(rig.test, rig.reseeded, strict=True)
    return [psnr(rig.subject.frames(references.latent(other)), references.frames(job)) for job, other in pairs]


def summary(found: Row, against: str = "") -> dict[str, float]:
    """Medians, worst values and quartiles of a row against one reference (its own sampler's, unless named)."""
    metrics = found["against"][against or found["sampler"]]
    low, high = _quartiles(metrics["psnr"])
    return {
        "calls": statistics.mean(found["calls"]),
        "fewest": min(found["calls"]),
        "most": max(found["calls"]),
        "time_ratio": found["full_seconds"] / statistics.median(found["seconds"]),
        "psnr": statistics.median(metrics["psnr"]),
        "psnr_worst": min(metrics["psnr"]),
        "psnr_low": low,
        "psnr_high": high,
        "ssim": statistics.median(metrics["ssim"]),
        "ssim_worst": min(metrics["ssim"]),
        "flip": statistics.median(metrics["flip"]),
        "flip_worst": max(metrics["flip"]),
        "latent_l1": statistics.median(metrics["latent_l1"]),
        "latent_l1_worst": max(metrics["latent_l1"]),
    }


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
