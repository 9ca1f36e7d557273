"""Procedurally drawn clips: one coloured shape moving over a grey background."""

from __future__ import annotations

import itertools
import random

import torch

from .words import BACKGROUNDS, COLOURS, GROUPS, MOTIONS, SHAPES, Ids

FRAMES = 5
SIZE = 48
HUES = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
}
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}


def held_out(ids: Ids) -> bool:
    """True for the fifth of all combinations that training never sees (every pair of words is still seen)."""
    return sum(ids) % 5 == 0


def combinations(unseen: bool) -> list[Ids]:
    """All (shape, colour, motion, background) ids that are held out, or all that are trained on."""
    every = itertools.product(*(range(len(names)) for names in GROUPS))
    return [ids for ids in every if held_out(ids) == unseen]


def unseen_prompts(count: int = 64, seed: int = 2024) -> list[Ids]:
    """A fixed choice of `count` different held-out combinations."""
    return random.Random(seed).sample(combinations(unseen=True), count)


def shape_distance(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Approximate signed distance in pixels (negative inside) of offsets x, y (..., H, W) from the shape's centre."""
    if shape == "circle":
        return (x * x + y * y).sqrt() - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * radius
    if shape == "triangle":
        slant = 0.4472136 * (2 * x.abs() - y - 1.1 * radius)
        return torch.maximum(slant, y - 0.75 * radius)
    long, thin = 1.1 * radius, 0.4 * radius
    bar_x = torch.maximum(x.abs() - long, y.abs() - thin)
    bar_y = torch.maximum(x.abs() - thin, y.abs() - long)
    return torch.minimum(bar_x, bar_y)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """(count, 1, 1) uniform numbers."""
    return torch.rand(count, 1, 1, generator=generator) * (high - low) + low


def _masks(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 4) ids -> (B, T, H, W) anti-aliased coverage of the moving shape."""
    count = len(ids)
    radius = _uniform(count, 11.0, 12.0, generator)
    travel = _uniform(count, 12.5, 14.5, generator)
    centre = [_uniform(count, -1.5, 1.5, generator) + SIZE / 2 for _ in "xy"]
    direction = torch.tensor([STEPS[name] for name in MOTIONS], dtype=torch.float32)[ids[:, 2]]
    phase = torch.linspace(-0.5, 0.5, FRAMES)[None, :, None, None]
    pixels = torch.arange(SIZE) + 0.5
    along = travel[..., None] * phase
    x = pixels[None, None, None, :] - centre[0][..., None] - along * direction[:, 0, None, None, None]
    y = pixels[None, None, :, None] - centre[1][..., None] - along * direction[:, 1, None, None, None]
    x, y = torch.broadcast_tensors(x, y)
    mask = torch.empty(count, FRAMES, SIZE, SIZE)
    for index, shape in enumerate(SHAPES):
        chosen = ids[:, 0] == index
        mask[chosen] = (0.5 - shape_distance(shape, x[chosen], y[chosen], radius[chosen][..., None])).clamp(0, 1)
    return mask


def _backgrounds(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 4) ids -> (B, H, W) grey backgrounds."""
    count = len(ids)
    shade = _uniform(count, -0.05, 0.05, generator)
    rows = (torch.arange(SIZE) + 0.5)[None, :, None] / SIZE
    ramp = 0.8 - 0.6 * rows
    stripe = 0.35 + 0.3 * ((rows * SIZE / 12).floor() % 2)
    flat = torch.zeros_like(ramp)
    grey = torch.cat([flat + 0.12, flat + 0.82, ramp, stripe])[ids[:, 3]]
    return (grey + shade).expand(count, SIZE, SIZE)


def draw(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 4) ids -> (B, T, H, W, 3) frames in [0, 1] with random size, place, speed and shade."""
    paint = torch.tensor([HUES[name] for name in COLOURS], dtype=torch.float32)[ids[:, 1]]
    bright = _uniform(len(ids), 0.85, 1.0, generator)[:, 0]
    paint = (paint * 0.9 + 0.05) * bright
    mask = _masks(ids, generator)[..., None]
    ground = _backgrounds(ids, generator)[:, None, :, :, None]
    return ground + mask * (paint[:, None, None, None] - ground)


def sample_batch(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` random training clips: (B, 4) ids and (B, T, H, W, 3) frames."""
    seen = torch.tensor(combinations(unseen=False))
    ids = seen[torch.randint(len(seen), (count,), generator=generator)]
    return ids, draw(ids, generator)


assert len(BACKGROUNDS) == 4
