"""The tiny Wan's companion nodes: what a text encoder and a VAE are for a large model, without any weights."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io

from . import codec
from .clips import FRAMES, SIZE
from .words import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, embed_texts

CATEGORY = "ERTACache/demo"
COPY_KEY = "erta_demo_copy"


class ERTADemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        vocabulary = ", ".join((*SHAPES, *COLOURS, *MOTIONS, *BACKGROUNDS))
        return io.Schema(
            node_id="ERTADemoPrompt",
            display_name="Tiny Wan Prompt",
            category=CATEGORY,
            description="Text for the demo's tiny Wan. It understands one shape, one colour, one motion and one "
            f"background: {vocabulary}.",
            inputs=[
                io.String.Input(
                    "text",
                    default="a red circle moving right on a dark background",
                    multiline=True,
                    tooltip=f"Known words: {vocabulary}. All others are ignored; empty is the unconditional prompt.",
                )
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For positive or negative.")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput([[embed_texts([text]), {}]])


class ERTADemoEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTADemoEmptyLatent",
            display_name="Tiny Wan Empty Latent",
            category=CATEGORY,
            description=f"An empty latent of the one size the tiny Wan knows: {FRAMES} frames of {SIZE}x{SIZE}.",
            inputs=[io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Number of clips rendered at once.")],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For the latent_image of a sampler.")],
        )

    @classmethod
    def execute(cls, batch_size: int) -> io.NodeOutput:
        side = SIZE // codec.BLOCK
        return io.NodeOutput({"samples": torch.zeros(batch_size, codec.CHANNELS, FRAMES, side, side)})


class ERTADemoDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTADemoDecode",
            display_name="Tiny Wan Decode",
            category=CATEGORY,
            description="Frames of a tiny Wan latent, by a fixed linear codec in place of a VAE.",
            inputs=[
                io.Latent.Input("samples", tooltip="From a sampler."),
                io.Int.Input(
                    "upscale",
                    default=4,
                    min=1,
                    max=16,
                    tooltip="Each pixel is shown as a block of this size. Use 1 to measure.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The frames of all clips, one after the other.")],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], upscale: int) -> io.NodeOutput:
        inner = comfy.latent_formats.Wan21().process_in(samples["samples"].float())
        frames = codec.decode(inner).flatten(0, 1)
        return io.NodeOutput(frames.repeat_interleave(upscale, dim=1).repeat_interleave(upscale, dim=2))


class ERTADemoCopyForEasyCache(io.ComfyNode):
    """Why it is needed: where EasyCache reuses, it adds its cached difference into the very tensor that it was called
    with (`x[...] += ...` in comfy_extras/nodes_easycache.py). In a flow model in fp32 nothing has copied that tensor
    on its way from the sampler, so the sampler's own x changes under it and the picture is spoilt. With a cast (bf16,
    fp16) or a concatenated input there is a copy anyway. This node makes one always, so that EasyCache can be compared
    at its best. Wrappers run in the order in which they were added, the first outermost: hence before EasyCache.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTADemoCopyForEasyCache",
            display_name="Copy for EasyCache",
            category=CATEGORY,
            description="Put it right before EasyCache. Where EasyCache reuses, it adds into its input; in fp32 flow "
            "models that is the sampler's own latent. This hands it a copy, so that the comparison is fair.",
            inputs=[io.Model.Input("model", tooltip="The model that EasyCache comes after.")],
            outputs=[io.Model.Output(display_name="protected model", tooltip="For the model input of EasyCache.")],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        protected = model.clone()
        protected.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, COPY_KEY)
        protected.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, COPY_KEY, hand_on_a_copy)
        return io.NodeOutput(protected)


def hand_on_a_copy(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """DIFFUSION_MODEL wrapper: whatever lies further in may write into its input."""
    result: torch.Tensor = executor(x.clone(), *args, **kwargs)
    return result


class TinyWanExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ERTADemoPrompt, ERTADemoEmptyLatent, ERTADemoDecode, ERTADemoCopyForEasyCache]


async def comfy_entrypoint() -> TinyWanExtension:
    return TinyWanExtension()
