"""The results as Markdown."""

from __future__ import annotations

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
        f"{config['name']}, {settings['prompts']} prompts x 1 seed, {config['sampler']}, {config['scheduler']}, "
        f"{config['steps']} steps, guidance {config['guidance']:g}, shift {config['shift'] or 'of the model'}, "
        f"dtype {config['dtype']}; {settings['device']}, {settings['cpus']} CPU cores ({settings['cpu']}), torch "
        f"{settings['torch']}, ComfyUI {settings['comfyui']}.",
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
