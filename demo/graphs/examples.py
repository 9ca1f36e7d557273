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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    NEWER,
    PICTURE,
    PROMPT,
    RESULT,
    SAMPLING,
    box,
    cached_sampler,
    image,
    in_lane,
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
TWENTY, FOUR = "20 steps without LoRA", "4 steps with LoRA (bypassed)"
MIXED = "20 steps without LoRA, then the last 2 of 4 with it"
MEASURING, FULL = "Measure the model", "Full: every step"
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
    """One file: its boxes, and what its note says before and after the list of model files.

    needs: the ComfyUI that it was checked with, where the oldest lacks some of its nodes.
    """

    title: str
    boxes: Sequence[Box]
    knob: str
    more: str
    settings: str = f"{SETTINGS}."
    rendered: bool = False
    note_height: int = 460
    needs: str = ""


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


@dataclass(frozen=True)
class Stage:
    """How one of Wan2.2's two experts samples, from which of its steps to which. lora: its file, "" for none."""

    steps: int
    start: int
    end: int
    cfg: float
    lora: str = ""
    cached: bool = True


WITHOUT = Stage(20, 0, 10, 3.5), Stage(20, 10, 10000, 3.5)


def with_lora(kind: str) -> tuple[Stage, Stage]:
    version = {"t2v": "v1.1", "i2v": "v1"}[kind]
    high, low = (f"wan2.2_{kind}_lightx2v_4steps_lora_{version}_{half}_noise.safetensors" for half in ("high", "low"))
    return Stage(4, 0, 2, 1.0, high), Stage(4, 2, 10000, 1.0, low)


def expert(group: str, which: str, stage: Stage, suffix: str, **sampling: Any) -> list[Box]:
    """One of the two experts: its LoRA, its shift, its cache, its sampler. which: high or low noise."""
    boxes, model = [], (f"{which.capitalize()}-noise model", 0)
    if stage.lora:
        lora = {"model": model, "lora_name": stage.lora, "strength_model": 1.0}
        boxes.append(box(group, f"LoRA, {which} noise{suffix}", "LoraLoaderModelOnly", **lora))
        model = (boxes[-1].title, 0)
    boxes.append(box(group, f"Shift, {which} noise{suffix}", "ModelSamplingSD3", model=model, shift=5.0))
    if stage.cached:
        cached = {"model": (boxes[-1].title, 0), "speed": 2.0}
        boxes.append(box(group, f"ERTA Cache, {which} noise{suffix}", "ERTACache", **cached))
    sampler = box(
        group,
        f"Sampler, {which} noise{suffix}",
        "KSamplerAdvanced",
        model=(boxes[-1].title, 0),
        steps=stage.steps,
        cfg=stage.cfg,
        sampler_name="euler",
        scheduler="simple",
        start_at_step=stage.start,
        end_at_step=stage.end,
        **sampling,
    )
    return [*boxes, sampler]


def both_experts(
    group: str, stages: tuple[Stage, Stage], name: str, conditioning: Mapping[str, Any], latent: tuple[str, int]
) -> list[Box]:
    """One expert for each half of the noise; the second goes on where the first stopped. Then the video."""
    suffix = ", 4 steps" if group == FOUR else ""
    first = {"add_noise": "enable", "noise_seed": 1, "latent_image": latent, "return_with_leftover_noise": "enable"}
    second = {"add_noise": "disable", "noise_seed": 0, "return_with_leftover_noise": "disable"}
    second["latent_image"] = (f"Sampler, high noise{suffix}", 0)
    high, low = stages
    made, decode = f"Make a video{suffix}", f"Decode{suffix}"
    result = [
        box(group, decode, "VAEDecode", samples=(f"Sampler, low noise{suffix}", 0), vae=("VAE", 0)),
        box(group, made, "CreateVideo", images=(decode, 0), fps=16.0),
        box(group, f"Save video{suffix}", "SaveVideo", video=(made, 0), filename_prefix=f"video/{name}"),
    ]
    return [
        *in_lane(0, *expert(group, "high", high, suffix, **conditioning, **first, after_run="randomize")),
        *in_lane(1, *expert(group, "low", low, suffix, **conditioning, **second, after_run="fixed")),
        *in_lane(2, *result),
    ]


