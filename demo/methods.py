"""The ways to render that the demo compares, and one render with any of them through the server."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from .client import Event
from .server import ComfyServer
from .tiny_wan import codec
from .workflows import give_options, set_input, ui_to_api

GRAPHS = Path(__file__).resolve().parent / "graphs"
SAMPLERS = ("KSampler", "ERTACachedSampler", "ERTAProfile")
EASYCACHE_COUNT = re.compile(r"EasyCache - skipped (\d+)/(\d+) steps")
EASYCACHE_STEP = re.compile(r"EasyCache \[verbose\] - (skipping step|x_prev_subsampled)")

Changes = Mapping[str, Any]  # inputs by name, of the file's sampler unless "node.input" names another


@dataclass(frozen=True)
class Method:
    """`graph`: the workflow file. `changes`: what is set otherwise than in the file. `options`: of ERTA Options."""

    key: str
    label: str
    graph: str
    changes: Changes = field(default_factory=dict)
    options: Changes = field(default_factory=dict)


FULL = Method("full", "Full run", "full")
PROFILE = Method("profile", "ERTA Profile", "profile")
PROFILE_BLOCKS = Method("profile", "ERTA Profile", "profile", options={"level": "blocks"})
PLANNED = Method("planned", "ERTA planned, 2×", "planned", {"speed": 2.0})
PAPER = Method("paper", "ERTA paper mode, 2×", "paper", {"speed": 2.0})
BUILTIN = Method("builtin", "ERTA built-in plan, 2×", "planned", {"speed": 2.0}, {"without_profile": "built-in plan"})
EASYCACHE = Method("easycache", "EasyCache", "easycache")
FEWER = Method("fewer", "Fewer steps", "fewer_steps")


@dataclass(frozen=True)
class Render:
    """One clip. `seconds` is the sampler node's time alone; `compute` has a 1 per computed model call, "" if unknown.

    `latent` is in the model's own units, `frames` are (T, H, W, 3) from 0 to 1, `ui` is what the sampler node showed.
    """

    calls: int
    steps: int
    seconds: float
    compute: str
    latent: torch.Tensor
    frames: torch.Tensor
    ui: Mapping[str, Any]

    @property
    def report(self) -> Mapping[str, Any]:
        """Of ERTA nodes; empty for others."""
        return dict(self.ui.get("erta", [{}])[0])


class Studio:
    """Renders with one server."""

    def __init__(self, server: ComfyServer):
        self.server = server
        self._object_info = server.client.object_info()

    def render(self, method: Method, changes: Changes) -> Render:
        """The changes are made on top of the method's own."""
        workflow = json.loads((GRAPHS / f"{method.graph}.json").read_text(encoding="utf-8"))
        api = ui_to_api(workflow, self._object_info)
        sampler = next(node for node in api if api[node]["class_type"] in SAMPLERS)
        for name, value in {**method.changes, **changes}.items():
            node, _, field_name = name.rpartition(".")
            set_input(api, node or api[sampler]["class_type"], field_name, value)
        if method.options:
            give_options(api, sampler, **method.options)
        log_before = len(self.server.log_text())
        outputs = self.server.client.run(api)["outputs"]
        log = self.server.log_text()[log_before:]
        latent = self._latent(outputs)
        steps = api[sampler]["inputs"]["steps"]
        ui = outputs.get(sampler, {})
        calls, compute = _count(method, steps, ui, log)
        seconds = sampler_seconds(self.server.client.events, sampler)
        return Render(calls, steps, seconds, compute, latent, codec.decode(latent)[0], ui)

    def settings(self, graph: str) -> dict[str, Any]:
        """The sampler's settings in a file."""
        workflow = json.loads((GRAPHS / f"{graph}.json").read_text(encoding="utf-8"))
        api = ui_to_api(workflow, self._object_info)
        inputs = next(node["inputs"] for node in api.values() if node["class_type"] in SAMPLERS)
        return {name: inputs[name] for name in ("steps", "cfg", "sampler_name", "scheduler")}

    def _latent(self, outputs: Mapping[str, Any]) -> torch.Tensor:
        """What Save Latent wrote, without loss, in the model's own units."""
        (entry,) = next(shown["latents"] for shown in outputs.values() if "latents" in shown)
        saved = safetensors.torch.load(self.server.client.view(**entry))["latent_tensor"]
        inner: torch.Tensor = self._latent_format.process_in(saved.float())
        return inner

    @cached_property
    def _latent_format(self) -> Any:
        return latent_format(self.server.comfy)


def sampler_seconds(events: list[Event], node: str) -> float:
    """From the server's event that this node is at work to the next that it is done or another one is at work."""
    times = [(event.type, event.data.get("node"), event.seconds) for event in events if isinstance(event.data, dict)]
    started = next(seconds for kind, at, seconds in times if kind == "executing" and at == node)
    for kind, at, seconds in times:
        over = (kind == "executing" and at != node) or (kind == "executed" and at == node)
        if seconds > started and (over or kind == "execution_success"):
            return seconds - started
    raise LookupError(f"the server did not say when node {node} was done")


def _count(method: Method, steps: int, ui: Mapping[str, Any], log: str) -> tuple[int, str]:
    """Computed model calls, and which ones. EasyCache only says it in the log; the others have one per step (euler)."""
    if "erta" in ui and "computed" in ui["erta"][0]:
        report = ui["erta"][0]
        return report["computed"], report["compute"] or "1" * report["computed"]
    if method.graph == "easycache":
        skipped, of = map(int, EASYCACHE_COUNT.findall(log)[-1])
        return of - skipped, _easycache_pattern(log, of)
    return steps, "1" * steps


def _easycache_pattern(log: str, steps: int) -> str:
    """Which model calls EasyCache computed, "" unless it was verbose.

    It is silent before its start and after its end, where all is computed. By default it starts at 15 % and ends at
    95 %; a step is inside when its percent, (steps - i) / steps from the end for this scheduler, lies between them.
    """
    reported = ["0" if kind == "skipping step" else "1" for kind in EASYCACHE_STEP.findall(log)]
    before = -(-15 * steps // 100)  # rounded up
    after = steps - before - len(reported)
    return "1" * before + "".join(reported) + "1" * after if reported and after >= 0 else ""


def latent_format(comfy: Path) -> Any:
    """Wan's, by the ComfyUI in that folder. Of its modules only those are imported that the formats need."""
    sys.path.insert(0, str(comfy))
    try:
        return importlib.import_module("comfy.latent_formats").Wan21()
    finally:
        sys.path.remove(str(comfy))
