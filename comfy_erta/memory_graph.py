"""Memory graphs of newer ComfyUI (its "Comfy Compiler"): the allocations of one forward, recorded and replayed.

A forward that takes another way, or a tensor made in it that outlives it, aborts or crashes the replay. Some models
open their graph before anything that is put around their forward.
"""

import sys
import threading
from types import FunctionType
from typing import Any

import comfy.model_management


def opens_memory_graph(model: Any) -> bool:
    """Whether a diffusion model records a graph here: it is switched on, and named in the model's code."""
    enabled = getattr(sys.modules.get("comfy.model_prefetch"), "malloc_graph_enabled", None)
    if enabled is None or not enabled(comfy.model_management.get_torch_device()):
        return False
    owners = [cls for cls in type(model).__mro__ if not cls.__module__.startswith(("torch.", "builtins"))]
    owners += [sys.modules[cls.__module__] for cls in owners]
    functions = (value for owner in owners for value in vars(owner).values() if isinstance(value, FunctionType))
    return any(name.startswith("malloc_graph_") for function in functions for name in function.__code__.co_names)


def in_memory_graph() -> bool:
    """Whether this thread's forwards record a graph, as it shows once the first is open."""
    return threading.get_ident() in getattr(sys.modules.get("comfy.model_prefetch"), "MALLOC_GRAPHS", ())