def wan22_start(kind: str) -> tuple[list[Box], dict[str, Any], tuple[str, int]]:
    """Models, prompts and size; what conditions both experts; the latent."""
    source = "Start from the picture"
    boxes = [
        box(MODELS, "High-noise model", "UNETLoader", unet_name=f"wan2.2_{kind}_high_noise_14B_fp8_scaled.safetensors"),
        box(MODELS, "Low-noise model", "UNETLoader", unet_name=f"wan2.2_{kind}_low_noise_14B_fp8_scaled.safetensors"),
        *wan_companions(),
    ]
    if kind == "i2v":
        boxes += prompts("The picture comes to life: wind moves hair and cloth, the camera circles slowly")
        boxes += start_picture(81, 640)
        return boxes, {"positive": (source, 0), "negative": (source, 1)}, (source, 2)
    boxes += prompts("A paper boat drifts down a rain-wet street at night, neon signs mirrored in the water")
    boxes.append(size(640, 640, 81))
    return boxes, {"positive": ("Prompt", 0), "negative": ("Negative prompt", 0)}, ("Size", 0)


def wan22(name: str, kind: str) -> Example:
    """Two experts, with the template's switch between 20 steps and 4 with a LoRA: two groups, one of them bypassed."""
    boxes, *common = wan22_start(kind)
    boxes += both_experts(TWENTY, WITHOUT, name, *common)
    boxes += both_experts(FOUR, with_lora(kind), f"{name}_4steps", *common)
    more = (
        "Each expert has an ERTA Cache of its own, so each is measured and planned for itself. "
        f"{'Choose your own first frame. ' if kind == 'i2v' else ''}{FEW_STEPS}\n\n"
        "**20 steps or 4:** the template's switch is two groups here. Right-click a group's title: *Bypass Group "
        "Nodes* turns it off, *Set Group Nodes to Always* turns it on. With the 4-step LoRA each expert is called "
        "twice, so there is nothing to reuse: ERTA Cache changes nothing there, and says so."
    )
    settings = f"{SETTINGS}, in both groups."
    return Example(f"Wan2.2 {kind.upper()}, two experts", boxes, PATCH_KNOB, more, settings, note_height=580)


def wan22_mixed(name: str, kind: str) -> Example:
    """The first half of 20 steps without a LoRA, for motion; the second half of 4 with it, for time."""
    boxes, *common = wan22_start(kind)
    without, (_, fast) = WITHOUT[0], with_lora(kind)
    boxes += both_experts(MIXED, (without, replace(fast, cached=False)), name, *common)
    more = (
        "**A recipe of users:** the high-noise expert, which decides the motion, renders without a LoRA at full "
        "guidance; the low-noise one needs 2 steps with it. Step 10 of 20 and step 2 of 4 lie at the same noise, so "
        "one goes on where the other stopped. The cache serves the first expert, which takes nearly all of the time. "
        f"{'Choose your own first frame. ' if kind == 'i2v' else ''}{FEW_STEPS}"
    )
    settings = (
        "Each expert has the settings of ComfyUI's own template: the first those without LoRA, the second those with."
    )
    title = f"Wan2.2 {kind.upper()}, LoRA for low noise only"
    return Example(title, boxes, PATCH_KNOB, more, settings, note_height=540)


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


