"""The demo's tiny Wan: its words, clips and codec, and the ComfyUI nodes that stand in for text encoder and VAE.

The demo's server loads this folder as a node pack of its own, `erta_demo`. Everywhere else it is a plain package.
"""

import importlib.util

if __package__ and importlib.util.find_spec("comfy_api"):
    from .nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
