"""What an example is, and the words that the notes of several have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .draw import Box

SETTINGS = "Sampler, steps, guidance, shift and size are those of ComfyUI's own template"
WITHOUT_LORA = f"{SETTINGS} with its few-step LoRA off: with it there is nothing left to reuse."
NOT_RENDERED = "*Checked for structure with ComfyUI, not rendered: the weights were not at hand.*"
SAMPLER_KNOB = (
    "**The knob is speed**, in ERTA Cached Sampler, which otherwise is KSampler: 1 computes every step, 2 half of "
    "them. The first render with a model is a full one and measures it; from the second on it is fast. The line below "
    "the knob says how many steps will be computed and which error to expect."
)
PATCH_KNOB = (
    "**The knob is speed**, in ERTA Cache, the last node on the way of a model to its sampler: 1 computes every "
    "step, 2 half of them. The first render with a model is a full one and measures it; from the second on it is fast. "
    "The line below the knob says how many steps will be computed and which error to expect."
)
FEW_STEPS = "Few steps leave little to reuse: where motion or detail suffers, try speed 1.5, or more steps."


@dataclass(frozen=True)
class Example:
    """One file: its boxes, and what its note says before and after the list of model files.

    needs: the ComfyUI that it was checked with, where the oldest lacks some of its nodes. bypassed: the group that does
    not run until it is turned on.
    """

    title: str
    boxes: Sequence[Box]
    knob: str
    more: str
    settings: str = f"{SETTINGS}."
    rendered: bool = False
    note_height: int = 460
    needs: str = ""
    bypassed: str = ""
