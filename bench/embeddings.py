"""TeaCache: reuse the block stack's residual while the accumulated, rescaled change of the time embedding is small.

Written from the paper's formulas: a polynomial of degree 4 from the relative L1 change of the timestep modulation to
that of the model's output, fitted on full runs of the model at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.patcher_extension
import numpy as np
import torch

from ..erta.schedules import Schedule
from .rig import Job, Rig

DEGREE = 4
_KEY = "erta_bench_embeddings"


class Changes(NamedTuple):
    """Relative L1 changes from one model call to the next, (runs x conds, N - 1) each."""

    embedding: np.ndarray
    output: np.ndarray


def measure_changes(rig: Rig, jobs: Sequence[Job], stage: int = 0) -> Changes:
    """Full runs, a stage of which is watched at the modulation that the blocks get and at the model's outputs."""
    found = []
    for job in jobs:
        watching = Modulation()
        rig.sample(rig.only(stage, watching.attach(rig.model)), job)
        found += watching.changes()
    embedding, output = np.array(found).transpose(1, 0, 2)
    return Changes(embedding, output)


@dataclass
class Modulation:
    """Watches one run, by cond: ``vec`` of the first block (the projected time embedding) and the model's output."""

    found: dict[Any, list[tuple[float, float]]] = field(default_factory=dict)
    _last: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _vec: torch.Tensor | None = None

    def attach(self, model: Any) -> Any:
        clone = model.clone()
        clone.set_model_patch_replace(self.first_block, "dit", "double_block", 0)
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        clone.add_wrapper_with_key(kind, _KEY, self.forward)
        return clone

    def first_block(self, arguments: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        self._vec = arguments["vec"].detach().clone()
        out: dict[str, Any] = extra["original_block"](arguments)
        return out

    def forward(self, executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = executor(*args, **kwargs)
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "uuids" in a)
        assert self._vec is not None
        uuids = options["uuids"]
        for uuid, vec, output in zip(uuids, self._vec.chunk(len(uuids)), result.chunk(len(uuids)), strict=True):
            now = (vec.float(), output.detach().float().clone())
            if uuid in self._last:
                change = tuple(relative_l1(a, b) for a, b in zip(now, self._last[uuid], strict=True))
                self.found.setdefault(uuid, []).append((change[0], change[1]))
            self._last[uuid] = now
        return result

    def changes(self) -> list[np.ndarray]:
        """(2, N - 1) per cond: of the embedding, of the output."""
        return [np.array(pairs).T for pairs in self.found.values()]


def relative_l1(now: torch.Tensor, before: torch.Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


def rescaled(changes: Changes) -> np.ndarray:
    """(N,) what each model call adds to the accumulated distance; the first adds nothing."""
    # In a scaled variable the same least squares as the published polyfit, without its loss of digits.
    fit = np.polynomial.Polynomial.fit(changes.embedding.ravel(), changes.output.ravel(), DEGREE)
    distances: np.ndarray = np.concatenate([[0.0], fit(changes.embedding.mean(axis=0))])
    return distances


def teacache_schedule(distances: Sequence[float], threshold: float, first: int, last: int) -> Schedule:
    """The paper's rule: reuse while the accumulated distance is below the threshold; computed at either end."""
    compute = []
    total = 0.0
    for i, distance in enumerate(distances):
        reuse = False
        if i > 0 and first <= i < len(distances) - last:
            total += distance
            reuse = total < threshold
        if not reuse:
            total = 0.0
        compute.append(not reuse)
    return tuple(compute)


def schedules(distances: Sequence[float], budget: int) -> list[tuple[float, int, int, Schedule]]:
    """(threshold, first, last, schedule) nearest to the budget from below, for both published sets of protected ends:
    one model call at each end, or a tenth at the start and none at the end."""
    count = len(distances)
    found = []
    for first, last in ((1, 1), (max(1, count // 10), 0)):
        tried = [(teacache_schedule(distances, t, first, last), float(t)) for t in np.geomspace(1e-4, 100.0, 2000)]
        fitting = [(sum(compute), -threshold, compute) for compute, threshold in tried if sum(compute) <= budget]
        if fitting:
            _, threshold, compute = max(fitting)
            found.append((-threshold, first, last, compute))
    return found
