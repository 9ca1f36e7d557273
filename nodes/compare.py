"""ERTA Compare."""

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..comfy_erta.figure import comparison_figure, sheets
from ..erta.metrics import PSNR_MAX, frame_psnr, psnr, relative_error, snr, ssim
from .inputs import CATEGORY


class ERTACompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        kinds = [io.Latent, io.Image]
        return io.Schema(
            node_id="ERTACompare",
            display_name="ERTA Compare",
            category=CATEGORY,
            description="Measures how far a cached render is from the full one, and shows the frame where it is worst.",
            inputs=[
                io.MultiType.Input("reference", kinds, tooltip="The full render: a latent, or images."),
                io.MultiType.Input(
                    "candidate", kinds, tooltip="The cached render: same kind, size and number of frames as reference."
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="PSNR",
                    tooltip="In dB, from the mean squared error of the whole clip; higher is closer. 100 is the most: "
                    "identical, or nearly so. Relative to 1.0 for images, to the reference's max - min for latents.",
                ),
                io.Float.Output(
                    display_name="SSIM",
                    tooltip="Structural similarity (11x11 Gaussian window), mean over the frames; 1 is identical. "
                    "Relative to 1.0 for images, to the reference's max - min for latents.",
                ),
                io.Image.Output(
                    display_name="figure",
                    tooltip="Worst frame: reference, candidate, amplified difference; below, PSNR per frame "
                    "if there are several. Of a latent, the first three channels.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, reference: Any, candidate: Any) -> io.NodeOutput:
        first, second = frames_of(reference, candidate)
        is_latent = not isinstance(reference, torch.Tensor)
        span = _span(first) if is_latent else (0.0, 1.0)
        found = scores(first, second, span[1]) | {"error": relative_error(first, second) if is_latent else None}
        found["sound_snr"] = sound_snr(reference, candidate)
        found["identical"] &= all(ratio >= PSNR_MAX for ratio in found["sound_snr"])
        worst = found["psnr_worst_frame"] - 1
        figure = comparison_figure(first[worst], second[worst], span, found["frame_psnr"])
        clips, places = sheets(first, second, span, worst)
        # Not as "images": ComfyUI would show them below what our panel makes of them, and in its gallery.
        found["clips"] = {**places, "sheets": ui.PreviewImage(clips, cls=cls).as_dict()["images"]}
        return io.NodeOutput(found["psnr"], found["ssim"], figure, ui={"erta": [found], "text": [as_text(found)]})


def frames_of(reference: Any, candidate: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as (frames, channels, height, width) on the CPU; refused unless of one kind and shape, and finite."""
    named = [_named(value) for value in (reference, candidate)]
    (kind, first), (other, second) = named
    if kind != other or first.shape != second.shape:
        both = f"reference is {kind} {list(first.shape)}, candidate is {other} {list(second.shape)}"
        remedy = (
            "Connect two latents or two images (VAE Decode makes images of a latent)."
            if kind != other
            else "Render both with the same size, number of frames and batch."
        )
        raise ValueError(f"ERTA Compare cannot compare these: {both}. {remedy}")
    for name, values in (("reference", first), ("candidate", second)):
        broken = values.numel() - int(torch.isfinite(values).sum())
        if broken:
            raise ValueError(
                f"ERTA Compare: {broken} of {values.numel()} values of {name} are NaN or infinite. That render failed; "
                "common causes are a VAE in fp16 (start with --fp32-vae) and a model in a precision it does not bear."
            )
    return _as_frames(kind, first), _as_frames(kind, second)


def scores(reference: torch.Tensor, candidate: torch.Tensor, data_range: float) -> dict[str, Any]:
    """JSON-able. Frames are counted from 1."""
    by_frame, similarity = frame_psnr(reference, candidate, data_range), ssim(reference, candidate, data_range)
    found = {"psnr": psnr(reference, candidate, data_range), "ssim": similarity.mean().item(), "frames": len(reference)}
    for name, values in (("psnr", by_frame), ("ssim", similarity)):
        found |= {f"{name}_median": values.quantile(0.5).item(), f"{name}_worst": values.min().item()}
        found |= {f"{name}_worst_frame": int(values.argmin()) + 1, f"frame_{name}": values.tolist()}
    return found | {"data_range": data_range, "identical": torch.equal(reference, candidate)}


def sound_snr(reference: Any, candidate: Any) -> list[float]:
    """SNR in dB of each part of a nested latent behind the picture, such as its sound; of others nothing."""
    first, second = _parts(reference)[1:], _parts(candidate)[1:]
    if [part.shape for part in first] != [part.shape for part in second]:
        shapes = " and ".join(str([list(part.shape) for part in parts]) for parts in (first, second))
        raise ValueError(f"ERTA Compare cannot compare sounds of {shapes}: render both with the same length.")
    if not all(bool(torch.isfinite(part).all()) for part in (*first, *second)):
        raise ValueError("ERTA Compare: values of the sound are NaN or infinite. That render failed.")
    return [snr(*pair) for pair in zip(first, second, strict=True)]


def as_text(found: dict[str, Any]) -> str:
    """What ``scores`` found, in lines."""
    frames = found["frames"]
    lines = [f"{frames} frame{'s'[: frames > 1]}{', identical' if found['identical'] else ''}"]
    for name, unit in (("psnr", " dB"), ("ssim", "")):
        digits = 2 if unit else 4
        whole, median, worst = (f"{found[name + part]:.{digits}f}{unit}" for part in ("", "_median", "_worst"))
        lines.append(
            f"{name.upper()} {whole} (median frame {median}, worst {worst}: frame {found[f'{name}_worst_frame']})"
        )
    if found["error"] is not None:
        lines.append(f"error {found['error']:.2%} of the latent")
    lines.append(f"relative to a data range of {found['data_range']:.4g}")
    spectra = "of the latent; for spectra decode both sounds"
    return "\n".join([*lines, *(f"sound: SNR {ratio:.2f} dB {spectra}" for ratio in found["sound_snr"])])


def _parts(value: Any) -> list[Any]:
    """Those of a nested latent, the picture first, or the one tensor of any other value."""
    values = value.get("samples") if isinstance(value, dict) else value
    return list(values.unbind()) if getattr(values, "is_nested", False) else [values]


def _named(value: Any) -> tuple[str, torch.Tensor]:
    kind, values = "LATENT" if isinstance(value, dict) else "IMAGE", _parts(value)[0]
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"ERTA Compare needs a latent or images, not {type(values).__name__}.")
    if values.ndim not in ((4, 5) if kind == "LATENT" else (4,)) or not values.numel():
        raise ValueError(f"ERTA Compare cannot see frames in {kind} {list(values.shape)}: connect images or video.")
    return kind, values


def _as_frames(kind: str, values: torch.Tensor) -> torch.Tensor:
    if kind == "IMAGE":
        return values.cpu().movedim(-1, 1)
    return values.cpu() if values.ndim == 4 else values.cpu().movedim(2, 1).flatten(0, 1)


def _span(latent: torch.Tensor) -> tuple[float, float]:
    low, high = latent.min().item(), latent.max().item()
    if low == high:
        raise ValueError(
            f"ERTA Compare: every value of the reference latent is {low:g}, so there is no range to measure errors "
            "against. Connect the latent that comes out of a sampler."
        )
    return low, high - low
