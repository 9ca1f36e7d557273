"""The boxes that the example workflows share: which model files there are, and how the usual nodes are wired."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomllib

from ..comfyui import ROOT, VERSION
from .draw import Box

PICTURE = "example.png"  # comes with ComfyUI, in its input folder

# Nodes that the oldest ComfyUI lacks, as a newer one declares them.
NEWER: dict[str, Any] = json.loads((Path(__file__).parent / "newer.json").read_text(encoding="utf-8"))

# Where the model files are on huggingface.co. Repositories of ComfyUI keep them in one folder for each kind.
WAN21 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/{kind}/"
WAN22 = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/{kind}/"
QWEN = "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/{kind}/"
HUNYUAN = "Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files/{kind}/"
HUNYUAN15 = "Comfy-Org/HunyuanVideo_1.5_repackaged/resolve/main/split_files/{kind}/"
FLUX2 = "Comfy-Org/flux2-dev/resolve/main/split_files/{kind}/"
FLUX2_VAE = "black-forest-labs/FLUX.2-small-decoder/resolve/main/"
H3 = "Comfy-Org/MiniMax-H3/resolve/main/{kind}/"
FLUX, FLUX_VAE = (
    "Comfy-Org/flux1-dev/resolve/main/",
    "Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/",
)
FLUX_TEXT = "comfyanonymous/flux_text_encoders/resolve/main/"
ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"  # of all Wans but VACE

FILES = {
    "wan2.1_t2v_1.3B_fp16.safetensors": ("diffusion_models", WAN21),
    "wan2.1_t2v_14B_fp16.safetensors": ("diffusion_models", WAN21),
    "wan2.1_i2v_480p_14B_fp16.safetensors": ("diffusion_models", WAN21),
    "wan2.1_vace_14B_fp16.safetensors": ("diffusion_models", WAN21),
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": ("diffusion_models", WAN22),
    "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors": ("diffusion_models", WAN22),
    "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors": ("diffusion_models", WAN22),
    "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors": ("diffusion_models", WAN22),
    "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors": ("loras", WAN22),
    "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors": ("loras", WAN22),
    "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors": ("loras", WAN22),
    "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors": ("loras", WAN22),
    ENCODER: ("text_encoders", WAN21),
    "umt5_xxl_fp16.safetensors": ("text_encoders", WAN21),
    "clip_vision_h.safetensors": ("clip_vision", WAN21),
    "wan_2.1_vae.safetensors": ("vae", WAN21),
    "flux1-dev.safetensors": ("diffusion_models", FLUX),
    "clip_l.safetensors": ("text_encoders", FLUX_TEXT),
    "t5xxl_fp16.safetensors": ("text_encoders", FLUX_TEXT),
    "ae.safetensors": ("vae", FLUX_VAE),
    "hunyuan_video_t2v_720p_bf16.safetensors": ("diffusion_models", HUNYUAN),
    "llava_llama3_fp8_scaled.safetensors": ("text_encoders", HUNYUAN),
    "hunyuan_video_vae_bf16.safetensors": ("vae", HUNYUAN),
    "qwen_image_fp8_e4m3fn.safetensors": ("diffusion_models", QWEN),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": ("text_encoders", QWEN),
    "qwen_image_vae.safetensors": ("vae", QWEN),
    "hunyuanvideo1.5_720p_t2v_fp16.safetensors": ("diffusion_models", HUNYUAN15),
    "byt5_small_glyphxl_fp16.safetensors": ("text_encoders", HUNYUAN15),
    "hunyuanvideo15_vae_fp16.safetensors": ("vae", HUNYUAN15),
    "flux2_dev_fp8mixed.safetensors": ("diffusion_models", FLUX2),
    "mistral_3_small_flux2_bf16.safetensors": ("text_encoders", FLUX2),
    "full_encoder_small_decoder.safetensors": ("vae", FLUX2_VAE),
    "minimax_h3_fl2va_pruned_int8_convrot.safetensors": ("diffusion_models", H3),
    "qwen3vl_32b_minimax_h3_nvfp4_awq.safetensors": ("text_encoders", H3),
    "minimax_h3_video_vae_int8_convrot.safetensors": ("vae", H3),
    "minimax_h3_audio_vae_fp32.safetensors": ("vae", H3),
}

# What the nodes need in the renderer that needs more, as measured in a browser; more where there is something to see.
HEIGHTS = {
    "BasicGuider": 60,
    "BasicScheduler": 126,
    "CFGGuider": 126,
    "CLIPLoader": 126,
    "CLIPTextEncode": 126,
    "CLIPVisionEncode": 90,
    "CLIPVisionLoader": 70,
    "ConditioningZeroOut": 40,
    "CreateVideo": 114,
    "DualCLIPLoader": 156,
    "ERTACache": 280,
    "ERTACachedSampler": 560,
    "ERTACompare": 480,
    "ERTADemoDecode": 90,
    "ERTADemoEmptyLatent": 90,
    "ERTADemoPrompt": 140,
    "ERTAProfile": 700,
    "EasyCache": 190,
    "EmptyFlux2LatentImage": 126,
    "EmptyHunyuanLatentVideo": 156,
    "EmptyHunyuanVideo15Latent": 156,
    "EmptySD3LatentImage": 126,
    "Flux2Scheduler": 126,
    "FluxGuidance": 70,
    "KSamplerAdvanced": 360,
    "KSamplerSelect": 70,
    "LoadImage": 480,
    "LoraLoaderModelOnly": 100,
    "MiniMaxH3ImageToVideo": 320,
    "ModelSamplingAuraFlow": 70,
    "ModelSamplingSD3": 70,
    "PrimitiveInt": 90,
    "RandomNoise": 90,
    "SaveAnimatedWEBP": 440,
    "SaveImage": 400,
    "SaveVideo": 400,
    "SamplerCustomAdvanced": 126,
    "TrimVideoLatent": 70,
    "UNETLoader": 100,
    "VAEDecode": 60,
    "VAEDecodeAudio": 60,
    "VAEDecodeTiled": 200,
    "VAELoader": 70,
    "WanImageToVideo": 240,
    "WanVaceToVideo": 290,
}
MODELS, PROMPT, CACHE, SAMPLING, RESULT = "Models", "Prompt and size", "Shift and cache", "Sampling", "Result"

NEGATIVE = "still picture, blurred, overexposed, low quality, subtitles, watermark, deformed hands"


def box(group: str, title: str, type_: str, after_run: str = "randomize", **inputs: Any) -> Box:
    """A box of the usual height, with what ComfyUI wants to know about its pack and its model files."""
    files = [_file(value) for value in inputs.values() if isinstance(value, str) and value in FILES]
    properties = {**pack_of(type_), **({"models": files} if files else {})}
    return Box(group, title, type_, HEIGHTS[type_], inputs, after_run, properties)


def in_lane(lane: int, *boxes: Box) -> list[Box]:
    """The boxes, side by side with those of the other lanes of their group."""
    return [replace(drawn, lane=lane) for drawn in boxes]


def pack_of(type_: str) -> dict[str, str]:
    """Which pack of the registry has this node; the demo's companion nodes are in none."""
    if type_.startswith("ERTADemo"):
        return {}
    if type_.startswith("ERTA"):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        return {"cnr_id": project["project"]["name"], "ver": project["project"]["version"]}
    return {"cnr_id": "comfy-core", "ver": NEWER["comfyui"] if type_ in NEWER["nodes"] else VERSION}


