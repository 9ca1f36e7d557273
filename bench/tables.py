"""The results as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from .measure import Row, summary
from .methods import OURS, RIVAL
from .ours import BUILTIN, PLANNED

HEADER = (
    "Method", "Setting", "Model calls", "N / K", "Time ratio", "PSNR median", "worst", "quartiles",
    "SSIM median", "worst", "FLIP median", "worst", "Latent L1 median", "worst",
)  # fmt: skip


def report(rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """All of it: what was measured on, the margins, one table per speed."""
    parts = ["# Bench", about(settings), "## Against the rivals", margins(rows)]
    for speed in sorted({found["speed"] for found in rows}):
        here = [found for found in rows if found["speed"] == speed]
        parts += [f"## {speed:g}x: {here[0]['budget']} of {settings['config']['steps']} model calls"]
        parts += [table(here, settings["config"]["steps"])]
        parts += [absent(here)]
    return "\n\n".join(part for part in parts if part) + "\n"


def about(settings: dict[str, Any]) -> str:
    config = settings["config"]
    lines = [
        f"{config['name']}, {settings['prompts']} prompts x 1 seed, {sampled(config)}, dtype {config['dtype']}; "
        f"{on_machine(settings)}.",
        "",
        "- Quality is that of the result against the full run with the same seed; *worst* of all prompts.",
        f"- Settings of rivals are the best on {settings['tuning']} other prompts whose mean number of model calls "
        "there keeps to the budget; what the compared prompts then took stands in the table.",
        "- Model calls are counted at the model's last block, 1 = all conds once. Time ratio: a full run's time, "
        "measured just before, over the median of the runs.",
        f"- Profile and calibrations: {settings['profile_runs']} other prompts (MagCache: 1, as published).",
        "- Fewer steps of another sampler: against that sampler's own full run and, in the line below, against "
        f"{config['sampler']}'s.",
        "- EasyCache is handed a copy of its input: in fp32 flow models it adds into the sampler's own latent.",
    ]
    return "\n".join(lines)


def sampled(config: dict[str, Any]) -> str:
    """How a config samples."""
    boundary = config["boundary"]
    stages = f" ({boundary} + {config['steps'] - boundary} of two experts)" if boundary else ""
    return (
        f"{config['sampler']}, {config['scheduler']}, {config['steps']} steps{stages}, "
        f"guidance {config['guidance']:g}, shift {format(config['shift'], 'g') if config['shift'] else 'of the model'}"
    )


def on_machine(settings: dict[str, Any]) -> str:
    return (
        f"{settings['device']}, {settings['cpus']} CPU cores ({settings['cpu']}), torch {settings['torch']}, "
        f"ComfyUI {settings['comfyui']}"
    )


def table(rows: Sequence[Row], steps: int) -> str:
    lines = [cells(found, against, steps) for found in rows if found["setting"] for against in found["against"]]
    lines.sort(key=lambda line: -float(line[5]))
    return markdown([HEADER, *lines], left=2)


def cells(found: Row, against: str, steps: int) -> tuple[str, ...]:
    s = summary(found, against)
    name = f"**{found['method']}**" if found["family"] == OURS else found["method"]
    range_of_calls = "" if s["fewest"] == s["most"] else f" ({s['fewest']:g}–{s['most']:g})"
    return (
        name if against == found["sampler"] else f"{name}, against {against}",
        found["setting"],
        f"{s['calls']:.4g}{range_of_calls}",
        f"{steps / s['calls']:.2f}",
        f"{s['time_ratio']:.2f}",
        f"{s['psnr']:.2f}",
        f"{s['psnr_worst']:.2f}",
        f"{s['psnr_low']:.1f}–{s['psnr_high']:.1f}",
        f"{s['ssim']:.4f}",
        f"{s['ssim_worst']:.4f}",
        f"{s['flip']:.4f}",
        f"{s['flip_worst']:.4f}",
        f"{s['latent_l1']:.4f}",
        f"{s['latent_l1_worst']:.4f}",
    )


def absent(rows: Sequence[Row]) -> str:
    names = [found["method"] for found in rows if not found["setting"]]
    return f"No setting within this budget: {', '.join(names)}." if names else ""


def settings_report(settings: dict[str, Any], sections: Sequence[str]) -> str:
    """The sections of all settings under what holds for each. settings: of any of them."""
    lines = [
        f"{settings['prompts']} prompts x 1 seed per setting; {on_machine(settings)}.",
        "",
        "- Cells: PSNR in dB against the full run with the same seed, median / worst prompt. The best median of a "
        "column is bold. In brackets: the mean number of model calls, where it is not the column's. "
        "–: no setting within them.",
        "- Another seed: two full runs of a prompt that differ in the seed. A method that comes near that number has "
        "rendered another clip.",
        f"- Settings of rivals are the best on {settings['tuning']} other prompts whose mean number of model calls "
        "there keeps to the column's.",
        f"- ERTA planned has a profile of {settings['profile_runs']} runs with a measured error response; "
        "self-recorded one of a single run, which the pack records by itself; the built-in plan none.",
    ]
    return "\n\n".join(["# Settings", "\n".join(lines), *sections]) + "\n"


def section(settings: dict[str, Any], rows: Sequence[Row], other_seed: Sequence[float], names: Sequence[str]) -> str:
    """One setting: how it samples, how far another seed gets, the named methods, and what to know about them."""
    config = settings["config"]
    missing = [name for name in names if name not in {found["method"] for found in rows}]
    parts = [
        f"## {config['name']}: {sampled(config)}",
        f"Another seed: {statistics.median(other_seed):.1f} / {min(other_seed):.1f} dB.",
        by_speed(rows, names),
        STAGES if config["boundary"] else "",
        f"Not measured, as the model has no transformer blocks: {', '.join(missing)}." if missing else "",
    ]
    return "\n\n".join(part for part in parts if part)


STAGES = (
    "Each stage is a run of its own to every method but fewer steps: it has its own calibration, profile and schedule, "
    "starts with nothing in the cache and gets its share of the model calls. A threshold is the same in both stages. "
    "The same model stands for both experts."
)


def by_speed(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Median / worst PSNR of the named methods in their order, a column per speed, the best median of each bold."""
    speeds = {found["speed"]: found["budget"] for found in sorted(rows, key=lambda found: float(found["speed"]))}
    known = {(found["method"], found["speed"]): found for found in rows if found["setting"]}
    medians = {key: f"{summary(found)['psnr']:.1f}" for key, found in known.items()}
    lines = [("Method", *(f"{speed:g}x: {budget} calls" for speed, budget in speeds.items()))]
    for name in dict.fromkeys(name for name in names if any(found["method"] == name for found in rows)):
        cells = []
        for speed in speeds:
            best = max((m for (_, s), m in medians.items() if s == speed), key=float, default="")
            found = known.get((name, speed))
            cells.append(_median_and_worst(found, medians[name, speed] == best) if found else "–")
        lines.append((name, *cells))
    return markdown(lines, left=1)


