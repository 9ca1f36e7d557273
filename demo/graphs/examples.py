"""Draws example_workflows/, which ComfyUI lists among its templates: python -m demo.graphs.examples

One file for each model that the pack is most likely to be used with, by the file names and settings of ComfyUI's own
templates. `python -m demo.graphs.thumbnails` then takes their pictures in a browser. Both are to be run again when an
input or the pack's version changes. Like the demo's workflows they are drawn with the oldest ComfyUI that the pack runs
on; newer ones read the same files.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..comfyui import ROOT
from ..server import ComfyServer
from . import draw, make
from .draw import Box, Column, Words, text
from .parts import (
    CACHE,
    FILES,
    MODELS,
    PICTURE,
    PROMPT,
    RESULT,
    SAMPLING,
    box,
    cached_sampler,
    image,
    prompts,
    saved_video,
    shifted,
    size,
    start_picture,
    video,
    wan_companions,
    wan_loaders,
)

FOLDER = ROOT / "example_workflows"
HIGH, LOW = "High noise: the first half", "Low noise: the second half"
WIDTHS = {MODELS: 440, PROMPT: 380}
WIDTH, BETWEEN = 340, 80

SETTINGS = "Sampler, steps, guidance, shift and size are those of ComfyUI's own template"
WITHOUT_LORA = f"{SETTINGS} with its few-step LoRA off: with it there is nothing left to reuse."
NOT_RENDERED = "*Checked for structure with ComfyUI, not rendered: the weights were not at hand.*"
SAMPLER_KNOB = (
    "**The knob is speed**, in ERTA Cached Sampler, which otherwise is KSampler: 1 computes every step, 2 half of "
    "them. The first render with a model is a full one and measures it; from the second on it is fast. The line below "
    "the knob says how many steps will be computed and which error to expect."
)
PATCH_KNOB = (
    "**The knob is speed**, in ERTA Cache, the last node on the way of a model to its sampler: 1 computes every "
    "step, 2 half of them. The first render with a model is a full one and measures it; from the second on it is fast. "
    "The line below the knob says how many steps will be computed and which error to expect."
)
FEW_STEPS = "Few steps leave little to reuse: where motion or detail suffers, try speed 1.5, or more steps."


@dataclass(frozen=True)
class Example:
    """One file: its boxes, and what its note says before and after the list of model files."""

    title: str
    boxes: Sequence[Box]
    knob: str
    more: str
    settings: str = f"{SETTINGS}."
    rendered: bool = False
    note_height: int = 460


def wan21_t2v(name: str, title: str, model: str, prompt: str) -> Example:
    boxes = [
        *wan_loaders(model),
        *prompts(prompt),
        size(832, 480, 33),
        shifted(8.0),
        cached_sampler(30, 6.0, "uni_pc"),
        *video(name, "ERTA Cached Sampler"),
    ]
    more = "33 frames are two seconds; 81 are what the model was made for."
    return Example(title, boxes, SAMPLER_KNOB, more)


def wan21_i2v(name: str) -> Example:
    prompt = "The picture comes to life: wind moves hair, cloth and leaves, the camera comes slowly closer"
    boxes = [
        *wan_loaders("wan2.1_i2v_480p_14B_fp16.safetensors"),
        box(MODELS, "CLIP vision", "CLIPVisionLoader", clip_name="clip_vision_h.safetensors"),
        *prompts(prompt),
        *start_picture(33, 512, seen=True),
        shifted(8.0),
        cached_sampler(20, 6.0, "uni_pc", "Start from the picture"),
        *video(name, "ERTA Cached Sampler"),
    ]
    return Example("Wan2.1 I2V 480p", boxes, SAMPLER_KNOB, f"Choose your own first frame. {FEW_STEPS}")


def wan21_vace(name: str) -> Example:
    prompt = "The figure of the reference picture walks through a market street in warm evening light"
    boxes = [
        *wan_loaders("wan2.1_vace_14B_fp16.safetensors", "umt5_xxl_fp16.safetensors"),
        *prompts(prompt),
        box(PROMPT, "Reference", "LoadImage", image=PICTURE),
        box(
            PROMPT,
            "Reference and size",
            "WanVaceToVideo",
            positive=("Prompt", 0),
            negative=("Negative prompt", 0),
            vae=("VAE", 0),
            width=768,
            height=768,
            length=81,
            batch_size=1,
            strength=1.0,
            reference_image=("Reference", 0),
        ),
        shifted(8.0),
        cached_sampler(20, 6.0, "uni_pc", "Reference and size"),
        box(
            RESULT,
            "Cut off the reference",
            "TrimVideoLatent",
            samples=("ERTA Cached Sampler", 0),
            trim_amount=("Reference and size", 3),
        ),
        *video(name, "Cut off the reference"),
    ]
    more = (
        f"Choose your own reference, or connect control_video and control_masks for other kinds of control. {FEW_STEPS}"
    )
    return Example("Wan2.1 VACE", boxes, SAMPLER_KNOB, more, WITHOUT_LORA)


def expert(group: str, model: str, **sampling: Any) -> list[Box]:
    """One of the two experts of Wan2.2: its shift, its cache, its sampler."""
    which = group.partition(":")[0]
    return [
        box(group, f"Shift, {which.lower()}", "ModelSamplingSD3", model=(model, 0), shift=5.0),
        box(group, f"ERTA Cache, {which.lower()}", "ERTACache", model=(f"Shift, {which.lower()}", 0), speed=2.0),
        box(
            group,
            f"Sampler, {which.lower()}",
            "KSamplerAdvanced",
            model=(f"ERTA Cache, {which.lower()}", 0),
            steps=20,
            cfg=3.5,
            sampler_name="euler",
            scheduler="simple",
            **sampling,
        ),
    ]


def both_experts(conditioning: Mapping[str, Any], latent: tuple[str, int]) -> list[Box]:
    first = {"add_noise": "enable", "noise_seed": 1, "start_at_step": 0, "end_at_step": 10}
    second = {"add_noise": "disable", "noise_seed": 0, "start_at_step": 10, "end_at_step": 10000}
    first |= {"latent_image": latent, "return_with_leftover_noise": "enable", "after_run": "randomize"}
    second |= {"latent_image": ("Sampler, high noise", 0), "return_with_leftover_noise": "disable"}
    return [
        *expert(HIGH, "High-noise model", **conditioning, **first),
        *expert(LOW, "Low-noise model", **conditioning, **second, after_run="fixed"),
    ]


def wan22(name: str, kind: str) -> Example:
    """Two experts, one for each half of the steps; the second goes on where the first stopped."""
    pictured = kind == "i2v"
    source = "Start from the picture"
    boxes = [
        box(MODELS, "High-noise model", "UNETLoader", unet_name=f"wan2.2_{kind}_high_noise_14B_fp8_scaled.safetensors"),
        box(MODELS, "Low-noise model", "UNETLoader", unet_name=f"wan2.2_{kind}_low_noise_14B_fp8_scaled.safetensors"),
        *wan_companions(),
    ]
    if pictured:
        boxes += prompts("The picture comes to life: wind moves hair and cloth, the camera circles slowly")
        boxes += start_picture(81, 640)
        conditioning, latent = {"positive": (source, 0), "negative": (source, 1)}, (source, 2)
    else:
        boxes += prompts("A paper boat drifts down a rain-wet street at night, neon signs mirrored in the water")
        boxes.append(size(640, 640, 81))
        conditioning, latent = {"positive": ("Prompt", 0), "negative": ("Negative prompt", 0)}, ("Size", 0)
    boxes += both_experts(conditioning, latent)
    boxes += video(name, "Sampler, low noise")
    more = (
        "Each expert has an ERTA Cache of its own, so each is measured and planned for itself. "
        f"{'Choose your own first frame. ' if pictured else ''}{FEW_STEPS}"
    )
    return Example(f"Wan2.2 {kind.upper()}, two experts", boxes, PATCH_KNOB, more, WITHOUT_LORA, note_height=530)


def flux(name: str) -> Example:
    prompt = "A glass greenhouse in a winter garden at blue hour, warm light inside, snow on the roof, sharp photograph"
    boxes = [
        box(MODELS, "Model", "UNETLoader", unet_name="flux1-dev.safetensors"),
        box(
            MODELS,
            "Text encoder",
            "DualCLIPLoader",
            clip_name1="clip_l.safetensors",
            clip_name2="t5xxl_fp16.safetensors",
            type="flux",
        ),
        box(MODELS, "VAE", "VAELoader", vae_name="ae.safetensors"),
        box(PROMPT, "Prompt", "CLIPTextEncode", text=prompt, clip=("Text encoder", 0)),
        box(PROMPT, "Guidance", "FluxGuidance", conditioning=("Prompt", 0), guidance=3.5),
        box(PROMPT, "No negative prompt", "ConditioningZeroOut", conditioning=("Prompt", 0)),
        box(PROMPT, "Size", "EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
        cached_sampler(
            20, 1.0, "euler", model=("Model", 0), positive=("Guidance", 0), negative=("No negative prompt", 0)
        ),
        *image(name, "ERTA Cached Sampler"),
    ]
    more = f"Flux has its guidance inside, so cfg stays at 1 and nothing is sampled twice. {FEW_STEPS}"
    return Example("Flux dev", boxes, SAMPLER_KNOB, more)


def hunyuan_video(name: str) -> Example:
    prompt = "A lighthouse on a cliff in a storm, waves break against the rocks, the beam sweeps through the rain"
    boxes = [
        box(MODELS, "Model", "UNETLoader", unet_name="hunyuan_video_t2v_720p_bf16.safetensors"),
        box(
            MODELS,
            "Text encoder",
            "DualCLIPLoader",
            clip_name1="clip_l.safetensors",
            clip_name2="llava_llama3_fp8_scaled.safetensors",
            type="hunyuan_video",
        ),
        box(MODELS, "VAE", "VAELoader", vae_name="hunyuan_video_vae_bf16.safetensors"),
        box(PROMPT, "Prompt", "CLIPTextEncode", text=prompt, clip=("Text encoder", 0)),
        box(PROMPT, "Guidance", "FluxGuidance", conditioning=("Prompt", 0), guidance=6.0),
        size(848, 480, 73),
        shifted(7.0, group=CACHE),
        box(CACHE, "ERTA Cache", "ERTACache", model=("Shift", 0), speed=2.0),
        box(SAMPLING, "Noise", "RandomNoise", noise_seed=1),
        box(SAMPLING, "Guider", "BasicGuider", model=("ERTA Cache", 0), conditioning=("Guidance", 0)),
        box(SAMPLING, "Sampler", "KSamplerSelect", sampler_name="euler"),
        box(SAMPLING, "Steps", "BasicScheduler", model=("Shift", 0), scheduler="simple", steps=20, denoise=1.0),
        box(
            SAMPLING,
            "Sample",
            "SamplerCustomAdvanced",
            noise=("Noise", 0),
            guider=("Guider", 0),
            sampler=("Sampler", 0),
            sigmas=("Steps", 0),
            latent_image=("Size", 0),
        ),
        box(
            RESULT,
            "Decode",
            "VAEDecodeTiled",
            samples=("Sample", 0),
            vae=("VAE", 0),
            tile_size=256,
            overlap=64,
            temporal_size=64,
            temporal_overlap=8,
        ),
        *saved_video(name, 24.0),
    ]
    return Example("HunyuanVideo", boxes, PATCH_KNOB, FEW_STEPS)


def qwen_image(name: str) -> Example:
    prompt = 'A small bookshop window on a rainy evening, a painted sign above it reads "OPEN LATE", warm light inside'
    boxes = [
        box(MODELS, "Model", "UNETLoader", unet_name="qwen_image_fp8_e4m3fn.safetensors"),
        box(
            MODELS,
            "Text encoder",
            "CLIPLoader",
            clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors",
            type="qwen_image",
        ),
        box(MODELS, "VAE", "VAELoader", vae_name="qwen_image_vae.safetensors"),
        *prompts(prompt, "blurred, low quality, watermark, deformed hands"),
        box(PROMPT, "Size", "EmptySD3LatentImage", width=1328, height=1328, batch_size=1),
        shifted(3.1, "ModelSamplingAuraFlow"),
        cached_sampler(20, 4.0, "euler"),
        *image(name, "ERTA Cached Sampler"),
    ]
    return Example("Qwen-Image", boxes, SAMPLER_KNOB, FEW_STEPS, WITHOUT_LORA)


def demo_tiny_wan(name: str) -> Example:
    """The demo's own, with the model that comes with the repository."""
    more = (
        "It renders without a GPU. It is for trying and for tests, and needs two things from the pack's repository: "
        "copy the folder demo/tiny_wan to custom_nodes, and demo/models/erta_tiny_wan.safetensors to "
        "models/diffusion_models. Then restart ComfyUI."
    )
    boxes = [from_demo(drawn, name) for drawn in make.boxes("planned") if drawn.type != "SaveLatent"]
    return Example("The demo's tiny Wan", boxes, SAMPLER_KNOB, more, rendered=True, note_height=280)