def measure(name: str) -> Example:
    """One seed rendered in full and in four faster ways, each compared with the full one."""
    fox = "A red fox trots along a snowy forest path at dawn, its breath steaming, the camera follows at its height"
    other = "A sailing boat heels in a fresh breeze, spray over the bow, the camera flies alongside"
    common = {"profile": ("ERTA Profile", 0), "seed": ("Seed", 0), "after_run": "fixed"}
    boxes = [
        *wan_loaders("wan2.1_t2v_1.3B_fp16.safetensors"),
        shifted(8.0, group=MODELS),
        *prompts(fox),
        box(PROMPT, "Another prompt, to measure with", "CLIPTextEncode", text=other, clip=("Text encoder", 0)),
        size(832, 480, 33),
        box(PROMPT, "Seed", "PrimitiveInt", "fixed", value=1),
        box(
            MEASURING,
            "ERTA Profile",
            "ERTAProfile",
            "fixed",
            model=("Shift", 0),
            seed=2,
            steps=30,
            cfg=6.0,
            sampler_name="uni_pc",
            scheduler="simple",
            positive=("Another prompt, to measure with", 0),
            negative=("Negative prompt", 0),
            latent_image=("Size", 0),
            runs=1,
            name="measured",
        ),
        *measured_way(FULL, 30, 1.0, common),
        *measured_way("ERTA at 1.5x", 30, 1.5, common),
        *measured_way("ERTA at 2x", 30, 2.0, common),
        box("EasyCache", "EasyCache", "EasyCache", model=("Shift", 0), verbose=False),
        *measured_way("EasyCache", 30, 1.0, {**common, "model": ("EasyCache", 0)}),
        *measured_way("Fewer steps", 15, 1.0, common),
    ]
    knob = (
        "**Queue it once.** One seed is rendered in full, by ERTA at 1.5x and at 2x, with ComfyUI's EasyCache at its "
        "usual values, and with half of the steps. ERTA Compare says how close each comes to the full render. All of "
        "them are sampled by ERTA Cached Sampler, where speed 1 changes nothing, so that each has a report with its "
        "time; on EasyCache's it warns of two caches, which is meant here. ERTA Profile comes first, with another "
        "prompt and seed than those that are compared."
    )
    more = (
        "**Please share the numbers**, good or bad: after the run open ComfyUI's address with /history?max_items=1 "
        "behind it, save the page, and drop the file into the form *Measured on my machine* among the issues of the "
        "pack's page on GitHub, with your card and versions. It holds the prompts, the reports and the tables.\n\n"
        "Another model of yours can be measured in the same way: change the loaders, sizes and settings."
    )
    settings = f"{SETTINGS}; only the last render has half of the steps."
    return Example("Measure on your machine: Wan2.1 1.3B", boxes, knob, more, settings, note_height=560)


def measured_way(group: str, steps: int, speed: float, common: Mapping[str, Any]) -> list[Box]:
    """One way to render, and how far it is from the full one."""
    sampler, decode = f"Sampler: {group}", f"Decode: {group}"
    boxes = [
        cached_sampler(steps, 6.0, "uni_pc", title=sampler, group=group, speed=speed, **common),
        box(group, decode, "VAEDecode", samples=(sampler, 0), vae=("VAE", 0)),
    ]
    if group != FULL:
        compared = {"reference": (f"Decode: {FULL}", 0), "candidate": (decode, 0)}
        boxes.append(box(group, f"Full and {group}", "ERTACompare", **compared))
    return boxes


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


def columns(boxes: Sequence[Box]) -> list[Column]:
    """In the order in which the boxes come, each as wide as its nodes need."""
    left, found = 0, []
    for title in dict.fromkeys(drawn.group for drawn in boxes):
        lanes = 1 + max(drawn.lane for drawn in boxes if drawn.group == title)
        found.append(Column(title, left, WIDTHS.get(title, WIDTH), lanes, bypassed=title == FOUR))
        left += found[-1].whole + BETWEEN
    return found


def workflow(example: Example, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """One file's content in ComfyUI's UI format."""
    words = Words(MODELS, note(example), example.note_height, "MarkdownNote")
    return draw.workflow(columns(example.boxes), example.boxes, words, {**NEWER["nodes"], **object_info})


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
