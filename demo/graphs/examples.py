"""Draws example_workflows/, which ComfyUI lists among its templates: python -m demo.graphs.examples

One file for each model that the pack is most likely to be used with, by the file names and settings of ComfyUI's own
templates, and one that measures what the pack is worth on a machine. `python -m demo.graphs.thumbnails` then takes
their pictures in a browser. Both are to be run again when an input or the pack's version changes. Like the demo's
workflows they are drawn with the oldest ComfyUI that the pack runs on; newer ones read the same files. Nodes that it
lacks are drawn as newer.json has them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..comfyui import ROOT
from ..server import ComfyServer
from . import draw, make
from .draw import Box, Column, Words, text
from .example import FEW_STEPS, NOT_RENDERED, PATCH_KNOB, SAMPLER_KNOB, WITHOUT_LORA, Example
from .parts import (
    CACHE,
    FILES,
    MODELS,
    NEWER,
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
    video,
)
from .wan import measure, wan21_i2v, wan21_t2v, wan21_vace, wan22, wan22_mixed

FOLDER = ROOT / "example_workflows"
WIDTHS = {MODELS: 440, PROMPT: 380}
WIDTH, BETWEEN = 340, 80


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
        box(SAMPLING, "Guider", "BasicGuider", model=("ERTA Cache", 0), conditioning=("Guidance", 0)),
        *custom_sampling("euler", ("Size", 0), scheduled("Shift")),
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


def hunyuan_video15(name: str) -> Example:
    prompt = "A wooden toy train crosses a kitchen table between cups, steam from a kettle, the camera rides along"
    boxes = [
        box(MODELS, "Model", "UNETLoader", unet_name="hunyuanvideo1.5_720p_t2v_fp16.safetensors"),
        box(
            MODELS,
            "Text encoder",
            "DualCLIPLoader",
            clip_name1="qwen_2.5_vl_7b_fp8_scaled.safetensors",
            clip_name2="byt5_small_glyphxl_fp16.safetensors",
            type="hunyuan_video_15",
        ),
        box(MODELS, "VAE", "VAELoader", vae_name="hunyuanvideo15_vae_fp16.safetensors"),
        *prompts(prompt, ""),
        box(PROMPT, "Size", "EmptyHunyuanVideo15Latent", width=1280, height=720, length=121, batch_size=1),
        shifted(7.0, group=CACHE),
        box(CACHE, "ERTA Cache", "ERTACache", model=("Shift", 0), speed=2.0),
        box(
            SAMPLING,
            "Guider",
            "CFGGuider",
            model=("ERTA Cache", 0),
            positive=("Prompt", 0),
            negative=("Negative prompt", 0),
            cfg=6.0,
        ),
        *custom_sampling("euler", ("Size", 0), scheduled("Model")),
        *video(name, "Sample", 24.0),
    ]
    more = f"The template's upscaling to 1080p is left out. {FEW_STEPS}"
    return Example("HunyuanVideo 1.5 T2V 720p", boxes, PATCH_KNOB, more)


def scheduled(model: str) -> Box:
    """20 steps, as the templates with SamplerCustomAdvanced have them."""
    return box(SAMPLING, "Steps", "BasicScheduler", model=(model, 0), scheduler="simple", steps=20, denoise=1.0)


def custom_sampling(sampler: str, latent: tuple[str, int], steps: Box) -> list[Box]:
    """SamplerCustomAdvanced and what it wants besides a guider."""
    sample = {"noise": ("Noise", 0), "guider": ("Guider", 0), "sampler": ("Sampler", 0), "sigmas": (steps.title, 0)}
    return [
        box(SAMPLING, "Noise", "RandomNoise", noise_seed=1),
        box(SAMPLING, "Sampler", "KSamplerSelect", sampler_name=sampler),
        steps,
        box(SAMPLING, "Sample", "SamplerCustomAdvanced", latent_image=latent, **sample),
    ]


def minimax_h3(name: str, kind: str) -> Example:
    """Video and sound from one latent."""
    pictured = kind == "i2v"
    prompt = (
        "The scene of <Picture 1> comes to life: wind moves cloth and leaves, the camera comes closer. Sound: wind"
        if pictured
        else "A blacksmith hammers glowing iron in a dark forge, sparks fly, the camera circles him. Sound: hammer on "
        "anvil, the roar of the fire"
    )
    side = {"width": 640, "height": 640} if pictured else {"width": 864, "height": 480}
    frame = {"first_frame": ("First frame", 0)} if pictured else {}
    model, text = "minimax_h3_fl2va_pruned_int8_convrot.safetensors", "qwen3vl_32b_minimax_h3_nvfp4_awq.safetensors"
    boxes = [
        box(MODELS, "Model", "UNETLoader", unet_name=model),
        box(MODELS, "Text encoder", "CLIPLoader", clip_name=text, type="minimax"),
        box(MODELS, "VAE", "VAELoader", vae_name="minimax_h3_video_vae_int8_convrot.safetensors"),
        box(MODELS, "Sound VAE", "VAELoader", vae_name="minimax_h3_audio_vae_fp32.safetensors"),
        *([box(PROMPT, "First frame", "LoadImage", image=PICTURE)] if pictured else []),
        box(
            PROMPT,
            "Prompt and size",
            "MiniMaxH3ImageToVideo",
            clip=("Text encoder", 0),
            vae=("VAE", 0),
            prompt=prompt,
            **side,
            length=124,
            **frame,
        ),
        box(CACHE, "ERTA Cache", "ERTACache", model=("Model", 0), speed=2.0),
        box(SAMPLING, "Guider", "BasicGuider", model=("ERTA Cache", 0), conditioning=("Prompt and size", 0)),
        *custom_sampling("res_multistep", ("Prompt and size", 1), scheduled("Model")),
        box(RESULT, "Decode", "VAEDecode", samples=("Sample", 0), vae=("VAE", 0)),
        box(RESULT, "Decode the sound", "VAEDecodeAudio", samples=("Sample", 0), vae=("Sound VAE", 0)),
        *saved_video(name, 24.0, audio=("Decode the sound", 0)),
    ]
    more = f"{'Choose your own first frame. ' if pictured else ''}Picture and sound are reused together. {FEW_STEPS}"
    return Example(f"MiniMax H3 {kind.upper()}", boxes, PATCH_KNOB, more, WITHOUT_LORA, needs=NEWER["comfyui"])


def flux2(name: str) -> Example:
    prompt = "A tailor's workshop by a tall window, bolts of blue cloth, brass scissors, soft morning light, photograph"
    encoder = "mistral_3_small_flux2_bf16.safetensors"
    steps = box(SAMPLING, "Steps", "Flux2Scheduler", steps=20, width=1024, height=1024)
    boxes = [
        box(MODELS, "Model", "UNETLoader", unet_name="flux2_dev_fp8mixed.safetensors"),
        box(MODELS, "Text encoder", "CLIPLoader", clip_name=encoder, type="flux2"),
        box(MODELS, "VAE", "VAELoader", vae_name="full_encoder_small_decoder.safetensors"),
        box(PROMPT, "Prompt", "CLIPTextEncode", text=prompt, clip=("Text encoder", 0)),
        box(PROMPT, "Guidance", "FluxGuidance", conditioning=("Prompt", 0), guidance=4.0),
        box(PROMPT, "Size", "EmptyFlux2LatentImage", width=1024, height=1024, batch_size=1),
        box(CACHE, "ERTA Cache", "ERTACache", model=("Model", 0), speed=2.0),
        box(SAMPLING, "Guider", "BasicGuider", model=("ERTA Cache", 0), conditioning=("Guidance", 0)),
        *custom_sampling("euler", ("Size", 0), steps),
        *image(name, "Sample"),
    ]
    more = f"Another size is to be set twice: in Size and in Steps. {FEW_STEPS}"
    return Example("Flux.2 dev", boxes, PATCH_KNOB, more, WITHOUT_LORA)


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
        "wan2.2_t2v_low_noise_lora": wan22_mixed("wan2.2_t2v_low_noise_lora", "t2v"),
        "wan2.2_i2v_low_noise_lora": wan22_mixed("wan2.2_i2v_low_noise_lora", "i2v"),
        "minimax_h3_t2v": minimax_h3("minimax_h3_t2v", "t2v"),
        "minimax_h3_i2v": minimax_h3("minimax_h3_i2v", "i2v"),
        "hunyuan_video": hunyuan_video("hunyuan_video"),
        "hunyuan_video_1.5": hunyuan_video15("hunyuan_video_1.5"),
        "flux_dev": flux("flux_dev"),
        "flux2_dev": flux2("flux2_dev"),
        "qwen_image": qwen_image("qwen_image"),
        "measure_on_your_machine": measure("measure_on_your_machine"),
        "demo_tiny_wan": demo_tiny_wan("demo_tiny_wan"),
    }


def note(example: Example) -> str:
    """What it shows, the knob, where the model files go, and what was checked."""
    files = [file for drawn in example.boxes for file in drawn.properties.get("models", [])]
    listed = [f"- {file['directory']}: [{file['name']}]({file['url']})" for file in files]
    parts = [f"## {example.title} with ERTACache", example.knob]
    if example.needs:
        parts.append(f"It needs ComfyUI {example.needs} or newer.")
    if listed:
        parts += ["**Model files**, in their folders of models:", "\n".join(listed)]
    parts.append(example.more)
    if not example.rendered:
        parts += [example.settings, NOT_RENDERED]
    return "\n\n".join(parts)


def columns(example: Example) -> list[Column]:
    """In the order in which the boxes come, each as wide as its nodes need."""
    left, found = 0, []
    boxes = example.boxes
    for title in dict.fromkeys(drawn.group for drawn in boxes):
        lanes = 1 + max(drawn.lane for drawn in boxes if drawn.group == title)
        found.append(Column(title, left, WIDTHS.get(title, WIDTH), lanes, bypassed=title == example.bypassed))
        left += found[-1].whole + BETWEEN
    return found


def workflow(example: Example, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """One file's content in ComfyUI's UI format."""
    words = Words(MODELS, note(example), example.note_height, "MarkdownNote")
    return draw.workflow(columns(example), example.boxes, words, {**NEWER["nodes"], **object_info})


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
