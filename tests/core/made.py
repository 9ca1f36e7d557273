"""What several tests of the method are made of: a flow model's schedule, and a profile of known features."""

from __future__ import annotations

import numpy as np
import torch

from ertacache.erta.profile import Measured, Profile
from ertacache.erta.recorder import Recorder


def flow(steps: int, shift: float = 8.0) -> np.ndarray:
    """(steps + 1,) sigmas of a flow model under the schedule "simple", zero included."""
    t = 1 - np.arange(steps + 1) / steps
    return shift * t / (1 + (shift - 1) * t)


def recorded(measured: Measured, sigmas: np.ndarray, runs: int, sound: float | None = None) -> Profile:
    """A profile of runs whose 30 features are a line and a sine in sigma, recorded as a sampler's would be. sound: how
    fast the sine of a second part goes, of 6 features and half as large."""
    rng, tables = np.random.default_rng(0), []
    parts = [("picture", 30, 4.0)] + [("sound", 6, sound)] * (sound is not None)
    for run in range(runs):
        recorder = Recorder(sigmas)
        for name, size, waves in parts:
            a, b, c = rng.normal(size=(3, size))
            for i, sigma in enumerate(sigmas):
                recorder.observe(i, name, torch.from_numpy(a + b * sigma + c * np.sin(waves * sigma)))
        tables += recorder.tables(run, *(1.0, 0.5)[: len(parts)])
    return Profile(measured, tuple(tables))
