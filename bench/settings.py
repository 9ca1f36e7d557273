"""``python -m bench settings``: the main methods where artists render, one table per setting in one Markdown file.

A setting is a config in bench/configs. Finished rows are kept as those of ``python -m bench`` are, so that a run that
was stopped goes on where it was. The file is written after each setting.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from . import tables
from .command import OUTPUT, Bench, run
from .config import Config, ConfigError, read_config
from .kept import write
from .ours import BUILTIN, PLANNED, SELF_RECORDED
from .rig import Rig
from .skipping import usable

SETTINGS = (
    "tiny_wan",
    "euler_50_shift_3",
    "euler_50_matched",
    "uni_pc_20",
    "uni_pc_20_matched",
    "uni_pc_30",
    "uni_pc_30_matched",
    "two_experts",
    "two_experts_matched",
    "res_multistep_20",
    "euler_25_without_guidance",
    "rough",
    "rough_20",
)
METHODS = (
    PLANNED,
    SELF_RECORDED,
    BUILTIN,
    "fewer steps",
    "EasyCache",
    "TeaCache",
    "MagCache",
    "SeaCache",
    "FSampler",
    "GeoShrink",
    "published lists, stretched",
    "published lists, our lines",
)
SPEEDS, PROMPTS = (1.5, 2.0, 3.0), 16


def main() -> None:
    args = options().parse_args()
    torch.set_grad_enabled(False)
    try:
        configs = [read_config(name) for name in args.settings or SETTINGS]
        for _ in written(configs, args.prompts, tuple(args.speeds), args.output, args.fresh):
            print(f"written: {args.output}", flush=True)
    except (ConfigError, FileNotFoundError, ValueError) as problem:
        raise SystemExit(str(problem)) from None


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench settings", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="setting", help=f"{', '.join(SETTINGS)}; all without it")
    parser.add_argument("--speeds", type=float, nargs="+", default=SPEEDS, help="1.5 2 3 without it")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="16 without it")
    parser.add_argument("--fresh", action="store_true", help="measure anew what is kept")
    parser.add_argument("--output", type=Path, default=OUTPUT / "settings.md", help="the Markdown file")
    return parser


def written(
    configs: Sequence[Config], prompts: int, speeds: Sequence[float], output: Path, fresh: bool = False
) -> Iterator[Config]:
    """Measure the settings one after the other; after each, write all so far and yield it."""
    sections = []
    for config in configs:
        bench = Bench(Rig(config, prompts))
        sections.append(section(bench, speeds, fresh))
        write(output, tables.settings_report(bench.settings(), sections).encode())
        yield config


def section(bench: Bench, speeds: Sequence[float], fresh: bool) -> str:
    """One setting measured, as Markdown."""
    wanted = [(name, speed) for speed in speeds for name in usable(bench.rig.model, METHODS)]
    run(bench, wanted, fresh)
    rows = [bench.row(*one) for one in wanted]
    return tables.section(bench.settings(), rows, bench.other_seed(), METHODS)
