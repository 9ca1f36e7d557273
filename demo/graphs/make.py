"""Draws the demo's workflow files anew, for dragging into ComfyUI: python -m demo.graphs.make

The files say what runs; this says what they have in common, so that the six stay consistent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..server import ComfyServer
from . import draw
from .draw import Box, Column, Words, text

HERE = Path(__file__).resolve().parent
NAMES = ("full", "profile", "planned", "paper", "easycache", "fewer_steps")

MODEL = "erta_tiny_wan.safetensors"
STEPS, GUIDANCE, SAMPLER, SCHEDULER = 50, 5.0, "euler", "simple"
PROMPT = "a yellow triangle moving up on stripes"
PROFILE_PROMPT = "a red circle moving right on a dark background"  # of the trained ones; the demo renders unseen ones
WIDTH = 340
COLUMNS = (
    Column("Model", 0, WIDTH),
    Column("Prompt and size", 380, WIDTH),
    Column("Sampling", 800, WIDTH),
    Column("Result", 1220, WIDTH),
)

NOTES = {
    "full": "The full run: every step is computed. This is what the other workflows are measured against.",
    "profile": "Renders in full four times, with four seeds, and measures the model while it does. The profile is kept "
    "under its name; ERTA Cached Sampler finds it by itself afterwards. The plot in the node shows which error to "
    "expect at which speed.",
    "planned": "KSampler with one more knob: speed. Nothing is connected to profile, so the stored one that fits is "
    "taken (run profile.json first). Without one, this first render is a full one that records a profile.",
    "paper": "ERTACache as published: transformer blocks are reused, and the timesteps are adjusted. It needs a "
    "profile of level blocks; without one, this first render is a full one that records it.",
    "easycache": "ComfyUI's own EasyCache, for comparison. Where it reuses, it adds into its input, and in an fp32 "
    "flow model that is the sampler's own latent. The copy node before it keeps that from spoiling the picture; "
    "bypass it to see the difference. The threshold decides how many steps are computed: ComfyUI's log shows it.",
    "fewer_steps": "The simplest way to half of the model calls: half of the steps.",
}


def boxes(name: str) -> list[Box]:
    """What is on the canvas of one file, from left to right."""
    model = "Tiny Wan"
    before = []
    if name == "easycache":
        before = [
            Box("Model", "Copy", "ERTADemoCopyForEasyCache", 60, {"model": (model, 0)}),
            Box("Model", "EasyCache", "EasyCache", 160, {"model": ("Copy", 0), "verbose": False}),
        ]
    sampling = sampler(name, before[-1].title if before else model)
    options = [Box("Sampling", "ERTA Options", "ERTAOptions", 300, {"mode": "paper"})] if name == "paper" else []
    return [
        Box("Model", model, "UNETLoader", 90, {"unet_name": MODEL, "weight_dtype": "default"}),
        *before,
        Box("Prompt and size", "Prompt", "ERTADemoPrompt", 130, {"text": _prompt(name)}),
        Box("Prompt and size", "Negative (empty)", "ERTADemoPrompt", 110, {"text": ""}),
        Box("Prompt and size", "Size", "ERTADemoEmptyLatent", 70, {"batch_size": 1}),
        sampling,
        *options,
        Box("Result", "Decode", "ERTADemoDecode", 80, {"samples": (sampling.title, _latent(name)), "upscale": 4}),
        Box(
            "Result",
            "Save animation",
            "SaveAnimatedWEBP",
            360,
            {"images": ("Decode", 0), "filename_prefix": f"erta_demo/{name}", "fps": 4.0, "lossless": True},
        ),
        Box(
            "Result",
            "Save latent",
            "SaveLatent",
            70,
            {"samples": (sampling.title, _latent(name)), "filename_prefix": f"erta_demo/{name}"},
        ),
    ]


def sampler(name: str, model: str) -> Box:
    common = {
        "model": (model, 0),
        "positive": ("Prompt", 0),
        "negative": ("Negative (empty)", 0),
        "latent_image": ("Size", 0),
        "seed": 1,
        "steps": STEPS // 2 if name == "fewer_steps" else STEPS,
        "cfg": GUIDANCE,
        "sampler_name": SAMPLER,
        "scheduler": SCHEDULER,
        "denoise": 1.0,
    }
    if name == "profile":
        return Box("Sampling", "ERTA Profile", "ERTAProfile", 700, {**common, "runs": 4, "name": "tiny-wan"})
    if name in ("planned", "paper"):
        options = {"options": ("ERTA Options", 0)} if name == "paper" else {}
        return Box("Sampling", "ERTA Cached Sampler", "ERTACachedSampler", 460, {**common, "speed": 2.0, **options})
    return Box("Sampling", "KSampler", "KSampler", 480, common)


def _prompt(name: str) -> str:
    return PROFILE_PROMPT if name == "profile" else PROMPT


def _latent(name: str) -> int:
    return 1 if name == "profile" else 0


def workflow(name: str, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """One file's content in ComfyUI's UI format."""
    return draw.workflow(COLUMNS, boxes(name), Words("Model", NOTES[name], 200), object_info)


def main() -> None:
    with ComfyServer() as server:
        object_info = server.client.object_info()
    for name in NAMES:
        path = HERE / f"{name}.json"
        path.write_text(text(workflow(name, object_info)), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
