"""Which methods a model cannot be rendered with: those that reuse its transformer blocks, where it has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..comfy_erta.blocks import known_blocks
from .ours import VARIANTS

BLOCK_RIVALS = frozenset({"SeaCache", "TeaCache", "MagCache", "TaylorSeer 1", "TaylorSeer 2"})


def levels(model: Any) -> Sequence[str]:
    """Where a schedule can be followed on a model."""
    return ("blocks", "output") if known_blocks(model.model.diffusion_model) else ("output",)


def usable(model: Any, names: Iterable[str]) -> list[str]:
    """The methods that the model can be rendered with. The others are printed, with the reason."""
    names = list(names)
    if known_blocks(model.model.diffusion_model):
        return names
    needing = BLOCK_RIVALS | {variant.name for variant in VARIANTS if variant.settings.level == "blocks"}
    skipped = [name for name in names if name in needing]
    if skipped:
        kind = type(model.model.diffusion_model).__name__
        print(f"skipped, as {kind} has no transformer blocks: {'; '.join(skipped)}", flush=True)
    return [name for name in names if name not in needing]
