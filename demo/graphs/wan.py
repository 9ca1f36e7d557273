"""The examples with Wan: what is on the canvas of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .draw import Box
from .example import FEW_STEPS, PATCH_KNOB, SAMPLER_KNOB, SETTINGS, WITHOUT_LORA, Example
from .parts import (
    MODELS,
    PICTURE,
    PROMPT,
    RESULT,
    box,
    cached_sampler,
    in_lane,
    prompts,
    shifted,
    size,
    start_picture,
    video,
    wan_companions,
    wan_loaders,
)

TWENTY, FOUR = "20 steps without LoRA", "4 steps with LoRA (bypassed)"
MIXED = "20 steps without LoRA, then the last 2 of 4 with it"
MEASURING, FULL = "Measure the model", "Full: every step"


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
    return Example(
        f"Wan2.2 {kind.upper()}, two experts", boxes, PATCH_KNOB, more, settings, note_height=700, bypassed=FOUR
    )


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
    return Example(title, boxes, PATCH_KNOB, more, settings, note_height=620)


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
    return Example("Measure on your machine: Wan2.1 1.3B", boxes, knob, more, settings, note_height=640)


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
