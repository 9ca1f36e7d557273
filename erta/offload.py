"""Tensors put aside in main memory while a GPU computes, and fetched back in between."""

import torch
from torch import Tensor


def put_aside(tensor: Tensor, room: Tensor | None = None) -> Tensor:
    """A copy in main memory; in ``room``, an earlier copy that is not needed any more, where it fits.

    From a CUDA device it is made in the order of the device's work and nothing waits for it. So it may only go back by
    ``fetch``, on the stream it came from; the host finds it half written.
    """
    if room is None or room.shape != tensor.shape or room.dtype != tensor.dtype:
        room = _room(tensor)
    return room.copy_(tensor, non_blocking=room.is_pinned())


def fetch(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; where the tensor is there already, the tensor itself."""
    return tensor.to(device, non_blocking=True)


def _room(tensor: Tensor) -> Tensor:
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    except RuntimeError:  # systems limit how much can be pinned; copies then take longer and wait
        return torch.empty(tensor.shape, dtype=tensor.dtype)
