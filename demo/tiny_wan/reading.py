"""A plain check without any network: read shape, colour and motion back from the pixels of a clip."""

from __future__ import annotations

import math

import torch

from .clips import HUES, STEPS, shape_distance
from .words import COLOURS, MOTIONS, SHAPES

MOVED = 4.0


def foreground(frames: torch.Tensor) -> torch.Tensor:
    """(T, H, W, 3) frames -> (T, H, W) weights: 1 where a pixel is clearly coloured, 0 where it is grey."""
    chroma = frames.amax(-1) - frames.amin(-1)
    return ((chroma - 0.25) / 0.25).clamp(0, 1)


def centroids(weights: torch.Tensor) -> torch.Tensor:
    """(T, H, W) weights -> (T, 2) mean x, y in pixels."""
    total = weights.sum((1, 2)).clamp_min(1e-6)
    y = torch.arange(weights.shape[1]) + 0.5
    x = torch.arange(weights.shape[2]) + 0.5
    return torch.stack([(weights.sum(1) * x).sum(1) / total, (weights.sum(2) * y).sum(1) / total], dim=1)


def read_colour(frames: torch.Tensor, weights: torch.Tensor) -> str:
    """The colour word whose hue is nearest to the hue of the mean foreground pixel."""
    mean = (frames * weights[..., None]).sum((0, 1, 2)) / weights.sum().clamp_min(1e-6)

    def hue(rgb: torch.Tensor) -> float:
        return math.atan2(math.sqrt(3) * float(rgb[1] - rgb[2]), float(2 * rgb[0] - rgb[1] - rgb[2]))

    def apart(name: str) -> float:
        return abs(math.remainder(hue(mean) - hue(torch.tensor(HUES[name])), 2 * math.pi))

    return min(COLOURS, key=apart)


def read_motion(weights: torch.Tensor) -> str:
    """The motion word for the way the centroid went from the first to the last frame; still under 4 pixels."""
    path = centroids(weights)
    dx, dy = (path[-1] - path[0]).tolist()
    if math.hypot(dx, dy) < MOVED:
        return "still"
    return max(MOTIONS, key=lambda name: dx * STEPS[name][0] + dy * STEPS[name][1])


def template(shape: str, weights: torch.Tensor) -> torch.Tensor:
    """(T, H, W): the shape drawn with the area and the centroid of each frame's foreground."""
    _frames, height, width = weights.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    unit = (torch.arange(400) + 0.5) / 100 - 2
    inside = shape_distance(shape, unit[None], unit[:, None], torch.tensor(1.0)) < 0
    area = inside.float().mean() * 16
    middle = (unit[:, None] * inside).sum() / inside.sum()
    radius = (weights.sum((1, 2)) / area).sqrt().clamp_min(1.0)[:, None, None]
    where = centroids(weights)
    dx, dy = x - where[:, 0, None, None], y - where[:, 1, None, None] + middle * radius
    return (0.5 - shape_distance(shape, dx, dy, radius)).clamp(0, 1)


def overlaps(weights: torch.Tensor) -> dict[str, float]:
    """Soft intersection over union of the foreground with each shape's template, averaged over the frames."""
    scores = {}
    for shape in SHAPES:
        drawn = template(shape, weights)
        union = torch.maximum(drawn, weights).sum((1, 2)).clamp_min(1e-6)
        scores[shape] = float((torch.minimum(drawn, weights).sum((1, 2)) / union).mean())
    return scores


def read(frames: torch.Tensor) -> tuple[str, str, str]:
    """(T, H, W, 3) frames in [0, 1] -> the shape, colour and motion words they show."""
    weights = foreground(frames)
    scores = overlaps(weights)
    return max(scores, key=scores.__getitem__), read_colour(frames, weights), read_motion(weights)
