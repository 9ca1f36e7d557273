"""From watched runs to what a step costs, and from that to a run of any length: arithmetic only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .full_run import FULL, OUTPUT, RECORD

Run = dict[str, Any]
"""A ``Watched`` as JSON."""


@dataclass(frozen=True)
class Costs:
    """Seconds. fixed: of a run, whatever its steps. computed, reused: of a step of either kind. own: what a computed
    step takes more than in the full run where the method works, which is its own work."""

    fixed: float
    computed: float
    reused: float = 0.0
    own: float = 0.0

    def run_seconds(self, steps: int, computed: int) -> float:
        return self.fixed + computed * self.computed + (steps - computed) * self.reused


def share_kept(full: Costs, method: Costs, steps: int, computed: int) -> float:
    """The speed-up over steps / computed, which is what it would be if nothing else took time."""
    speed_up = full.run_seconds(steps, steps) / method.run_seconds(steps, computed)
    return speed_up * computed / steps


def costs(runs: Sequence[Run], method: str) -> tuple[Costs, Costs]:
    """Of the full run and of a method, from runs that took turns.

    What the blocks take is no doing of a method and differs from minute to minute, so it is taken from the full runs
    for both, and only what lies outside is compared: outside of the model for a method that stays there.
    """
    inside = "models" if method in (OUTPUT, RECORD) else "stacks"
    full_runs, its_runs = _of(runs, FULL), _of(runs, method)
    computed = statistics.median(_laps(full_runs, True))
    outside = statistics.median(_outside(full_runs, inside))
    full = Costs(statistics.median(_fixed(one, inside, outside) for one in full_runs), computed)
    own = statistics.median(_outside(its_runs, inside)) - outside
    reused = _laps(its_runs, False)
    # What a method sets up is the same however its steps go; planning is in it.
    fixed = statistics.median(_fixed(one, inside, outside + own) for one in its_runs)
    return full, Costs(fixed, computed + own, statistics.median(reused) if reused else 0.0, own)


def _of(runs: Sequence[Run], method: str) -> list[Run]:
    return [one for one in runs if one["method"] == method]


def _laps(runs: Sequence[Run], computed: bool) -> list[float]:
    """Steps of one kind, without each run's first."""
    return [lap for one in runs for lap, stack in _pairs(one) if (stack > 0.0) == computed]


def _outside(runs: Sequence[Run], inside: str) -> list[float]:
    """Of computed steps what lies outside of the model or of its blocks."""
    laps = [zip(_pairs(one), one[inside][1:], strict=True) for one in runs]
    return [lap - within for run in laps for (lap, stack), within in run if stack > 0.0]


def _pairs(one: Run) -> list[tuple[float, float]]:
    return list(zip(one["steps"], one["stacks"][1:], strict=True))


def _fixed(one: Run, inside: str, outside: float) -> float:
    return float(one["seconds"] - sum(one["steps"]) - one[inside][0] - outside)


def calls(one: Run) -> int:
    """How many a run really computed."""
    return sum(stack > 0.0 for stack in one["stacks"])


def measured_share(runs: Sequence[Run], method: str, wanted: int) -> tuple[float, int]:
    """The speed-up of whole runs over steps / computed as it was measured, and the model calls computed."""
    full = statistics.median(one["seconds"] for one in _of(runs, FULL))
    its = [one for one in _of(runs, method) if one["wanted"] == wanted]
    computed = calls(its[0])
    seconds = statistics.median(one["seconds"] for one in its)
    return full / seconds * computed / len(its[0]["stacks"]), computed


def share_by_blocks(runs: Sequence[Run], method: str, wanted: int) -> float:
    """The same from whole runs if a block took as long in both: its share of the time in one over that in the other.

    speed-up / (steps / computed) = (T_full / steps b) / (T / computed b), b what the blocks take in a step. So a
    machine that is slower for a while moves it little.
    """
    full = statistics.median(_in_blocks(one) for one in _of(runs, FULL))
    its = statistics.median(_in_blocks(one) for one in _of(runs, method) if one["wanted"] == wanted)
    return its / full


def _in_blocks(one: Run) -> float:
    return float(sum(one["stacks"]) / one["seconds"])


def spread(runs: Sequence[Run]) -> float:
    """How far the full run's steps differ: their quartiles' distance over their median."""
    laps = _laps(_of(runs, FULL), True)
    low, _, high = statistics.quantiles(laps, n=4) if len(laps) > 1 else (laps[0],) * 3
    return (high - low) / statistics.median(laps)


def peak_above(runs: Sequence[Run], method: str) -> int | None:
    """Bytes on the GPU above the full run's peak; None where it was not measured."""
    full = [one["peak"] for one in _of(runs, FULL)]
    its = [one["peak"] for one in _of(runs, method)]
    return None if None in (*full, *its) else int(statistics.median(its) - statistics.median(full))


def recording_share(full: Costs, own: float, tables: float, steps: int) -> float:
    """What recording adds to a full run of so many steps, over that run; where ``own`` is below zero it is noise."""
    return (steps * max(own, 0.0) + tables) / full.run_seconds(steps, steps)


def blocks_bytes(tokens: int, batch: int, dim: int, element: int, terms: int = 2, conds: int = 2) -> int:
    """What level blocks holds while the blocks run: the features it predicts from, and the blocks' inputs."""
    return (terms + 1) * feature_bytes(tokens, batch, dim, element, conds)


def moved_bytes(tokens: int, batch: int, dim: int, element: int, terms: int = 2, conds: int = 2) -> tuple[int, int]:
    """What goes over the bus when level blocks is offloaded, in a computed and in a reused model call.

    Computed: the blocks' inputs, there and back, and the feature. Reused: what it is predicted from.
    """
    feature = feature_bytes(tokens, batch, dim, element, conds)
    return 3 * feature, terms * feature


def feature_bytes(tokens: int, batch: int, dim: int, element: int, conds: int) -> int:
    """The residual of one model call."""
    return conds * batch * tokens * dim * element
