"""What the demo found: scores, the table with its footnotes, and all of it as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from .figures import Strip
from .methods import BUILTIN, EASYCACHE, FEWER, FULL, PAPER, PLANNED, Render, Studio


@dataclass(frozen=True)
class Job:
    """One prompt to render: the words and the seed."""

    text: str
    seed: int

    def changes(self, **others: Any) -> dict[str, Any]:
        return {"Prompt.text": self.text, "seed": self.seed, **others}


@dataclass(frozen=True)
class Score:
    """How near a render is to the full one. PSNR and SSIM of the frames; error: relative, of the final latent."""

    psnr: float
    ssim: float
    error: float


@dataclass
class Results:
    """Everything that was rendered: by method key and speed, one render per job."""

    jobs: list[Job]
    settings: dict[str, Any]
    target: int = 0
    threshold: float = 0.0
    profile: dict[str, Any] = field(default_factory=dict)
    easycache_pattern: str = ""
    renders: dict[str, list[Render]] = field(default_factory=dict)

    def scores(self, key: str) -> list[Score]:
        return [score(full, other) for full, other in zip(self.renders["full"], self.renders[key], strict=True)]


def score(full: Render, other: Render) -> Score:
    reference, candidate = full.frames.double().numpy(), other.frames.double().numpy()
    pairs = zip(reference, candidate, strict=True)
    similar = [structural_similarity(a, b, channel_axis=-1, data_range=1.0) for a, b in pairs]
    error = (other.latent - full.latent).norm() / full.latent.norm()
    same = (reference == candidate).all()
    psnr = float("inf") if same else float(peak_signal_noise_ratio(reference, candidate, data_range=1.0))
    return Score(psnr, statistics.mean(map(float, similar)), float(error))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    label: str
    calls: list[int]
    seconds: float
    speed_up: float
    scores: list[Score]

    @property
    def span(self) -> str:
        """Of model calls, from the fewest to the most."""
        low, high = min(self.calls), max(self.calls)
        return f"{low}–{high}" if low < high else f"{low}"

    def cells(self) -> list[str]:
        counts = self.calls
        count = f"{statistics.median_low(counts)}" + (f" ({self.span})" if min(counts) < max(counts) else "")
        timed = [f"{self.seconds:.2f} s", f"{self.speed_up:.2f}×"]
        if self.key == "full":
            return [self.label, count, *timed, "–", "–", "–", "–"]
        psnr, ssim = [one.psnr for one in self.scores], [one.ssim for one in self.scores]
        quality = [f"{statistics.median(psnr):.1f} dB", f"{min(psnr):.1f} dB"]
        return [self.label, count, *timed, *quality, f"{statistics.median(ssim):.3f}", f"{min(ssim):.3f}"]


HEADINGS = ("Method", "Model calls", "Time", "Speed-up", "PSNR median", "worst", "SSIM median", "worst")


def rows(results: Results) -> list[Row]:
    found = []
    full = [render.seconds for render in results.renders["full"]]
    for method in (FULL, PLANNED, BUILTIN, PAPER, EASYCACHE, FEWER):
        renders = results.renders.get(method.key)
        if renders is None:
            continue
        seconds = [render.seconds for render in renders]
        gains = [a / b for a, b in zip(full, seconds, strict=True)]
        label = f"{method.label}: {results.target}" if method is FEWER else method.label
        found.append(
            Row(
                method.key,
                label,
                [render.calls for render in renders],
                statistics.median(seconds),
                statistics.median(gains),
                results.scores(method.key),
            )
        )
    return found


def table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown that is also a table to the eye."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    justify: list[Callable[[str, int], str]] = [str.ljust] + [str.rjust] * (len(widths) - 1)

    def draw(line: Sequence[str]) -> str:
        return "| " + " | ".join(j(cell, width) for j, cell, width in zip(justify, line, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) if n == 0 else "-" * (w + 1) + ":" for n, w in enumerate(widths)) + "|"
    return "\n".join([draw(lines[0]), rule, *map(draw, lines[1:])])


def footnotes(results: Results, machine: dict[str, Any]) -> list[str]:
    settings = results.settings
    recorded = results.profile["measured"]
    return [
        f"{len(results.jobs)} prompts that training never saw, one seed each; {settings['sampler_name']}, "
        f"{settings['scheduler']}, {settings['steps']} steps, guidance {settings['cfg']:g}; fp32 on {machine['cpus']} "
        f"CPU cores ({machine['cpu']}), torch {machine['torch']}, ComfyUI {machine['comfyui']}.",
        "Quality is measured against the full run with the same seed; PSNR over the whole clip, SSIM with "
        "scikit-image's defaults, mean over the frames. Worst: of all prompts.",
        "Time: of the sampler node alone, from the server's execution events; median over the prompts. What the node "
        "does beside the model's model calls weighs more on this tiny model than on a large one.",
        f"ERTA planned: with a profile of {recorded['steps']} steps, recorded on another prompt. Built-in plan: no "
        "profile, rendered before there was one. Paper mode: transformer blocks and timestep adjustment, as published.",
        f"EasyCache: ComfyUI's own, threshold {results.threshold:g}, tuned on another prompt to the same number of "
        "model calls. In fp32 flow models it adds into the sampler's own latent and spoils the picture; here it is "
        "handed a copy (node Copy for EasyCache), which is how it is meant to work.",
    ]


def machine_facts(studio: Studio) -> dict[str, Any]:
    system = studio.server.client.system_stats()["system"]
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": system["pytorch_version"],
        "comfyui": system["comfyui_version"],
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def as_json(results: Results, machine: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": machine,
        "settings": results.settings,
        "jobs": [{"prompt": job.text, "seed": job.seed} for job in results.jobs],
        "profile": results.profile,
        "easycache_threshold": results.threshold,
        "methods": {
            key: [
                {
                    "calls": render.calls,
                    "steps": render.steps,
                    "seconds": round(render.seconds, 4),
                    "compute": render.compute,
                    "psnr": None if one.psnr == float("inf") else round(one.psnr, 3),
                    "ssim": round(one.ssim, 5),
                    "error": round(one.error, 6),
                    "predicted_error": render.report.get("predicted_error"),
                    "notes": render.report.get("notes"),
                }
                for render, one in zip(renders, results.scores(key), strict=True)
            ]
            for key, renders in results.renders.items()
        },
    }


def strips(results: Results) -> Iterator[Strip]:
    """Of the first prompt; EasyCache decides anew for each, shown is the one that it was tuned on."""
    for row in rows(results):
        render = results.renders[row.key][0]
        compute = results.easycache_pattern if row.key == "easycache" else render.compute
        if compute:
            yield Strip(row.key, row.label, compute, render.steps)
