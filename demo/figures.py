"""The demo's pictures: the clips side by side, and the plan with its predicted error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, wherever the demo runs

import matplotlib.font_manager
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

SCALE, FRAME_MS = 3, 250
AMPLIFIED = 8  # differences
SPACE, HEAD, LINE = 14, 62, 22  # pixels: between pictures, of the headings, of a line of text
BACK, INK, FAINT = "#ffffff", "#1a1a1a", "#6b6b6b"
# Okabe and Ito's colours, distinct to colour-blind people.
COLOURS = {
    "full": "#000000",
    "planned": "#0072b2",
    "builtin": "#56b4e9",
    "paper": "#009e73",
    "easycache": "#d55e00",
    "fewer": "#cc79a7",
}


@dataclass(frozen=True)
class Cell:
    """One clip, (T, H, W, 3) from 0 to 1, the line below it, and how far each of its values is from the full run's."""

    frames: torch.Tensor
    caption: str
    difference: torch.Tensor | None = None


def side_by_side(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], folder: Path) -> list[Path]:
    """Write side_by_side.webp, an animation without loss of colour, and side_by_side.png, its middle frame.

    columns: headings, in which "\\n" makes a second line. rows: the prompt, and a cell per column. The differences
    stand to the right, amplified.
    """
    count = len(rows[0][1][0].frames)
    sheets = [_sheet(columns, rows, number) for number in range(count)]
    animation, still = folder / "side_by_side.webp", folder / "side_by_side.png"
    sheets[0].save(animation, save_all=True, append_images=sheets[1:], duration=FRAME_MS, loop=0, lossless=True)
    sheets[count // 2].save(still)
    return [animation, still]


def _sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], number: int) -> Image.Image:
    """One frame of the animation."""
    height, width = (side * SCALE for side in rows[0][1][0].frames.shape[1:3])
    headings = [*columns, *(f"Difference ×{AMPLIFIED}\n{words.splitlines()[0]}" for words in columns[1:])]
    lefts = [SPACE + column * (width + SPACE) + (column >= len(columns)) * SPACE for column in range(len(headings))]
    row_height = 2 * LINE + height + SPACE
    sheet = Image.new("RGB", (lefts[-1] + width + SPACE, HEAD + len(rows) * row_height), BACK)
    draw = ImageDraw.Draw(sheet)
    face = matplotlib.font_manager.findfont("DejaVu Sans")  # comes with matplotlib; Pillow's own font lacks signs
    large, small = ImageFont.truetype(face, 15), ImageFont.truetype(face, 13)
    for left, heading in zip(lefts, headings, strict=True):
        first, _, second = heading.partition("\n")
        draw.text((left, 12), first, INK, large)
        draw.text((left, 33), second, FAINT, small)
    for row, (prompt, cells) in enumerate(rows):
        top = HEAD + row * row_height
        draw.text((SPACE, top), f"“{prompt}”", INK, small)
        clips = [cell.frames for cell in cells] + [
            d * AMPLIFIED for cell in cells if (d := cell.difference) is not None
        ]
        for left, frames in zip(lefts, clips, strict=True):
            sheet.paste(_enlarged(frames[number]), (left, top + LINE))
        for left, cell in zip(lefts, cells, strict=False):
            draw.text((left, top + LINE + height + 4), cell.caption, FAINT, small)
    return sheet


def _enlarged(frame: torch.Tensor) -> Image.Image:
    pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1))


@dataclass(frozen=True)
class Strip:
    """Which of a run's model calls were computed. `steps`: how many there were in all."""

    key: str
    label: str
    compute: str
    steps: int


def plan_figure(
    strips: Sequence[Strip],
    curve: Sequence[Mapping[str, Any]],
    measured: Mapping[float, Sequence[float]],
    target: Path,
) -> None:
    """Above, which model calls each method computes; below, the error that the profile predicts and what was measured.

    curve: of ERTA Profile, with "speed", "median" and "worst". measured: speed -> relative errors, one per prompt.
    """
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (above, below) = plt.subplots(
            2, 1, figsize=(10, 3.2 + 0.42 * len(strips) + 1.2), height_ratios=[0.42 * len(strips), 3.4]
        )
        _draw_strips(above, strips)
        _draw_errors(below, curve, measured)
        figure.tight_layout(h_pad=2.5)
        figure.savefig(target, dpi=120)
        plt.close(figure)


def _draw_strips(axes: Any, strips: Sequence[Strip]) -> None:
    longest = max(strip.steps for strip in strips)
    for row, strip in enumerate(strips):
        wide = longest / strip.steps
        for index, kind in enumerate(strip.compute):
            colour = COLOURS[strip.key] if kind == "1" else "#ececec"
            axes.barh(row, wide - 0.14, left=index * wide, height=0.72, align="center", color=colour)
        computed = strip.compute.count("1")
        axes.text(longest + 0.4, row, f"{computed} computed", va="center", ha="left", color=INK)
    axes.set_yticks(range(len(strips)), [strip.label for strip in strips])
    axes.set(xlim=(-0.2, longest * 1.17), ylim=(len(strips) - 0.4, -0.6))
    ticks = range(0, longest + 1, 10 if longest >= 30 else 2)
    axes.set_xticks(ticks)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Which model model calls are computed (grey: reused); noise on the left, picture on the right",
                   loc="left", fontsize=11)  # fmt: skip


def _draw_errors(axes: Any, curve: Sequence[Mapping[str, Any]], measured: Mapping[float, Sequence[float]]) -> None:
    speeds = [point["speed"] for point in curve]
    median, worst = ([100 * point[name] for point in curve] for name in ("median", "worst"))
    colour = COLOURS["planned"]
    axes.plot(speeds, median, color=colour, linewidth=2, label="predicted by the profile: median")
    axes.plot(speeds, worst, color=colour, linewidth=1.5, linestyle="--", label="predicted: worst recorded run")
    for number, (speed, errors) in enumerate(sorted(measured.items())):
        values = 100 * np.asarray(errors)
        label = {"label": "measured: each prompt"} if number == 0 else {}
        axes.scatter([speed] * len(values), values, s=26, facecolors="none", edgecolors=COLOURS["easycache"], **label)
        label = {"label": "measured: median"} if number == 0 else {}
        axes.scatter(
            [speed], [np.median(values)], s=110, marker="_", color=COLOURS["easycache"], linewidth=2.5, **label
        )
    axes.set(xlabel="speed (model calls of the full run / computed ones)", ylabel="error of the final latent, %")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title("The error to expect at each speed, before anything is rendered", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=10, loc="upper left")
