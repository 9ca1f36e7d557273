"""What objects of other packs hold, and a description of it that is the same in every process.

Nothing of them is run.
"""

import functools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

VALUES_READ = 16

# A patch holds an adapter, which holds weights: some levels. Beyond them lies what is shared with everything.
_DEEPEST = 6

# How names of attributes begin that are private, or that loading a model sets.
_PASSING = ("_", "training", "comfy_", "prev_comfy_", "weight_function", "bias_function")


def kept_by(function: Any) -> Iterator[tuple[str, Any]]:
    """Names and values in a function's closure, or on the object that it belongs to or that is called like one."""
    yield from getattr(getattr(function, "__self__", function), "__dict__", {}).items()
    if isinstance(function, functools.partial):
        yield from {"func": function.func, "args": function.args, **function.keywords}.items()
    cells = getattr(function, "__closure__", None) or ()
    for name, cell in zip(getattr(getattr(function, "__code__", None), "co_freevars", ()), cells, strict=False):
        with suppress(ValueError):  # nothing was ever put into it
            yield name, cell.cell_contents


def plain_attributes(owner: Any) -> dict[str, Any]:
    """The numbers, texts, lists and tensors that an object or its class holds by public names."""
    held = [getattr(one, "__dict__", {}).items() for one in (*reversed(type(owner).__mro__), owner)]
    kinds = (int, float, str, list, tuple, torch.Tensor)
    return {name: value for items in held for name, value in items if name[:1] != "_" and isinstance(value, kinds)}


def few_values(tensor: torch.Tensor) -> bytes:
    """Evenly spaced values as bfloat16; reads no more than those from the device."""
    if tensor.is_meta:
        return b""
    if is_traceable_wrapper_subclass(tensor):
        # Slicing a quantised tensor would dequantise all of it. The stored numbers do as well.
        return few_values(getattr(tensor, tensor.__tensor_flatten__()[0][0]))
    flat = tensor.detach().reshape(-1)
    few = flat[:: max(1, flat.numel() // VALUES_READ)][:VALUES_READ]
    return few.to("cpu", torch.float32).to(torch.bfloat16).view(torch.int16).numpy().tobytes()


def parts(value: Any, known: frozenset[int] = frozenset(), depth: int = _DEEPEST) -> Iterator[bytes]:
    """What distinguishes a patch from another: values of its tensors, its numbers and names, in order.

    known: ids of parameters and modules of which the name is enough: they are described elsewhere.
    """
    if isinstance(value, torch.Tensor):
        yield f"tensor{tuple(value.shape)}".encode()
        yield few_values(value)
    elif isinstance(value, WeightAdapterBase):
        yield type(value).__name__.encode()
        yield from parts(value.weights, known)
    elif isinstance(value, list | tuple):
        yield f"{len(value)}:".encode()
        for entry in value:
            yield from parts(entry, known, depth)
    elif value is None or isinstance(value, bool | int | float | str | torch.dtype):
        yield f"{value!r};".encode()
    else:
        # By name: its address would be another one in another process.
        yield getattr(value, "__qualname__", type(value).__name__).encode()
        if depth and not isinstance(value, type) and id(getattr(value, "__self__", value)) not in known:
            yield from _held(value, known, depth - 1)


def _held(value: Any, known: frozenset[int], depth: int) -> Iterator[bytes]:
    """What is inside of a dict, function, module or any other object, by name."""
    if isinstance(value, dict):
        held = [(str(name), entry) for name, entry in value.items()]
    else:
        held = [(name, entry) for name, entry in kept_by(value) if not name.startswith(_PASSING)]
    if isinstance(value, torch.nn.Module):
        held += [(name, weight) for name, weight in value.named_parameters() if id(weight) not in known]
    for name, entry in sorted(held, key=lambda pair: pair[0]):
        yield name.encode()
        yield from parts(entry, known, depth)
