"""The demonstration: a trained tiny Wan in a real ComfyUI, rendered in full, with ERTACache, with EasyCache, with fewer
steps, and what each costs and loses. Headless, on the CPU, through the server's API, with the workflows in graphs/.

    make demo                        all of it
    python -m demo.run --prompts 16  the same on more prompts
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .comfyui import ComfyUINotFound
from .figures import Cell, plan_figure, side_by_side
from .methods import BUILTIN, EASYCACHE, FEWER, FULL, PAPER, PLANNED, PROFILE, PROFILE_BLOCKS, Method, Render, Studio
from .results import HEADINGS, Job, Results, as_json, footnotes, machine_facts, rows, score, strips, table
from .server import ComfyServer, PromptError, ServerError, WorkflowError, link
from .tiny_wan.clips import unseen_prompts
from .tiny_wan.words import describe

ROOT = Path(__file__).resolve().parent
MODEL = ROOT / "models" / "erta_tiny_wan.safetensors"
OUTPUT = ROOT / "output"

SWEEP = (1.5, 3.0, 4.0)  # further speeds of planned mode, for the figure
SHOWN = ("full", "planned", "easycache", "fewer")  # side by side


class Progress:
    """One line that says how far we are: rewritten in a terminal, now and then a new one elsewhere."""

    def __init__(self, total: float):
        """`total`: the model calls that are to come."""
        self.total, self.done = total, 0.0
        self._started = self._printed = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def step(self, what: str, calls: float) -> None:
        self.done += calls
        now = time.monotonic()
        left = (now - self._started) * max(self.total - self.done, 0) / self.done
        line = f"{min(self.done / self.total, 1):4.0%}  {what}, about {left:.0f} s left"
        if self._terminal:
            print(f"\r{line:<78}", end="", flush=True)
        elif now - self._printed > 10:
            self._printed = now
            print(line, flush=True)

    def close(self) -> None:
        if self._terminal:
            print(f"\r{'':<78}\r", end="", flush=True)


class Demo:
    """The order of things. Per prompt the methods follow one another, so that a machine that slows down or speeds up
    meets all of them equally.
    """

    def __init__(self, studio: Studio, jobs: list[Job], steps: int | None, quick: bool):
        self.studio, self.jobs = studio, jobs
        settings = studio.settings("full")
        self.overrides: dict[str, Any] = {"steps": steps} if steps else {}
        self.results = Results(jobs, {**settings, **self.overrides})
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
        renders = [self._render(BUILTIN, job.changes(**self.overrides), "built-in plan") for job in self.jobs]
        if all(any(note["code"] == "built_in" for note in render.report["notes"]) for render in renders):
            self.results.renders["builtin"] = renders

    def record_profiles(self) -> None:
        """On a prompt of its own. Paper mode reuses transformer blocks, which are measured by themselves."""
        output, blocks = self.runs
        recorded = self._render(PROFILE, {"runs": output, **self.overrides}, "recording a profile", output)
        self.results.profile = dict(recorded.report)
        self.results.target = next(c["computed"] for c in self.results.profile["curve"] if c["speed"] == 2.0)
        changes = {"runs": blocks, "name": "tiny-wan-blocks", **self.overrides}
        self._render(PROFILE_BLOCKS, changes, "recording a profile of blocks", blocks)

    def tune_easycache(self) -> None:
        """Bisect its threshold until it computes as many model calls as planned mode does, on a prompt of its own.

        Ties go to more model calls, in EasyCache's favour.
        """
        job = Job(describe(unseen_prompts(len(self.jobs) + 1)[-1]), 999)
        low, high = 0.0, 3.0  # what the node takes
        threshold, found = 0.1, []
        for _ in range(self.tuning):
            changes = {"EasyCache.reuse_threshold": threshold, "EasyCache.verbose": True, **self.overrides}
            render = self._render(EASYCACHE, job.changes(**changes), f"tuning EasyCache, {threshold:.3f}")
            distance = abs(render.calls - self.results.target)
            found.append((distance, -render.calls, threshold, render.compute))
            if distance == 0:
                break
            low, high = (threshold, high) if render.calls > self.results.target else (low, threshold)
            threshold = round((max(low, 0.001) * high) ** 0.5, 4)  # halfway in ratio: small ones matter most
        *_, self.results.threshold, self.results.easycache_pattern = min(found)

    def render_all(self) -> None:
        easycache = {"EasyCache.reuse_threshold": self.results.threshold}
        entries = [
            ("full", FULL, self.overrides),
            ("planned", PLANNED, self.overrides),
            ("paper", PAPER, self.overrides),
            ("easycache", EASYCACHE, {**easycache, **self.overrides}),
            ("fewer", FEWER, {"steps": self.results.target}),
            *((f"planned-{speed:g}", at_speed(speed), self.overrides) for speed in self.sweep),
        ]
        for number, job in enumerate(self.jobs):
            turned = number % len(entries)  # nobody always comes first
            for key, method, changes in entries[turned:] + entries[:turned]:
                what = f"prompt {number + 1} of {len(self.jobs)}: {method.label}"
                self.results.renders.setdefault(key, []).append(self._render(method, job.changes(**changes), what))

    def _render(self, method: Method, changes: dict[str, Any], what: str, runs: int = 1) -> Render:
        render = self.studio.render(method, changes)
        calls = render.report.get("computed", render.calls) * runs
        self.progress.step(what, calls)
        return render


def at_speed(speed: float) -> Method:
    return replace(PLANNED, label=f"ERTA planned, {speed:g}×", changes={**PLANNED.changes, "speed": speed})


def draw(results: Results, folder: Path) -> list[Path]:
    """The pictures: the first four prompts side by side, and the plan."""
    found = {row.key: row for row in rows(results)}
    headings = [f"{found[key].label}\n{found[key].span} model calls" for key in SHOWN]
    shown = [(job.text, [_cell(results, key, number) for key in SHOWN]) for number, job in enumerate(results.jobs[:4])]
    speeds = {2.0: "planned"} | {speed: f"planned-{speed:g}" for speed in SWEEP}
    errors = {speed: [s.error for s in results.scores(key)] for speed, key in speeds.items() if key in results.renders}
    plan = folder / "plan.png"
    plan_figure(list(strips(results)), results.profile["curve"], errors, plan)
    return [*side_by_side(headings, shown, folder), plan]


def _cell(results: Results, key: str, number: int) -> Cell:
    full, render = results.renders["full"][number], results.renders[key][number]
    if key == "full":
        return Cell(full.frames, "reference")
    return Cell(render.frames, f"PSNR {score(full, render).psnr:.1f} dB", (render.frames - full.frames).abs())


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description="Compares ERTACache in a real ComfyUI.")
    parser.add_argument("--prompts", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--steps", type=int, help="of the full run (default: what the workflows say)")
    parser.add_argument("--quick", action="store_true", help="2 prompts, 12 steps: to see that it works")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="default: demo/output")
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FILE", help="another tiny Wan than the shipped")
    args = parser.parse_args(argv)
    if args.quick:
        args.prompts, args.steps = 2, args.steps or 12
    if not 1 <= args.prompts <= 63:
        parser.error("--prompts: from 1 to 63")
    if args.steps is not None and not 8 <= args.steps <= 1000:
        parser.error("--steps: from 8 to 1000")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if not args.model.is_file():
        print(
            f"There is no model at {args.model}. It ships with the repository; to train it anew (about an hour): "
            "python -m demo.train",
            file=sys.stderr,
        )
        return 1
    try:
        return demonstrate(args)
    except (ComfyUINotFound, ServerError, PromptError, WorkflowError) as problem:
        print(f"\nThe demo could not be finished. {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped, and the server with it.", file=sys.stderr)
        return 130


def demonstrate(args: argparse.Namespace) -> int:
    began = time.monotonic()
    jobs = [Job(describe(ids), 1000 + number) for number, ids in enumerate(unseen_prompts(args.prompts))]
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer() as server:
        link(args.model, server.base / "models" / "diffusion_models" / MODEL.name)
        studio = Studio(server)
        machine = machine_facts(studio)
        print(f"ComfyUI {machine['comfyui']} is up at {server.url}. Rendering ...", flush=True)
        results = Demo(studio, jobs, args.steps, args.quick).run()
    args.output.mkdir(parents=True, exist_ok=True)
    lines = [HEADINGS, *(row.cells() for row in rows(results))]
    text = table(lines)
    notes = [f"- {note}" for note in footnotes(results, machine)]
    report = args.output / "table.md"
    report.write_text("\n".join([text, "", *notes, ""]), encoding="utf-8")
    data = args.output / "results.json"
    data.write_text(json.dumps(as_json(results, machine), indent=1) + "\n", encoding="utf-8")
    pictures = draw(results, args.output)
    print("\n".join(["", text, "", *notes, "", "Written:", *(f"  {path}" for path in (*pictures, report, data))]))
    print(f"The whole took {time.monotonic() - began:.0f} s. The server has ended.")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # the server is the one that computes
    sys.exit(main())
