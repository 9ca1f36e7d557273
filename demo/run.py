"""The demonstration: a trained tiny Wan in a real ComfyUI, rendered in full, with ERTACache, with EasyCache, with fewer
steps, and what each costs and loses. Headless, on the CPU, through the server's API, with the workflows in graphs/.

    make demo                        all of it
    python -m demo.run --prompts 16  the same on more prompts
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from .comfyui import ComfyUINotFound
from .figures import Cell, Strip, plan_figure, side_by_side
from .methods import Method, Render, Studio
from .server import ComfyServer, PromptError, ServerError, WorkflowError, link
from .tiny_wan.clips import unseen_prompts
from .tiny_wan.words import describe

ROOT = Path(__file__).resolve().parent
MODEL = ROOT / "models" / "erta_tiny_wan.safetensors"
OUTPUT = ROOT / "output"

FULL = Method("full", "Full run", "full")
PROFILE = Method("profile", "ERTA Profile", "profile")
PLANNED = Method("planned", "ERTA planned, 2×", "planned", {"mode": "planned", "speed": 2.0})
PAPER = Method("paper", "ERTA paper mode, 2×", "paper", {"mode": "paper", "speed": 2.0})
BUILTIN = Method("builtin", "ERTA built-in plan, 2×", "planned", {"speed": 2.0, "without_profile": "built-in plan"})
EASYCACHE = Method("easycache", "EasyCache", "easycache")
FEWER = Method("fewer", "Fewer steps", "fewer_steps")
SWEEP = (1.5, 3.0, 4.0)  # further speeds of planned mode, for the figure


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


class Progress:
    """One line that says how far we are: rewritten in a terminal, now and then a new one elsewhere."""

    def __init__(self, total: float):
        """`total`: the evaluations that are to come."""
        self.total, self.done = total, 0.0
        self._started = self._told = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def step(self, what: str, evaluations: float) -> None:
        self.done += evaluations
        now = time.monotonic()
        left = (now - self._started) * max(self.total - self.done, 0) / self.done
        line = f"{min(self.done / self.total, 1):4.0%}  {what}, about {left:.0f} s left"
        if self._terminal:
            print(f"\r{line:<78}", end="", flush=True)
        elif now - self._told > 10:
            self._told = now
            print(line, flush=True)

    def close(self) -> None:
        if self._terminal:
            print(f"\r{'':<78}\r", end="", flush=True)


class Demo:
    """The order of things. Per prompt the methods follow one another, so that a machine that slows down or speeds up
    meets all of them alike.
    """

    def __init__(self, studio: Studio, jobs: list[Job], steps: int | None, quick: bool):
        self.studio, self.jobs, self.quick = studio, jobs, quick
        settings = studio.settings("full")
        self.given = {"steps": steps} if steps else {}
        self.results = Results(jobs, {**settings, **self.given})
        self.steps: int = self.results.settings["steps"]
        self.runs = (1, 1) if quick else (4, 2)  # recorded at output and at blocks level
        self.sweep = () if quick else SWEEP
        self.tuning = 4 if quick else 8  # most runs to find EasyCache's threshold
        half, count = self.steps / 2, len(jobs)
        swept = sum(self.steps / speed for speed in self.sweep)
        self.progress = Progress(
            self.steps * (sum(self.runs) + count) + half * self.tuning + count * (5 * half + swept) + 2
        )

    def run(self) -> Results:
        self.warm_up()
        self.render_builtin()
        self.record_profiles()
        self.tune_easycache()
        self.render_all()
        self.progress.close()
        return self.results

    def warm_up(self) -> None:
        """Loads the model and lets torch set itself up; not part of any time."""
        self._render(FULL, self.jobs[0].changes(steps=2), "warming up")

    def render_builtin(self) -> None:
        """Before any profile exists: afterwards the sampler node would find it."""
        renders = [self._render(BUILTIN, job.changes(**self.given), "built-in plan") for job in self.jobs]
        if all("built-in plan" in "".join(render.report["notes"]) for render in renders):
            self.results.renders["builtin"] = renders

    def record_profiles(self) -> None:
        """On a prompt of its own. Paper mode reuses transformer blocks, which are measured by themselves."""
        output, blocks = self.runs
        recorded = self._render(PROFILE, {"runs": output, **self.given}, "recording a profile", output)
        self.results.profile = dict(recorded.report)
        self.results.target = next(c["computed"] for c in self.results.profile["curve"] if c["speed"] == 2.0)
        changes = {"runs": blocks, "level": "blocks", "name": "tiny-wan-blocks", **self.given}
        self._render(PROFILE, changes, "recording a profile of blocks", blocks)

    def tune_easycache(self) -> None:
        """Bisect its threshold until it computes as many evaluations as planned mode does, on a prompt of its own.

        Ties go to more evaluations, in EasyCache's favour.
        """
        job = Job(describe(unseen_prompts(len(self.jobs) + 1)[-1]), 999)
        low, high = 0.0, 3.0
        threshold, found = 0.1, []
        for _ in range(self.tuning):
            changes = {"EasyCache.reuse_threshold": threshold, "EasyCache.verbose": True, **self.given}
            render = self._render(EASYCACHE, job.changes(**changes), f"tuning EasyCache, {threshold:.3f}")
            distance = abs(render.evaluations - self.results.target)
            found.append((distance, -render.evaluations, threshold, render.compute))
            if distance == 0:
                break
            low, high = (threshold, high) if render.evaluations > self.results.target else (low, threshold)
            # Counted in halvings: the useful thresholds lie within a factor of ten.
            threshold = round((max(low, 0.001) * min(high, 2.0)) ** 0.5, 4)
        *_, self.results.threshold, self.results.easycache_pattern = min(found)

    def render_all(self) -> None:
        easycache = {"EasyCache.reuse_threshold": self.results.threshold}
        entries = [
            ("full", FULL, self.given),
            ("planned", PLANNED, self.given),
            ("paper", PAPER, self.given),
            ("easycache", EASYCACHE, {**easycache, **self.given}),
            ("fewer", FEWER, {"steps": self.results.target}),
            *((f"planned-{speed:g}", PLANNED, {"speed": speed, **self.given}) for speed in self.sweep),
        ]
        for number, job in enumerate(self.jobs):
            turned = number % len(entries)  # nobody always comes first
            for key, method, changes in entries[turned:] + entries[:turned]:
                what = f"prompt {number + 1} of {len(self.jobs)}: {method.label}"
                self.results.renders.setdefault(key, []).append(self._render(method, job.changes(**changes), what))

    def _render(self, method: Method, changes: dict[str, Any], what: str, runs: int = 1) -> Render:
        render = self.studio.render(method, changes)
        evaluations = render.report.get("computed", render.evaluations) * runs
        self.progress.step(what, evaluations)
        return render


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
    evaluations: list[int]
    seconds: float
    speed_up: float
    scores: list[Score]

    def cells(self) -> list[str]:
        counts = sorted(self.evaluations)
        count = f"{statistics.median_low(counts)}" + (f" ({counts[0]}–{counts[-1]})" if counts[0] < counts[-1] else "")
        timed = [f"{self.seconds:.2f} s", f"{self.speed_up:.2f}×"]
        if self.key == "full":
            return [self.label, count, *timed, "–", "–", "–", "–"]
        psnr, ssim = [s.psnr for s in self.scores], [s.ssim for s in self.scores]
        quality = [f"{statistics.median(psnr):.1f} dB", f"{min(psnr):.1f} dB"]
        return [self.label, count, *timed, *quality, f"{statistics.median(ssim):.3f}", f"{min(ssim):.3f}"]


HEADINGS = ("Method", "Evaluations", "Time", "Speed-up", "PSNR median", "worst", "SSIM median", "worst")


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
                [render.evaluations for render in renders],
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
        "does beside the model's evaluations weighs more on this tiny model than on a large one.",
        f"ERTA planned: with a profile of {recorded['steps']} steps, recorded on another prompt. Built-in plan: no "
        "profile, rendered before there was one. Paper mode: transformer blocks and timestep adjustment, as published.",
        f"EasyCache: ComfyUI's own, threshold {results.threshold:g}, tuned on another prompt to the same number of "
        "evaluations. In fp32 flow models it adds into the sampler's own latent and spoils the picture; here it is "
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


def draw(results: Results, folder: Path) -> list[Path]:
    columns = ["full", "planned", "easycache", "fewer"]
    labels = {row.key: row for row in rows(results)}
    headings = [
        f"{labels[key].label}\n{labels[key].cells()[1]} evaluations" for key in columns
    ]  # the second line is smaller
    scores = {key: results.scores(key) for key in columns}
    shown = [
        (
            job.text,
            [
                Cell(
                    results.renders[key][n].frames,
                    "reference" if key == "full" else f"PSNR {scores[key][n].psnr:.1f} dB",
                )
                for key in columns
            ],
        )
        for n, job in enumerate(results.jobs[:4])
    ]
    measured = {2.0: "planned"} | {float(k.removeprefix("planned-")): k for k in results.renders if "planned-" in k}
    errors = {speed: [s.error for s in results.scores(key)] for speed, key in measured.items()}
    plan = folder / "plan.png"
    plan_figure(list(strips(results)), results.profile["curve"], errors, plan)
    return [*side_by_side(headings, shown, folder), plan]


def strips(results: Results) -> Iterator[Strip]:
    """Of the first prompt; EasyCache decides anew for each, shown is the one that it was tuned on."""
    for row in rows(results):
        render = results.renders[row.key][0]
        compute = results.easycache_pattern if row.key == "easycache" else render.compute
        if compute:
            yield Strip(row.key, row.label, compute, render.steps)


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
                    "evaluations": render.evaluations,
                    "steps": render.steps,
                    "seconds": round(render.seconds, 4),
                    "compute": render.compute,
                    "psnr": None if score.psnr == float("inf") else round(score.psnr, 3),
                    "ssim": round(score.ssim, 5),
                    "error": round(score.error, 6),
                    "predicted_error": render.report.get("predicted_error"),
                    "notes": render.report.get("notes"),
                }
                for render, score in zip(renders, results.scores(key), strict=True)
            ]
            for key, renders in results.renders.items()
        },
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description="Compares ERTACache in a real ComfyUI.")
    parser.add_argument("--prompts", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--steps", type=int, help="of the full run (default: what the workflows say)")
    parser.add_argument("--quick", action="store_true", help="2 prompts, 12 steps: to see that it works")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="default: demo/output")
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FILE", help="another tiny Wan than the shipped")
    given = parser.parse_args(argv)
    if given.quick:
        given.prompts, given.steps = 2, given.steps or 12
    if not 1 <= given.prompts <= 63:
        parser.error("--prompts: from 1 to 63")
    if given.steps is not None and not 8 <= given.steps <= 1000:
        parser.error("--steps: from 8 to 1000")
    return given


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(argv)
    if not given.model.is_file():
        print(
            f"There is no model at {given.model}. It ships with the repository; to train it anew (about an hour): "
            "python -m demo.train",
            file=sys.stderr,
        )
        return 1
    try:
        return demonstrate(given)
    except (ComfyUINotFound, ServerError, PromptError, WorkflowError) as problem:
        print(f"\nThe demo could not be finished. {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped, and the server with it.", file=sys.stderr)
        return 130


def demonstrate(given: argparse.Namespace) -> int:
    began = time.monotonic()
    jobs = [Job(describe(ids), 1000 + number) for number, ids in enumerate(unseen_prompts(given.prompts))]
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer() as server:
        link(given.model, server.base / "models" / "diffusion_models" / MODEL.name)
        studio = Studio(server)
        machine = machine_facts(studio)
        print(f"ComfyUI {machine['comfyui']} is up at {server.url}. Rendering ...", flush=True)
        results = Demo(studio, jobs, given.steps, given.quick).run()
    given.output.mkdir(parents=True, exist_ok=True)
    lines = [HEADINGS, *(row.cells() for row in rows(results))]
    text = table(lines)
    notes = [f"- {note}" for note in footnotes(results, machine)]
    report = given.output / "table.md"
    report.write_text("\n".join([text, "", *notes, ""]), encoding="utf-8")
    data = given.output / "results.json"
    data.write_text(json.dumps(as_json(results, machine), indent=1) + "\n", encoding="utf-8")
    pictures = draw(results, given.output)
    print("\n".join(["", text, "", *notes, "", "Written:", *(f"  {path}" for path in (*pictures, report, data))]))
    print(f"The whole took {time.monotonic() - began:.0f} s. The server has ended.")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # the server is the one that computes
    sys.exit(main())