def _median_and_worst(found: Row, best: bool) -> str:
    s = summary(found)
    median = f"**{s['psnr']:.1f}**" if best else f"{s['psnr']:.1f}"
    calls = f" ({s['calls']:.1f})" if abs(s["calls"] - found["budget"]) >= 0.5 else ""
    return f"{median} / {s['psnr_worst']:.1f}{calls}"


def margins(rows: Sequence[Row]) -> str:
    """Ours beside the best rival at each speed: highest median and highest worst case, by whichever rival."""
    lines = [
        ("Speed", "Ours", "PSNR median / worst", "Best rival in the median", "Best rival in the worst case", "Margin")
    ]
    for speed in sorted({found["speed"] for found in rows}):
        here = [found for found in rows if found["speed"] == speed and found["setting"]]
        lines += list(_margins(speed, here))
    return markdown(lines, left=2) if len(lines) > 1 else ""


def _margins(speed: float, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    rivals = [(found, summary(found, a)) for found in rows if found["family"] == RIVAL for a in found["against"]]
    for name in (PLANNED, BUILTIN):
        own = [summary(found) for found in rows if found["method"] == name]
        if not own or not rivals:
            continue
        median = max(rivals, key=lambda rival: rival[1]["psnr"])
        worst = max(rivals, key=lambda rival: rival[1]["psnr_worst"])
        yield (
            f"{speed:g}x",
            name,
            f"{own[0]['psnr']:.1f} / {own[0]['psnr_worst']:.1f}",
            f"{median[0]['method']}: {median[1]['psnr']:.1f}",
            f"{worst[0]['method']}: {worst[1]['psnr_worst']:.1f}",
            f"{own[0]['psnr'] - median[1]['psnr']:+.1f} / {own[0]['psnr_worst'] - worst[1]['psnr_worst']:+.1f}",
        )


def markdown(lines: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first ``left`` columns are flush left, the others right."""
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]

    def draw(line: Sequence[str]) -> str:
        justified = (c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True)))
        return "| " + " | ".join(justified) + " |"

    rule = "|" + "|".join("-" * (w + 2) if n < left else "-" * (w + 1) + ":" for n, w in enumerate(widths)) + "|"
    return "\n".join([draw(lines[0]), rule, *map(draw, lines[1:])])
