"""Stopwatch: how long the model calls of each kind take."""

import time
from typing import Any

import torch


class Stopwatch:
    """Times model calls. On a GPU by events that are only read after the run, so nothing waits while it goes on.

    laps: by kind, (start, end) of each.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"
        self.laps: dict[str, list[tuple[Any, Any]]] = {"computed": [], "reused": []}

    def now(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, kind: str, started: Any) -> None:
        """End a lap of a kind, "computed" or "reused"."""
        self.laps[kind].append((started, self.now()))

    def seconds(self, kind: str) -> float:
        """Sum over all laps of a kind; on a GPU this waits for the last of them."""
        if not self._events:
            return float(sum(b - a for a, b in self.laps[kind]))
        if self.laps[kind]:
            self.laps[kind][-1][1].synchronize()
        return float(sum(a.elapsed_time(b) for a, b in self.laps[kind])) / 1000.0
