"""Recorder: an observer of a full run that measures scalar products and distances of its features."""

import numpy as np
import torch
from torch import Tensor

from .notes import Note
from .profile import ProfileError, Table

# Of larger features every n-th element is measured. Distances are means over millions of elements; a fixed subset of
# this size has them to about 0.1 %.
SAMPLE = 2**21

# Small enough that a chunk of all features stays in the cache, and that float32 sums over it are right to 1e-7.
_CHUNK = 2**14


class IncompleteRecording(Exception):
    """A run did not deliver one feature of one shape per model call. The message says which is missing."""


class Recorder:
    """Keeps a host copy of each feature of one run, from which ``tables`` makes the profile's tables.

    sigmas: (M,) of the run's calls. features: what is kept, by stream and call; ``close`` leaves the tensors alone.
    """

    notes: tuple[Note, ...] = ()

    def __init__(self, sigmas: np.ndarray) -> None:
        self.sigmas = sigmas
        self.features: dict[str, dict[int, Tensor]] = {}

    def predict(self, i: int, key: str) -> Tensor | None:
        return None

    def observe(self, i: int, key: str, feature: Tensor) -> Tensor:
        self.features.setdefault(key, {})[i] = sampled(feature)
        return feature

    def close(self) -> None:
        self.features = {}

    @property
    def cache_bytes(self) -> int:
        return sum(kept.nbytes for stream in self.features.values() for kept in stream.values())

    def tables(self, run: int, *latent_rms: float) -> tuple[Table, ...]:
        """One table per stream, in the order in which the streams first appeared. Raises IncompleteRecording.

        latent_rms: of the final latent, or, where each stream is a part of it, of each part.
        """
        if not self.features:
            raise IncompleteRecording("no feature was seen")
        if len(self.sigmas) < 2:
            raise IncompleteRecording("the run has only one model call")
        units = latent_rms if len(latent_rms) > 1 else latent_rms * len(self.features)
        streams = zip(self.features.values(), units, strict=True)
        return tuple(self._table(run, n, stream, unit) for n, (stream, unit) in enumerate(streams))

    def _table(self, run: int, stream: int, features: dict[int, Tensor], latent_rms: float) -> Table:
        missing = [i for i in range(len(self.sigmas)) if i not in features]
        if missing:
            raise IncompleteRecording(f"stream {stream} has no feature at model call {missing[0]}")
        if len({feature.shape for feature in features.values()}) > 1:
            raise IncompleteRecording(f"stream {stream} changed its shape during the run")
        stacked = torch.stack([features[i] for i in range(len(self.sigmas))])
        gram, l1 = pairwise(stacked)
        try:
            return Table(
                run=run,
                stream=stream,
                elements=stacked.shape[1],
                latent_rms=latent_rms,
                sigmas=self.sigmas,
                gram=gram,
                l1=l1,
                norm1=np.array([row.abs().mean(dtype=torch.float64) for row in stacked]),
                mean=stacked.mean(dim=1, dtype=torch.float64).numpy(),
            )
        except ProfileError as error:  # a run of one step, or one that gave NaN
            raise IncompleteRecording(f"stream {stream}: {error}") from None


def sampled(feature: Tensor) -> Tensor:
    """A host copy of at most about SAMPLE of its elements."""
    flat = feature.detach().reshape(-1)
    # An odd stride does not fall into step with channel counts, which are multiples of 2.
    stride = 2 * (flat.numel() // (2 * SAMPLE)) + 1
    return flat[::stride].to("cpu", torch.float32, copy=True)


def pairwise(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Gram matrix <F_i, F_j> and mean |F_i - F_j|, both (M, M) float64, of features (M, n).

    The Gram matrix is accumulated in float64: the squared errors that matter are 1e-8 of a feature's and would be lost
    in float32's cancellation.
    """
    count, elements = features.shape
    gram = torch.zeros(count, count, dtype=torch.float64)
    sums = torch.zeros(count * (count - 1) // 2, dtype=torch.float64)
    for part in torch.split(features, _CHUNK, dim=1):
        wide = part.to(torch.float64)
        gram += wide @ wide.T
        sums += torch.nn.functional.pdist(part.contiguous(), p=1)
    l1 = torch.zeros(count, count, dtype=torch.float64)
    i, j = torch.triu_indices(count, count, offset=1)
    l1[i, j] = l1[j, i] = sums / elements
    return ((gram + gram.T) / 2).numpy(), l1.numpy()