def from_demo(drawn: Box, name: str) -> Box:
    """One of the demo's boxes as it stands among the examples."""
    inputs = {key: name if key == "filename_prefix" else value for key, value in drawn.inputs.items()}
    group = MODELS if drawn.group == "Model" else drawn.group
    return box(group, drawn.title, drawn.type, **inputs)


def examples() -> dict[str, Example]:
    """By the name of the file, which is its title among ComfyUI's templates."""
    fox = "A red fox trots along a snowy forest path at dawn, its breath steaming, the camera follows at its height"
    tea = "Tea is poured from an iron kettle into a ceramic bowl, steam in the morning light, the camera comes closer"
    small, large = "wan2.1_t2v_1.3B", "wan2.1_t2v_14B"
    return {
        small: wan21_t2v(small, "Wan2.1 T2V 1.3B", "wan2.1_t2v_1.3B_fp16.safetensors", fox),
        large: wan21_t2v(large, "Wan2.1 T2V 14B", "wan2.1_t2v_14B_fp16.safetensors", tea),
        "wan2.1_i2v_480p": wan21_i2v("wan2.1_i2v_480p"),
        "wan2.1_vace": wan21_vace("wan2.1_vace"),
        "wan2.2_t2v": wan22("wan2.2_t2v", "t2v"),
        "wan2.2_i2v": wan22("wan2.2_i2v", "i2v"),
        "flux_dev": flux("flux_dev"),
        "hunyuan_video": hunyuan_video("hunyuan_video"),
        "qwen_image": qwen_image("qwen_image"),
        "demo_tiny_wan": demo_tiny_wan("demo_tiny_wan"),
    }