def _file(name: str) -> dict[str, str]:
    kind, place = FILES[name]
    return {"name": name, "url": f"https://huggingface.co/{place.format(kind=kind)}{name}", "directory": kind}


def wan_loaders(model: str, encoder: str = ENCODER) -> list[Box]:
    return [box(MODELS, "Model", "UNETLoader", unet_name=model), *wan_companions(encoder)]


def wan_companions(encoder: str = ENCODER) -> list[Box]:
    """What goes with every Wan of 2.1, and with the 14B ones of 2.2."""
    return [
        box(MODELS, "Text encoder", "CLIPLoader", clip_name=encoder, type="wan"),
        box(MODELS, "VAE", "VAELoader", vae_name="wan_2.1_vae.safetensors"),
    ]


def prompts(positive: str, negative: str = NEGATIVE) -> list[Box]:
    clip = ("Text encoder", 0)
    return [
        box(PROMPT, "Prompt", "CLIPTextEncode", text=positive, clip=clip),
        box(PROMPT, "Negative prompt", "CLIPTextEncode", text=negative, clip=clip),
    ]


def size(width: int, height: int, frames: int) -> Box:
    return box(PROMPT, "Size", "EmptyHunyuanLatentVideo", width=width, height=height, length=frames, batch_size=1)


def start_picture(frames: int, side: int, seen: bool = False) -> list[Box]:
    """The first frame, and what it makes of prompts and latent. `seen`: by CLIP vision too, as 2.1 wants it."""
    vision = {"clip_vision": ("CLIP vision", 0), "image": ("First frame", 0), "crop": "none"}
    return [
        box(PROMPT, "First frame", "LoadImage", image=PICTURE),
        *([box(PROMPT, "See the picture", "CLIPVisionEncode", **vision)] if seen else []),
        box(
            PROMPT,
            "Start from the picture",
            "WanImageToVideo",
            positive=("Prompt", 0),
            negative=("Negative prompt", 0),
            vae=("VAE", 0),
            width=side,
            height=side,
            length=frames,
            batch_size=1,
            start_image=("First frame", 0),
            **({"clip_vision_output": ("See the picture", 0)} if seen else {}),
        ),
    ]


