"""The pictures of a comparison: the worst frame with how PSNR runs over the frames, and both clips to play."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_WIDTH_MIN, _SIDE_MAX = 192, 512  # of one panel
_PLAYED, _SIDE_PLAYED, _SIDE_ALONE = 49, 320, 1024  # frames to play; longer side of one of them, of a single picture
_FACTORS = (1000, 500, 200, 100, 50, 20, 10, 5, 2, 1)
_BACK, _INK, _FAINT, _LINE, _MARK = "#17191d", "#e6e6e6", "#5a606b", "#5fb0ff", "#ff6b5e"


def comparison_figure(
    reference: torch.Tensor, candidate: torch.Tensor, span: tuple[float, float], frame_psnr: Sequence[float]
) -> torch.Tensor:
    """IMAGE (1, height, width, 3): reference | candidate | difference of the worst frame above PSNR per frame
    if there are several.

    reference, candidate: that frame, (channels, height, width), of which the first three channels are shown.
    span: the value that is black, and how far above it white is.
    """
    left, right = _colours(reference, span), _colours(candidate, span)
    difference = np.abs(right - left)
    # The largest round factor at which all but a hundredth of the values stay below white.
    bright = float(np.quantile(difference, 0.99) or difference.max())
    factor = next((f for f in _FACTORS if f * bright <= 1.0), 1) if bright else 1
    panels = [_panel(p) for p in (left, right, difference * factor)]
    slot, tall = max(_WIDTH_MIN, panels[0].width), panels[0].height
    size = max(20, slot // 16)
    font, margin, row = ImageFont.load_default(size), size // 2, size + size // 2
    width, top = 3 * slot + 4 * margin, 2 * row + margin
    canvas = Image.new("RGB", (width, top + tall + (8 * row if len(frame_psnr) > 1 else margin)), _BACK)
    draw = ImageDraw.Draw(canvas)
    worst = int(np.argmin(frame_psnr))
    title = f"worst frame: {worst + 1} of {len(frame_psnr)}, PSNR {frame_psnr[worst]:.2f} dB"
    draw.text((margin, row // 2 + margin // 2), title, _INK, font, anchor="lm")
    for n, (panel, label) in enumerate(zip(panels, ("reference", "candidate", f"difference x{factor}"), strict=True)):
        x = margin + n * (slot + margin)
        draw.text((x, top - row // 2), label, _INK, font, anchor="lm")
        canvas.paste(panel, (x + (slot - panel.width) // 2, top))
    if len(frame_psnr) > 1:
        _plot(draw, (margin, top + tall + margin, width - margin, canvas.height - margin), frame_psnr, font)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255.0)[None]


def sheets(
    reference: torch.Tensor, candidate: torch.Tensor, span: tuple[float, float], worst: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """IMAGE of two: each clip's frames in rows, and JSON-able where they are. Small whatever comes in: of a long clip
    some frames and always the worst, large ones reduced, one at a time."""
    count, side = len(reference), _SIDE_PLAYED if len(reference) > 1 else _SIDE_ALONE
    frames = sorted({worst, *np.linspace(0, count - 1, min(count, _PLAYED)).round().astype(int).tolist()})
    scale = min(1.0, side / max(reference.shape[-2:]))
    height, width = (max(1, round(length * scale)) for length in reference.shape[-2:])
    columns = math.ceil(math.sqrt(len(frames)))
    sheet = torch.zeros(2, -(-len(frames) // columns) * height, columns * width, 3)
    for clip, into in zip((reference, candidate), sheet, strict=True):
        for n, frame in enumerate(frames):
            y, x = n // columns * height, n % columns * width
            small = torch.nn.functional.interpolate(clip[frame][None].float(), (height, width), mode="area")[0]
            into[y : y + height, x : x + width] = torch.from_numpy(_colours(small, span))
    return sheet, {"frames": frames, "columns": columns, "width": width, "height": height}


def _colours(frame: torch.Tensor, span: tuple[float, float]) -> np.ndarray:
    shown = frame[:3] if frame.shape[0] >= 3 else frame[:1].expand(3, -1, -1)
    return ((shown.cpu().double() - span[0]) / span[1]).permute(1, 2, 0).numpy()


def _panel(colours: np.ndarray) -> Image.Image:
    """Small frames enlarged by a whole number, pixel by pixel; large ones reduced to fit."""
    height, width = colours.shape[:2]
    scale = min(-(-_WIDTH_MIN // width), _SIDE_MAX / width, _SIDE_MAX / height)
    image = Image.fromarray((colours.clip(0.0, 1.0) * 255.0).round().astype(np.uint8))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), how)


def _plot(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], values: Sequence[float], font: Any) -> None:
    """PSNR over the frame number, of two frames or more; with a line at the median, and the worst frame marked.

    box: left, top, right, bottom.
    """
    left, top, right, bottom = box
    row = int(font.getbbox("0g")[3]) + 4
    draw.text((left, top), "PSNR per frame, dB (line: median)", _INK, font)
    low, high = np.floor(min(values) - 0.5), np.ceil(max(values) + 0.5)
    left, top, bottom = left + int(draw.textlength(f"{high:.0f}0", font)), top + row + row // 2, bottom - row - 2
    xs = np.linspace(left + row // 2, right - row // 2, len(values))

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    for value, colour in ((low, _FAINT), (high, _FAINT), (float(np.median(values)), _INK)):
        draw.line((left, y(value), right, y(value)), colour)
    for value in (low, high):
        draw.text((left - 4, y(value)), f"{value:.0f}", _INK, font, anchor="rm")
    points = [(float(x), float(y(v))) for x, v in zip(xs, values, strict=True)]
    draw.line(points, _LINE, width=max(2, row // 10))
    worst = int(np.argmin(values))
    for n, (x, height) in enumerate(points):
        r = row // 5 if n == worst else row // 10
        draw.ellipse((x - r, height - r, x + r, height + r), _MARK if n == worst else _LINE)
    for n in (0, len(values) - 1):
        draw.text((xs[n], bottom + 4), str(n + 1), _INK, font, anchor="mt")