def note(example: Example) -> str:
    """What it shows, the knob, where the model files go, and what was checked."""
    files = [file for drawn in example.boxes for file in drawn.properties.get("models", [])]
    listed = [f"- {file['directory']}: [{file['name']}]({file['url']})" for file in files]
    parts = [f"## {example.title} with ERTACache", example.knob]
    if listed:
        parts += ["**Model files**, in their folders of models:", "\n".join(listed)]
    parts.append(example.more)
    if not example.rendered:
        parts += [example.settings, NOT_RENDERED]
    return "\n\n".join(parts)


def columns(boxes: Sequence[Box]) -> list[Column]:
    """In the order in which the boxes come, each as wide as its nodes need."""
    left, found = 0, []
    for title in dict.fromkeys(drawn.group for drawn in boxes):
        width = WIDTHS.get(title, WIDTH)
        found.append(Column(title, left, width))
        left += width + BETWEEN
    return found


def workflow(example: Example, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """One file's content in ComfyUI's UI format."""
    words = Words(MODELS, note(example), example.note_height, "MarkdownNote")
    return draw.workflow(columns(example.boxes), example.boxes, words, object_info)


@contextlib.contextmanager
def stand_ins(base: Path, comfy: Path) -> Iterator[None]:
    """Empty files with the names of all models in a server's folders, and ComfyUI's own example picture.

    With them a server takes the examples as if it had the weights, up to the first node that opens one.
    """
    made = []
    for name, (kind, _) in FILES.items():
        path = base / "models" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        made.append(path)
    made.append(Path(shutil.copyfile(comfy / "input" / PICTURE, base / "input" / PICTURE)))
    try:
        yield
    finally:
        for path in made:
            path.unlink()


def main() -> None:
    with ComfyServer() as server:
        object_info = server.client.object_info()
    FOLDER.mkdir(exist_ok=True)
    for name, example in examples().items():
        path = FOLDER / f"{name}.json"
        path.write_text(text(workflow(example, object_info)), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
