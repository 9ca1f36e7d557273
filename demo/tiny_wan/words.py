"""The demo's tiny vocabulary: free text in, four fixed 4096-wide vectors out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache, lru_cache

import torch

WIDTH = 4096
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
MOTIONS = ("left", "right", "up", "down", "still")
BACKGROUNDS = ("dark", "light", "gradient", "stripes")
GROUPS = (SHAPES, COLOURS, MOTIONS, BACKGROUNDS)

Ids = tuple[int, int, int, int]
MISSING = -1


def parse(text: str) -> Ids:
    """Index of the last known word of each group (shape, colour, motion, background), -1 where none occurs."""
    found = [MISSING] * len(GROUPS)
    for word in "".join(c if c.isalpha() else " " for c in text.lower()).split():
        for group, names in enumerate(GROUPS):
            if word in names:
                found[group] = names.index(word)
    return found[0], found[1], found[2], found[3]


def describe(ids: Ids) -> str:
    """A plain sentence that `parse` reads back as the same four (all present) ids."""
    shape, colour, motion, background = (names[i] for names, i in zip(GROUPS, ids, strict=True))
    moving = "standing still" if motion == "still" else f"moving {motion}"
    article = "" if background == "stripes" else "a "
    suffix = "" if background == "stripes" else " background"
    return f"a {colour} {shape} {moving} on {article}{background}{suffix}"


@cache
def word_vector(word: str) -> torch.Tensor:
    """The fixed random (4096,) vector of a word: depends on its spelling only."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") >> 1
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=1)
def tables() -> tuple[torch.Tensor, ...]:
    """One (words + 1, 4096) table per group; its last row, which index -1 reads, is the null vector."""
    null = torch.zeros(WIDTH)
    return tuple(torch.stack([*(word_vector(word) for word in names), null]) for names in GROUPS)


def embed(ids: torch.Tensor) -> torch.Tensor:
    """(B, 4) word ids, -1 = missing -> (B, 4, 4096) context."""
    return torch.stack([table[ids[:, group]] for group, table in enumerate(tables())], dim=1)


def embed_texts(texts: Iterable[str]) -> torch.Tensor:
    """B prompts -> (B, 4, 4096) context; an empty prompt gives the unconditional context."""
    return embed(torch.tensor([parse(text) for text in texts]))