def shifted(shift: float, type_: str = "ModelSamplingSD3", group: str = SAMPLING) -> Box:
    return box(group, "Shift", type_, model=("Model", 0), shift=shift)


def cached_sampler(
    steps: int,
    cfg: float,
    sampler: str,
    conditioning: str = "",
    title: str = "ERTA Cached Sampler",
    group: str = SAMPLING,
    **more: Any,
) -> Box:
    """KSampler's successor. `conditioning` names the node that gives positive, negative and latent, in this order."""
    inputs = {
        "model": ("Shift", 0),
        "positive": (conditioning or "Prompt", 0),
        "negative": (conditioning, 1) if conditioning else ("Negative prompt", 0),
        "latent_image": (conditioning, 2) if conditioning else ("Size", 0),
        "seed": 1,
        "steps": steps,
        "cfg": cfg,
        "sampler_name": sampler,
        "scheduler": "simple",
        "denoise": 1.0,
        "speed": 2.0,
    }
    return box(group, title, "ERTACachedSampler", **{**inputs, **more})


def video(name: str, samples: str, fps: float = 16.0) -> list[Box]:
    """Decoded and saved, with the name of the workflow."""
    return [
        box(RESULT, "Decode", "VAEDecode", samples=(samples, 0), vae=("VAE", 0)),
        *saved_video(name, fps),
    ]


def saved_video(name: str, fps: float, **sound: Any) -> list[Box]:
    return [
        box(RESULT, "Make a video", "CreateVideo", images=("Decode", 0), fps=fps, **sound),
        box(RESULT, "Save video", "SaveVideo", video=("Make a video", 0), filename_prefix=f"video/{name}"),
    ]


def image(name: str, samples: str) -> list[Box]:
    return [
        box(RESULT, "Decode", "VAEDecode", samples=(samples, 0), vae=("VAE", 0)),
        box(RESULT, "Save image", "SaveImage", images=("Decode", 0), filename_prefix=name),
    ]
