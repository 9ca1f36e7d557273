"""Full size as Markdown, JSON and one picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .full_configs import (
    BREAKS,
    COMPUTED,
    COUNTS,
    FULL_SIZE,
    GROWTH,
    P480,
    P720,
    RECORDING,
    SPEED,
    STEPS,
    STREAMING,
    WHOLE,
    every,
)
from .full_costs import (
    Costs,
    blocks_bytes,
    costs,
    measured_share,
    moved_bytes,
    peak_above,
    recording_share,
    share_by_blocks,
    share_kept,
    spread,
)
from .full_model import SIZES, Clip
from .full_run import BLOCKS, EASYCACHE, FULL, OFFLOADED, OUTPUT
from .kept import write
from .plots import ACCENT, INK, PALE, SECOND
from .tables import markdown

Result = dict[str, Any]

# Bytes per second from main memory to a GPU.
BUS = 25e9

COLOURS = {OUTPUT: ACCENT, BLOCKS: SECOND, OFFLOADED: PALE, EASYCACHE: INK}


def write_results(results: Sequence[Result], facts: dict[str, Any], how: str, folder: Path) -> None:
    content = {"how": how, "facts": facts, "results": list(results)}
    write(folder / "full_size.json", _json(_rounded(content)).encode())
    write(folder / "full_size.md", report(results, facts, how).encode())
    plot(results, folder / "full_size.png")


def _json(content: dict[str, Any]) -> str:
    """A line per configuration."""
    lines = ",\n".join(json.dumps(result) for result in content["results"])
    return (
        f'{{"how": {json.dumps(content["how"])}, "facts": {json.dumps(content["facts"])}, "results": [\n{lines}\n]}}\n'
    )


def _rounded(content: Any) -> Any:
    """Seconds to the microsecond."""
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    return round(content, 6) if isinstance(content, float) else content


def report(results: Sequence[Result], facts: dict[str, Any], how: str) -> str:
    parts = [title(facts, how), about(results, facts, how)]
    sections = [
        ("Speed", speed_table(results)),
        (f"Whole runs of {_whole_steps(results)} steps", whole_table(results)),
        ("How it grows", growth_table(results)),
        ("Recording a profile", recording_table(results)),
        ("Counted on one run", counts_table(results)),
        ("Graph breaks under torch.compile", breaks_table(results)),
        ("Memory, predicted for the real dimensions", memory_table()),
    ]
    for head, body in sections:
        parts += [f"## {head}", body] if body else []
    names = {result["name"] for result in results}
    missing = [config.name for config in every(how) if config.name not in names]
    parts += [f"Not measured yet: {'; '.join(missing)}."] if missing else []
    return "\n\n".join(parts) + "\n"


def title(facts: dict[str, Any], how: str) -> str:
    if how == FULL_SIZE:
        return f"# Full size: Wan2.1's dimensions on {facts['device']}"
    on = facts["device"] if facts["device"] != "cpu" else "CPU"
    return f"# {on}, {how}; docs/measured/gpu.md has full size on a GPU"


def about(results: Sequence[Result], facts: dict[str, Any], how: str) -> str:
    driver = f", driver {facts['driver']}, CUDA {facts['cuda']}" if "driver" in facts else ""
    sizes = sorted({(r["model"], *r["size"].values()) for r in results if r["kind"] != BREAKS})
    widths = "; ".join(
        f"{m}: dim {dim}, ffn {ffn}, {layers} layers, {text} text tokens" for m, dim, ffn, layers, text in sizes
    )
    dtype = "bfloat16" if facts["device"] != "cpu" else "float32"
    lines = [
        f"{facts['device']}{driver}, {facts['cpus']} CPU cores ({facts['cpu']}), "
        f"{facts['threads']} in use, torch {facts['torch']}, ComfyUI "
        f"{facts['comfyui']}, Python {facts['python']}. Random weights, {dtype}. {widths}.",
        "",
        "- Sampled by ComfyUI's own sampler (euler, simple) with its model management and attention; guidance with "
        "both branches. Full runs and cached ones take turns in one process.",
        f"- What {STEPS} steps take follows from what a step of either kind takes in shorter runs, except under *whole "
        "runs*. Of a computed step only what lies where a method works is compared with the full run's (output: "
        "outside of the model; blocks, EasyCache: outside of its blocks): the rest is the same code in both.",
        "- Ours: planned from a recorded profile, two terms, corrected and checked. EasyCache: ComfyUI's, doing all "
        "its work, with its threshold steered so that it computes the same number of steps.",
        "- *N/K kept*: the speed-up over steps / computed. *own*: the method's own time in a computed step, below zero "
        "where it is lost in the noise. *Spread*: quartiles of the full run's steps over their median. Bars: kept "
        "at least 98.5 % (output) and 97 % (blocks), own below 0.5 %, a reused step at most 0.3 % (output).",
        "- A latent is as large as what is sampled, in float32.",
    ]
    if how != FULL_SIZE:
        smaller = {r["clip"]["width"]: (r["shown"]["width"], r["shown"]["height"]) for r in results}
        shown = ", ".join(f"{width} wide: {w}x{h}" for width, (w, h) in sorted(smaller.items()))
        lines.insert(2, f"- Names are those of the real configurations; rendered in their place ({shown}).")
    return "\n".join(lines)


def speed_table(results: Sequence[Result]) -> str:
    head = ("Model", "Clip", "Method", "Step", "Spread", "Own", "Reused step", *(f"N/K kept, {k}" for k in COMPUTED))
    lines: list[tuple[str, ...]] = [(*head, "Peak above full", "Cache")]
    for result in results:
        if result["kind"] not in (SPEED, STREAMING):
            continue
        method, runs = result["methods"][0], result["runs"]
        full, its = costs(runs, method)
        kept = (percent(share_kept(full, its, STEPS, k)) for k in COMPUTED)
        name = f"{method}, weights streamed" if result["kind"] == STREAMING else method
        lines.append((*_head(result, name), *_step(runs, full, its), *kept, _peak(result, method), _cache(result)))
    return markdown(lines, left=3) if len(lines) > 1 else ""


def _head(result: Result, name: str) -> tuple[str, str, str]:
    clip = Clip(**result["clip"])
    batch = f" x {clip.batch}" if clip.batch > 1 else ""
    return result["model"], f"{clip.width}x{clip.height}, {clip.frames} frames{batch}", name


def _step(runs: Sequence[Result], full: Costs, its: Costs) -> tuple[str, ...]:
    own = f"{1000 * its.own:.2f} ms, {percent(its.own / full.computed)}"
    reused = f"{1000 * its.reused:.2f} ms, {percent(its.reused / full.computed)}"
    return f"{full.computed:.2f} s", f"{spread(runs):.0%}", own, reused


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _peak(result: Result, method: str) -> str:
    above = peak_above(result["runs"], method)
    return "-" if above is None else f"{above / Clip(**result['shown']).latent_bytes:.1f} latents"


def _cache(result: Result) -> str:
    held = max(one["cache_bytes"] for one in result["runs"])
    return f"{held / 1e6:.1f} MB, {held / Clip(**result['shown']).latent_bytes:.1f} latents" if held else "-"


def _whole_steps(results: Sequence[Result]) -> int:
    return next((result["steps"] for result in results if result["kind"] == WHOLE), STEPS)


def whole_table(results: Sequence[Result]) -> str:
    head = ("Model", "Clip", "Method", "Computed", "N/K", "N/K kept, by blocks", "by steps", "by clock")
    lines: list[tuple[str, ...]] = [(*head, "Full", "Takes")]
    for result in results:
        if result["kind"] == WHOLE:
            lines += list(_whole(result))
    note = (
        "*By blocks*: the blocks' share of the run's time over their share of the full run's, which a machine that is "
        "slower for a while moves little. *By steps*: from single steps as above. *By clock*: right only where "
        "the machine did nothing else meanwhile.\n\n"
    )
    return note + markdown(lines, left=3) if len(lines) > 1 else ""


def _whole(result: Result) -> Iterator[tuple[str, ...]]:
    method, runs, steps = result["methods"][0], result["runs"], result["steps"]
    full, its = costs(runs, method)
    seconds = next(one["seconds"] for one in runs if one["method"] == FULL)
    for wanted in result["computed"]:
        share, computed = measured_share(runs, method, wanted)
        ideal = steps / computed
        yield (
            *_head(result, method),
            f"{computed} of {steps}",
            f"{ideal:.3f}",
            percent(share_by_blocks(runs, method, wanted)),
            percent(share_kept(full, its, steps, computed)),
            percent(share),
            f"{seconds:.1f} s",
            f"{seconds / (share * ideal):.1f} s",
        )


def growth_table(results: Sequence[Result]) -> str:
    lines = [("Model", "Clip", "Method", "Tokens", "Step", "Spread", "Own", "Reused step", "Cache")]
    for result in sorted((r for r in results if r["kind"] == GROWTH), key=_tokens):
        full, its = costs(result["runs"], OUTPUT)
        steps = _step(result["runs"], full, its)
        lines.append((*_head(result, OUTPUT), str(_tokens(result)), *steps, _cache(result)))
    return markdown(lines, left=3) if len(lines) > 1 else ""


def _tokens(result: Result) -> int:
    clip = Clip(**result["shown"])
    return clip.tokens * clip.batch


def recording_table(results: Sequence[Result]) -> str:
    head = ("Model", "Clip", "Level", "Own", f"Tables of {STEPS}", f"Of a run of {STEPS}", "Peak above full", "In RAM")
    lines: list[tuple[str, ...]] = [head]
    for result in results:
        if result["kind"] != RECORDING:
            continue
        method, tables = result["methods"][0], result["tables"]
        full, its = costs(result["runs"], method)
        above = peak_above(result["runs"], method)
        peak = next(one["peak"] for one in result["runs"] if one["method"] == FULL)
        share = recording_share(full, its.own, tables["seconds"], STEPS)
        lines.append(
            (
                *_head(result, BLOCKS if BLOCKS in method else OUTPUT),
                f"{1000 * its.own:.2f} ms",
                f"{tables['seconds']:.1f} s",
                percent(share),
                "-" if above is None else percent(above / peak),
                f"{tables['host_bytes'] / 1e6:.0f} MB",
            )
        )
    return markdown(lines, left=3) if len(lines) > 1 else ""


def counts_table(results: Sequence[Result]) -> str:
    head = ("Model", "Clip", "Method", "Operations, computed", "reused", "New tensors, reused", "Reads, computed")
    lines: list[tuple[str, ...]] = [(*head, "reused", "Peak above full")]
    for result in (r for r in results if r["kind"] == COUNTS):
        latent = Clip(**result["shown"]).latent_bytes
        peak = next(one["peak"] for one in result["counted"] if one["method"] == FULL)
        for one in result["counted"]:
            computed = [step for step in one["steps"] if step["computed"]]
            reused = [step for step in one["steps"] if not step["computed"]]
            made = [step["made_bytes"] / latent for step in reused]
            lines.append(
                (
                    *_head(result, one["method"]),
                    span([step["operations"] for step in computed]),
                    span([step["operations"] for step in reused]),
                    f"{max(made):.1f} latents" if made else "-",
                    span([waits(step) for step in computed]),
                    span([waits(step) for step in reused]),
                    f"{(one['peak'] - peak) / latent:.1f} latents",
                )
            )
    return markdown(lines, left=3) if len(lines) > 1 else ""


def waits(step: Result) -> int:
    """How often the host reads from the device in a step, or CUDA says that it waits, whichever is more."""
    return max(sum(step["reads"].values()), step["waits"])


def span(values: Sequence[int]) -> str:
    if not values:
        return "-"
    return str(min(values)) if min(values) == max(values) else f"{min(values)}–{max(values)}"


def breaks_table(results: Sequence[Result]) -> str:
    lines = [("Method", "Compile node", "Breaks", "Frames", "Compiled again by a second run")]
    for result in (r for r in results if r["kind"] == BREAKS):
        for one in result["compiled"]:
            order = "before" if one["first"] else "after"
            lines.append((one["method"], order, *(str(one[name]) for name in ("breaks", "frames", "again"))))
    note = "On two narrow blocks with Dynamo's backend *eager*: a break is where tracing stops, whatever the size.\n\n"
    return note + markdown(lines, left=2) if len(lines) > 1 else ""


def memory_table() -> str:
    """What follows from the code and the dimensions alone; features at level blocks in bfloat16."""
    head = ("Model", "Clip", "Output: cache", "Output: at most", "Blocks: cache", "Blocks: at most", "EasyCache")
    lines = [(*head, "Offloaded: moved in a reused step", "in a computed step")]
    for name, size in SIZES.items():
        for clip in (P480, P720):
            features = (clip.tokens, clip.batch, size.dim, 2)
            latent, stack = clip.latent_bytes, blocks_bytes(*features)
            held = (2 * latent, 3 * latent, stack * 2 // 3, stack, 4 * latent)
            computed, reused = moved_bytes(*features)
            moved = (f"{amount / 1e6:.0f} MB, {1000 * amount / BUS:.0f} ms" for amount in (reused, computed))
            where = f"{clip.width}x{clip.height}, {clip.frames} frames"
            lines.append((name, where, *(f"{amount / 1e6:.0f} MB" for amount in held), *moved))
    note = (
        "Two terms, both branches. With *offload* level blocks holds nothing on the GPU while the blocks run, and as "
        f"much in RAM; what moves is stated in milliseconds at {BUS / 1e9:.0f} GB/s, about PCIe 4.0 x16 from pinned "
        "memory. Level output needs no such option.\n\n"
    )
    return note + markdown(lines, left=2)


def plot(results: Sequence[Result], path: Path) -> None:
    """Left: how much of N/K is kept, per method. Right: the pack's own share of a step as the work grows."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_kept(left, results)
    _draw_growth(right, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_kept(axis: Axes, results: Sequence[Result]) -> None:
    named = set()
    for result in (r for r in results if r["kind"] == SPEED):
        method = result["methods"][0]
        full, its = costs(result["runs"], method)
        kept = [100 * share_kept(full, its, STEPS, k) for k in COMPUTED]
        label = None if method in named else method
        named.add(method)
        axis.plot(COMPUTED, kept, "o-", color=COLOURS[method], markersize=3, linewidth=1.2, label=label)
    for bar, colour in ((98.5, ACCENT), (97.0, SECOND)):
        axis.axhline(bar, color=colour, linewidth=0.8, linestyle=":")
    axis.set(xlabel=f"computed of {STEPS} steps", ylabel="of N/K kept, %")
    axis.set_title("Each line a model and a size; dotted: bars", fontsize=9, loc="left")
    axis.grid(alpha=0.25)
    if named:
        axis.legend(fontsize=8)


def _draw_growth(axis: Axes, results: Sequence[Result]) -> None:
    points = []
    for result in sorted((r for r in results if r["kind"] == GROWTH), key=_tokens):
        full, its = costs(result["runs"], OUTPUT)
        points.append((_tokens(result), 100 * its.reused / full.computed))
    if points:
        axis.plot(*zip(*points, strict=True), "o-", color=ACCENT, markersize=3, linewidth=1.2)
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.axhline(0.3, color=ACCENT, linewidth=0.8, linestyle=":")
    axis.set(xlabel="tokens", ylabel="reused step over computed, %")
    axis.set_title("Level output, frames 17 to 161, 480p to 1080p, batch 1 to 4", fontsize=9, loc="left")
    axis.grid(alpha=0.25)
