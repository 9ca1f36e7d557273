"""ERTACache for ComfyUI: the entry point. Everything else lives in nodes/, comfy_erta/ and erta/."""

import importlib.util

WEB_DIRECTORY = "./web"

# Test runners import this file too, as a top-level module or without ComfyUI; then there is nothing to offer.
if __package__ and importlib.util.find_spec("folder_paths"):
    if importlib.util.find_spec("comfy_api") is None or importlib.util.find_spec("comfy_api.latest") is None:
        raise ImportError("ERTACache needs ComfyUI 0.3.75 or newer (its comfy_api.latest is missing): update ComfyUI.")
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
