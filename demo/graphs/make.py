"""Draws the demo's workflow files anew, for dragging into ComfyUI: python -m demo.graphs.make

The files say what runs; this says what they have in common, so that six of them stay alike. The order of the widgets
comes from the server's own description of its nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..server import ComfyServer
from ..workflows import declared_inputs, is_widget

HERE = Path(__file__).resolve().parent
NAMES = ("full", "profile", "planned", "paper", "easycache", "fewer_steps")

MODEL = "erta_tiny_wan.safetensors"
STEPS, GUIDANCE, SAMPLER, SCHEDULER = 50, 5.0, "euler", "simple"
PROMPT = "a yellow triangle moving up on stripes"
PROFILE_PROMPT = "a red circle moving right on a dark background"  # of the trained ones; the demo renders unseen ones
FROM_LEFT = {"Model": 0, "Prompt and size": 380, "Sampling": 800, "Result": 1220}  # groups and their columns
WIDTH, GAP, TITLE = 340, 30, 30


@dataclass(frozen=True)
class Box:
    """A node: `inputs` holds values by name, and (title of another box, its output) for links."""

    group: str
    title: str
    type: str
    height: int
    inputs: dict[str, Any] = field(default_factory=dict)


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
    "bypass it to see the difference. The threshold decides how many steps are computed: ComfyUI's log tells.",
    "fewer_steps": "The simplest way to half of the evaluations: half of the steps.",
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
    return [
        Box("Model", model, "UNETLoader", 90, {"unet_name": MODEL, "weight_dtype": "default"}),
        *before,
        Box("Prompt and size", "Prompt", "ERTADemoPrompt", 130, {"text": _prompt(name)}),
        Box("Prompt and size", "Negative (empty)", "ERTADemoPrompt", 110, {"text": ""}),
        Box("Prompt and size", "Size", "ERTADemoEmptyLatent", 70, {"batch_size": 1}),
        sampling,
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
        return Box("Sampling", "ERTA Profile", "ERTAProfile", 560, {**common, "runs": 4, "name": "tiny-wan"})
    if name in ("planned", "paper"):
        return Box("Sampling", "ERTA Cached Sampler", "ERTACachedSampler", 760, {**common, "speed": 2.0, "mode": name})
    return Box("Sampling", "KSampler", "KSampler", 480, common)


def _prompt(name: str) -> str:
    return PROFILE_PROMPT if name == "profile" else PROMPT


def _latent(name: str) -> int:
    return 1 if name == "profile" else 0


def workflow(name: str, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """One file's content in ComfyUI's UI format."""
    placed = boxes(name)
    ids = {box.title: number for number, box in enumerate(placed, start=1)}
    links: list[list[Any]] = []
    tops = dict.fromkeys(FROM_LEFT, 0)
    nodes = []
    for box in placed:
        nodes.append(_node(box, object_info[box.type], ids, links, tops[box.group]))
        tops[box.group] += box.height + TITLE + GAP
    for _, source, slot, *_ in links:
        nodes[source - 1]["outputs"][slot]["links"] = [link[0] for link in links if link[1:3] == [source, slot]]
    note = {
        **_frame(len(nodes) + 1, "Note", "About", (FROM_LEFT["Model"], tops["Model"]), 200),
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [NOTES[name]],
        "color": "#432",
        "bgcolor": "#653",
    }
    tops["Model"] += note["size"][1] + TITLE + GAP
    return {
        "last_node_id": len(nodes) + 1,
        "last_link_id": len(links),
        "nodes": [*nodes, note],
        "links": links,
        "groups": [_group(number, title, tops[title]) for number, title in enumerate(FROM_LEFT, start=1)],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _node(box: Box, info: Mapping[str, Any], ids: dict[str, int], links: list[list[Any]], top: int) -> dict[str, Any]:
    """The node's entry; its links are appended to `links`, in the order of its sockets."""
    number = ids[box.title]
    sockets = []
    for name, kind, options in declared_inputs(info):
        if is_widget(kind, options):
            continue
        socket = {"name": name, "type": kind, "link": None}
        if name in box.inputs:
            title, slot = box.inputs[name]
            links.append([len(links) + 1, ids[title], slot, number, len(sockets), kind])
            socket["link"] = len(links)
        sockets.append(socket)
    outputs = zip(info["output_name"], info["output"], strict=True)
    return {
        **_frame(number, box.type, box.title, (FROM_LEFT[box.group], top), box.height),
        "inputs": sockets,
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        "properties": {"Node name for S&R": box.type},
        "widgets_values": list(_widget_values(box, info)),
    }


def _frame(number: int, kind: str, title: str, at: tuple[int, int], height: int) -> dict[str, Any]:
    size = [WIDTH, height]
    return {
        "id": number,
        "type": kind,
        "pos": list(at),
        "size": size,
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "title": title,
    }


def _widget_values(box: Box, info: Mapping[str, Any]) -> Iterator[Any]:
    for name, kind, options in declared_inputs(info):
        if not is_widget(kind, options):
            continue
        choices = kind if isinstance(kind, list) else options.get("options", [None])
        yield box.inputs[name] if name in box.inputs else options.get("default", choices[0])
        if options.get("control_after_generate"):
            yield "fixed"


def _group(number: int, title: str, bottom: int) -> dict[str, Any]:
    bounding = [FROM_LEFT[title] - 15, -TITLE - 45, WIDTH + 30, bottom + 45]
    return {"id": number, "title": title, "bounding": bounding, "color": "#3f789e", "font_size": 24, "flags": {}}


def text(content: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    with ComfyServer() as server:
        object_info = server.client.object_info()
    for name in NAMES:
        path = HERE / f"{name}.json"
        path.write_text(text(workflow(name, object_info)), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
