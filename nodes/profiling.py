"""ERTA Profile and Load ERTA Profile."""

from dataclasses import asdict
from typing import Any

from comfy_api.latest import io

import nodes as comfy_nodes

from ..comfy_erta.browser import Browser
from ..comfy_erta.caching import Missing
from ..comfy_erta.measuring import measure_profile
from ..comfy_erta.report import Report
from ..comfy_erta.store import StoreError, check_name, default_store
from ..erta.notes import Note, note
from ..erta.profile import ProfileError
from ..erta.profile_file import digest
from .inputs import CATEGORY, ProfileType, check_values, ksampler_inputs, options_input
from .options import options_of
from .view import profile_ui


class ERTAProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTAProfile",
            display_name="ERTA Profile",
            category=CATEGORY,
            description="Renders in full while it measures the model, and keeps a profile to plan by.",
            inputs=[
                *ksampler_inputs(),
                io.Int.Input(
                    "runs",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Full renders to measure, each with the next seed, and half of one to see how errors grow. "
                    "1 is nearly as good as 4.",
                ),
                io.String.Input(
                    "name",
                    default="my-profile",
                    tooltip="Name to keep it under: letters, digits, dot, dash, underscore.",
                ),
                options_input(),
            ],
            outputs=[
                ProfileType.Output(display_name="profile", tooltip="For ERTA Cached Sampler and ERTA Cache."),
                io.Latent.Output(display_name="latent", tooltip="The first of the full renders."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo, io.Hidden.dynprompt],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        try:
            check_name("linked" if name is None else name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: Any, runs: int, name: str, options: Any = None, **inputs: Any) -> io.NodeOutput:
        # Linked values are only known here, and minutes of rendering must not come before what refuses them.
        check_name(name)
        check_values(cls.define_schema().inputs, {**inputs, "runs": runs})
        level = options_of(options).settings(1.0, model).level
        reports: list[Report] = []
        latents: list[dict[str, Any]] = []

        def render_run(observed: Any, run: int) -> None:
            latents.append(render(observed, {**inputs, "seed": (inputs["seed"] + run) % 2**64}))

        browser = Browser(cls.hidden, runs, bar=True) if cls.hidden else None  # None where a script calls it
        profile = measure_profile(model, render_run, runs, level, inputs["scheduler"], reports.append, browser)
        about: list[Note] = []
        try:
            default_store().save(name, profile)
        except (StoreError, ProfileError) as error:  # the picture is rendered, and is worth more than the file
            about.append(note("profile_not_kept", reason=error))
        return io.NodeOutput(profile, latents[0], ui=profile_ui(profile, name, reports, about))


class ERTALoadProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ERTALoadProfile",
            display_name="Load ERTA Profile",
            category=CATEGORY,
            description="Loads a profile that ERTA Profile kept or that ships with the pack.",
            inputs=[
                io.Combo.Input(
                    "name", options=default_store().names() or ["none"], tooltip="Stored and shipped profiles."
                )
            ],
            outputs=[ProfileType.Output(display_name="profile", tooltip="For ERTA Cached Sampler and ERTA Cache.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        """A shared workflow may name a profile that is missing here: it renders without, and says so."""
        try:
            check_name(name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        store = default_store()
        return digest(store.load(name)) if name in store.names() else ""

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        store = default_store()
        if name not in store.names():
            missing = note("profile_missing", name=name)
            shown = {"erta": [{"name": name, "notes": [asdict(missing)]}], "text": [missing.text]}
            return io.NodeOutput(Missing(name), ui=shown)
        profile = store.load(name)
        return io.NodeOutput(profile, ui=profile_ui(profile, name, []))


def render(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """KSampler itself, with its bar, previews, masks and batch indices. Raises ValueError for numbers that are none."""
    check_values(ksampler_inputs(), inputs)
    others = dict(inputs)
    return comfy_nodes.common_ksampler(model, latent=others.pop("latent_image"), **others)[0]
