"""Two pictures: quality against model calls for every method, and what each part of ours is worth."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .measure import Row, summary
from .methods import OURS, RIVAL
from .ours import PLANNED

matplotlib.use("agg")
ACCENT, SECOND, INK, PALE = "#c2410c", "#0f766e", "#1f2937", "#d1d5db"


def quality(rows: Sequence[Row], steps: int, path: Path) -> None:
    """A panel per method, all others behind it in grey and the default in colour: median thick, worst case thin."""
    names = list(dict.fromkeys(found["method"] for found in shown(rows) if found["family"] in (OURS, RIVAL)))
    if not names:
        return
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.5 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        for other in names:
            draw(axis, curve(rows, other), PALE, thin=False)
        draw(axis, curve(rows, PLANNED), ACCENT, thin=name == PLANNED)
        if name != PLANNED:
            colour = _colour(rows, name)
            draw(axis, curve(rows, name), colour, thin=True)
            for against in elsewhere(rows, name):
                draw(axis, curve(rows, name, against), colour, thin=False, style=":")
        axis.set_title(name, fontsize=10, loc="left", color=_colour(rows, name), fontweight="bold")
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("PSNR, dB")
    axes[0, 0].set_xticks(sorted({found["budget"] for found in shown(rows)}))
    for axis in axes.flat[max(0, len(names) - columns) : len(names)]:  # the lowest of each column
        axis.set_xlabel(f"model calls of {steps}")
        axis.tick_params(labelbottom=True)
    title = "Closeness to the full run: median thick, worst prompt thin; ERTA planned in orange in every panel"
    other = sorted({against for name in names for against in elsewhere(rows, name)})
    figure.suptitle(title + "".join(f"; dotted: against the full run of {against}" for against in other), fontsize=11)
    figure.savefig(path, dpi=110)


def ablation(rows: Sequence[Row], path: Path) -> None:
    """Per speed, a line per variant of ours from the worst prompt (tick) to the median (dot); quartiles as a bar."""
    ours = [found for found in shown(rows) if found["family"] != RIVAL]
    names = list(dict.fromkeys(found["method"] for found in ours))[::-1]
    if not names:
        return
    speeds = sorted({found["speed"] for found in ours})
    figure = Figure(figsize=(max(2.4 + 2.6 * len(speeds), 7.0), 0.32 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots(1, len(speeds), sharey=True, squeeze=False)[0]
    for axis, speed in zip(axes, speeds, strict=True):
        for found in ours:
            if found["speed"] == speed:
                _bar(axis, names.index(found["method"]), found)
        axis.set_title(f"{speed:g}x", fontsize=10, loc="left")
        axis.set_xlabel("PSNR, dB")
        axis.grid(alpha=0.25, axis="x")
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    for label, name in zip(axes[0].get_yticklabels(), names, strict=True):
        label.set_color(_colour(ours, name))
    figure.suptitle("What each part is worth: median (dot), quartiles (bar), worst prompt (tick)", fontsize=11)
    figure.savefig(path, dpi=110)


def predicted(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Predicted against measured error: dots are prompts, rings medians; the diagonal and a factor of 2."""
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axis = figure.subplots()
    for point in points:
        colour = ACCENT if point["plan"] == "default" else SECOND
        expected = point["predicted"][0]
        axis.plot([expected] * len(point["error"]), point["error"], ".", color=colour, markersize=3, alpha=0.35)
        axis.plot(expected, statistics.median(point["error"]), "o", color=colour, markersize=7, fillstyle="none")
    ends = (1e-4, 0.3)
    axis.plot(ends, ends, color=INK, linewidth=0.8)
    for factor in (0.5, 2.0):
        axis.plot(ends, [factor * end for end in ends], color=PALE, linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="predicted error of the final latent", ylabel="measured")
    axis.grid(alpha=0.25)
    title = "Orange: default plan; green: held, no corrector. Dot: prompt, ring: median"
    axis.set_title(title, fontsize=9, loc="left")
    figure.savefig(path, dpi=110)


def _bar(axis: Axes, place: int, found: Row) -> None:
    s = summary(found)
    colour = _colour([found], found["method"])
    axis.plot([s["psnr_worst"], s["psnr"]], [place, place], color=colour, linewidth=0.8)
    axis.plot([s["psnr_low"], s["psnr_high"]], [place, place], color=colour, linewidth=5, alpha=0.35)
    axis.plot(s["psnr"], place, "o", color=colour, markersize=5)
    axis.plot(s["psnr_worst"], place, "|", color=colour, markersize=9)


def _colour(rows: Sequence[Row], name: str) -> str:
    return ACCENT if name == PLANNED else SECOND if family(rows, name) == OURS else INK


def draw(axis: Axes, points: Sequence[tuple[float, float, float]], colour: str, thin: bool, style: str = "-") -> None:
    """points: (model calls, median, worst) in order. A single one is shown as a dot."""
    if not points:
        return
    calls, medians, worsts = zip(*points, strict=True)
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if colour != PALE else {}
    if len(points) == 1:
        marker = {"marker": "o", "markersize": 4}
    axis.plot(calls, medians, style, color=colour, linewidth=1.0 if colour == PALE else 2.0, **marker)
    if thin:
        axis.plot(calls, worsts, style, color=colour, linewidth=0.8)


def curve(rows: Sequence[Row], name: str, against: str = "") -> list[tuple[float, float, float]]:
    """(model calls, median, worst PSNR) of a method, by model calls."""
    own = [summary(found, against) for found in shown(rows) if found["method"] == name]
    return sorted((s["calls"], s["psnr"], s["psnr_worst"]) for s in own)


def shown(rows: Sequence[Row]) -> list[Row]:
    return [found for found in rows if found["setting"]]


def elsewhere(rows: Sequence[Row], name: str) -> list[str]:
    """The references of a method beside its own sampler's."""
    own = next(found for found in shown(rows) if found["method"] == name)
    return [against for against in own["against"] if against != own["sampler"]]


def family(rows: Sequence[Row], name: str) -> str:
    return next(str(found["family"]) for found in rows if found["method"] == name)
