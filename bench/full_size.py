"""``python -m bench full-size``: speed, memory and cost of the pack at Wan2.1's real dimensions, in ComfyUI itself.

No weights are needed: the architecture is built at its full size with random ones. Each finished configuration is kept
under the output folder, so a run that was stopped, or that used up its --minutes, goes on where it was. On a machine
without a GPU say --reduced (everything smaller, some minutes to an hour) or --dry-run (only that it runs).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..erta.recorder import sampled
from . import full_tables
from .facts import machine
from .full_configs import BREAKS, COUNTS, DRY, FULL_SIZE, ON_CPU, RECORDING, STEPS, STREAMING, Config, every
from .full_count import count, graph_breaks
from .full_model import TINY, FullModel, Size
from .full_run import FULL, RECORD, SMALL, run, table_seconds
from .kept import Kept, digest_of, digest_of_files
from .loading import ROOT

OUTPUT = ROOT / "bench" / "output" / "full_size"

# What a configuration takes beside its runs, and how far a step's time may be off what the warm-up said.
SPARE_SECONDS, MARGIN = 20.0, 1.2


class Study:
    """The configurations, what is kept of them, and the model of the one that was measured last."""

    def __init__(self, how: str, folder: Path, streaming: bool = False) -> None:
        self.how, self.folder, self.streaming = how, folder, streaming
        self.device = device_name()
        self.facts = facts(self)
        sources = [*(ROOT / "erta").glob("*.py"), *(ROOT / "comfy_erta").glob("*.py")]
        sources += [ROOT / "bench" / f"full_{name}.py" for name in ("model", "run", "count")]
        self._kept = Kept(folder / "kept", digest_of(self.facts, how, digest_of_files(sources)))
        self.model: FullModel | None = None

    def is_kept(self, config: Config) -> bool:
        return self._kept.has_json(self._key(config))

    def kept(self, config: Config) -> dict[str, Any]:
        found: dict[str, Any] = self._kept.json(self._key(config), lambda: None)
        return found

    def _key(self, config: Config) -> str:
        return f"{config.name} {digest_of(asdict(config))[:8]}"

    def why_not(self, config: Config) -> str:
        """What a configuration lacks here, or ""."""
        if config.kind == STREAMING and self.how != DRY and not (self.streaming and torch.cuda.is_available()):
            return "needs a GPU and --lowvram"
        if config.kind != STREAMING and self.streaming:
            return "is measured without --lowvram"
        return ""

    def measure(self, config: Config, seconds: float) -> str:
        """Measure, keep, and return "", or what a step takes if that will not fit into so many seconds."""
        began = time.monotonic()
        model = self._model_of(config.size)
        one = self._warm_up(model, config) if config.effort else 0.0
        needed = MARGIN * one * config.effort + SPARE_SECONDS
        if seconds - (time.monotonic() - began) < needed:
            return f"a step takes {one:.1f} s, all of it about {needed:.0f} s"
        self._kept.json(self._key(config), lambda: {**asdict(config), "name": config.name, **measured(model, config)})
        return ""

    def _model_of(self, size: Size) -> FullModel:
        if self.model is None or self.model.size != size:
            if self.model is not None:
                self.model.unload()
            self.model = FullModel(size)
        return self.model

    def _warm_up(self, model: FullModel, config: Config) -> float:
        """Seconds of a step, after one that loads the weights and sets up kernels."""
        run(model, FULL, config.shown, 1, 1)
        return run(model, FULL, config.shown, 1, 1).first


def measured(model: FullModel, config: Config) -> dict[str, Any]:
    """All that a configuration asks, as JSON."""
    clip, steps = config.shown, config.steps
    if config.kind == COUNTS:
        return {"counted": [asdict(count(model, m, clip, steps, config.computed[0])) for m in config.methods]}
    if config.kind == BREAKS:
        tiny = model if config.size == TINY[config.model] else FullModel(TINY[config.model])
        orders = (True, False)
        with _quiet_dynamo():
            found = [graph_breaks(tiny, m, SMALL, steps, config.computed[0], o) for m in config.methods for o in orders]
        return {"compiled": [asdict(one) for one in found]}
    runs = []
    for _ in range(config.rounds):
        runs.append(run(model, FULL, clip, steps, steps))
        runs += [run(model, method, clip, steps, k) for method in config.methods for k in config.computed]
    result: dict[str, Any] = {"runs": [asdict(one) for one in runs]}
    if config.kind == RECORDING:
        result["tables"] = tables_of(config)
    return result


@contextlib.contextmanager
def _quiet_dynamo() -> Iterator[None]:
    """It warns of every break, and those are what is counted."""
    log = logging.getLogger("torch._dynamo")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def tables_of(config: Config) -> dict[str, float]:
    """The recorder's own work at the end of a run of 50 model calls."""
    output = config.methods[0] == RECORD
    elements = config.shown.latent_bytes // 4 if output else config.shown.tokens * config.shown.batch * config.size.dim
    kept = sampled(torch.empty(1, dtype=torch.bool).expand(elements)).numel()
    streams = 1 if output else 2
    seconds, held = table_seconds(kept, streams, STEPS)
    return {"seconds": seconds, "host_bytes": held, "elements": kept, "streams": streams}


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def facts(study: Any) -> dict[str, Any]:
    """The machine; on a GPU with its driver."""
    found = {**machine(study), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found |= {"driver": _driver(), "cuda": torch.version.cuda}
        found["gpu_memory"] = torch.cuda.get_device_properties(0).total_memory
    return found


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    words = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return words[0] if words else "unknown"


def main(arguments: Sequence[str] | None = None) -> None:
    args = options().parse_args(arguments)
    torch.set_grad_enabled(False)
    how = DRY if args.dry_run else ON_CPU if args.reduced else FULL_SIZE
    configs = [config for config in every(how) if meant(config, args.only)]
    if not configs:
        raise SystemExit(f"no configuration is called like {' '.join(args.only)}; --list shows all")
    study = Study(how, args.output or OUTPUT / how.replace(" ", "-"), args.lowvram)
    if args.list:
        for config in configs:
            print("kept   " if study.is_kept(config) else "missing", config.name)
        return
    if how == FULL_SIZE and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU: a step of full size takes hours here. Say --reduced or --dry-run")
    for line in measure_all(study, configs, 60.0 * args.minutes):
        print(line, flush=True)
    results = [study.kept(config) for config in every(how) if study.is_kept(config)]
    full_tables.write_results(results, study.facts, how, study.folder)
    print(f"written: full_size.json, full_size.md and full_size.png in {study.folder}")


def measure_all(study: Study, configs: Sequence[Config], seconds: float) -> Iterator[str]:
    """Measure what is not kept as long as there is time, and say so line by line."""
    ends = time.monotonic() + seconds
    for n, config in enumerate(configs, 1):
        head = f"{n:2d}/{len(configs)}  {config.name:50s}"
        lacking = study.why_not(config)
        if study.is_kept(config) or lacking:
            yield f"{head} {lacking or 'kept'}"
            continue
        left = ends - time.monotonic()
        if left < SPARE_SECONDS:
            yield f"{head} left for the next call"
            continue
        began = time.monotonic()
        too_long = study.measure(config, left)
        spent = f"{time.monotonic() - began:.0f} s"
        yield f"{head} {f'left for the next call: {too_long}' if too_long else spent}"


def meant(config: Config, words: Sequence[str]) -> bool:
    """Whether the name has every one of the words."""
    return all(word.lower() in config.name.lower().split() for word in words)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench full-size", description=__doc__)
    parser.add_argument("--list", action="store_true", help="only say what there is and what is kept")
    parser.add_argument("--only", nargs="+", default=[], help="words that a configuration's name must have")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing that will not fit into these; 9")
    parser.add_argument("--reduced", action="store_true", help="smaller models and pictures, for a CPU")
    parser.add_argument("--dry-run", action="store_true", help="everything once, as small as it goes")
    parser.add_argument("--lowvram", action="store_true", help="weights are streamed from RAM (ComfyUI's --novram)")
    parser.add_argument("--output", type=Path, help="folder for the results and what is kept")
    return parser


if __name__ == "__main__":
    raise SystemExit("python -m bench full-size")
