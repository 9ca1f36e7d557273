"""The profile's file: a safetensors file of at most MAX_BYTES.

Its metadata MUST hold ``format`` (FORMAT), ``version`` (VERSION) and ``measured`` (the fields of `Measured` as one JSON
object); other metadata is ignored. It MUST hold exactly these tensors, for T tables of M model calls, little-endian:

    gram (T, M (M + 1) / 2) F64   upper half with the diagonal, row by row
    l1   (T, M (M - 1) / 2) F32   upper half without the diagonal, row by row
    sigmas, norm1, mean, gain, spread (T, M) F64
    run, stream, elements (T,) I64        latent_rms (T,) F64

It MAY hold ``calibration`` (T,) F64, which is left out where all of it is 1.
``spread`` is the deviation of a `Table`. The Gram matrix is float64 because predicted errors are its small differences:
a feature that is 1e-5 off leaves 1e-10 of its square, which float32 cannot tell from 0. That makes 17.1 KB per recorded
run of 50 model calls. Sigmas MUST be MIN_SIGMA or more, a feature's root mean square at most MAX_FEATURE and not below
its mean of absolute values, gain and deviation times sigma at most MAX_ERROR_RESPONSE.
Files come from strangers: reading one gives a Profile that can be planned with, or raises ProfileError.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from . import gram as grams
from .profile import MAX_SIGMA, MAX_TABLES, Measured, Profile, Table, check_all, refusal
from .response import MAX_CALLS
from .strict_json import read_object

FORMAT = "ertacache.profile"
VERSION = 1

MAX_BYTES = 8 * 2**20
MAX_HEADER = 2**16

# What a file may hold is far beyond what models do, and near enough to it that all planned from it is finite.
MIN_SIGMA = 1e-9
MAX_FEATURE = 1e6
MAX_ERROR_RESPONSE = 1e6

_BYTES = {"F64": "<f8", "I64": "<i8", "F32": "<f4"}
_ROWS = ("sigmas", "norm1", "mean", "gain", "spread")
_NUMBERS = ("latent_rms", "run", "stream", "elements", "calibration")
_OPTIONAL = frozenset({"calibration"})
# By tensor, in the order of the file.
_DTYPES = dict.fromkeys(("gram", *_ROWS, "latent_rms"), "F64") | dict.fromkeys(("run", "stream", "elements"), "I64")
_DTYPES |= {"l1": "F32", "calibration": "F64"}
# Where the name of a field differs from its tensor's.
_FIELDS = {"spread": "deviation"}
_COPY = "copy or record it again"


def to_bytes(profile: Profile) -> bytes:
    """The file's content, always the same bytes. Raises ProfileError for what `from_bytes` would refuse."""
    for table in profile.tables:
        _check_recorded(table)
    metadata = {"format": FORMAT, "version": str(VERSION), "measured": measured_to_json(profile.measured)}
    data = _safetensors(_pack(profile.tables), metadata)
    if len(data) > MAX_BYTES:
        raise refusal("tables", len(profile.tables), f"few enough for {MAX_BYTES} bytes", "record fewer runs")
    return data


def from_bytes(data: bytes) -> Profile:
    """The profile in a file's content, from whatever source. Raises ProfileError and nothing else."""
    if len(data) > MAX_BYTES:
        raise refusal("file", len(data), f"at most {MAX_BYTES} bytes", "choose a profile file")
    measured = read_header(data)
    try:
        packed = load_tensors(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that numpy does not have
        raise refusal("file", str(error), "a whole safetensors file", _COPY) from None
    profile = Profile(measured, _unpack(packed))
    for table in profile.tables:
        _check_recorded(table)
    return profile


def digest(profile: Profile) -> str:
    """64 hex digits that stand for the whole content as stored: the same after a save and a load."""
    return hashlib.sha256(to_bytes(profile)).hexdigest()


def read_header(source: bytes | BinaryIO) -> Measured:
    """What a profile was measured on, without its tables, which may still be damaged. Raises ProfileError."""
    return _measured(_header(io.BytesIO(source) if isinstance(source, bytes) else source).get("__metadata__"))


def read_head(file: BinaryIO) -> tuple[Measured, tuple[float, ...]]:
    """What `read_header` reads and the sigmas of the first run, of a file that can seek. Raises ProfileError."""
    header = _header(file)
    measured, start = _measured(header.get("__metadata__")), file.tell()
    room = file.seek(0, io.SEEK_END) - start
    match header.get("sigmas"):
        case {"dtype": "F64", "shape": [int(runs), int(count)], "data_offsets": [int(begin), int(end)]} if (
            1 <= runs <= MAX_TABLES and 2 <= count <= MAX_CALLS and 0 <= begin == end - 8 * runs * count and end <= room
        ):
            file.seek(start + begin)
            # Of a file that was cut off meanwhile zeros are left, which are refused.
            sigmas = np.frombuffer(file.read(8 * count).ljust(8 * count, b"\0"), "<f8")
        case found:
            raise refusal("sigmas", found, f"1 to {MAX_TABLES} runs of 2 to {MAX_CALLS} calls in F64, inside the file")
    good = (sigmas >= MIN_SIGMA) & (sigmas <= MAX_SIGMA)
    check_all("sigmas", sigmas, good, f"from {MIN_SIGMA:g} to {MAX_SIGMA:g}")
    return measured, tuple(sigmas.tolist())


def most_tables(calls: int) -> int:
    """How many recorded runs of so many model calls a file surely holds."""
    each = sum(np.dtype(_BYTES[_DTYPES[name]]).itemsize * size for name, size in _sizes(calls).items())
    return min((MAX_BYTES - 8 - MAX_HEADER) // each, MAX_TABLES)


def _header(file: BinaryIO) -> dict[str, Any]:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER:
        raise refusal("header", length, f"2 to {MAX_HEADER} bytes long", "choose a profile file")
    text = file.read(length)
    if len(text) < length:
        raise refusal("header", len(text), f"{length} bytes long as the file says", _COPY)
    return _object("header", text)


def _sizes(count: int) -> dict[str, int]:
    """How many numbers each tensor has of a run of ``count`` model calls."""
    triangles = {"gram": count * (count + 1) // 2, "l1": count * (count - 1) // 2}
    return triangles | dict.fromkeys(_ROWS, count) | dict.fromkeys(_NUMBERS, 1)


def _measured(metadata: Any) -> Measured:
    known = metadata.get("format") if isinstance(metadata, dict) else metadata
    if known != FORMAT:
        raise refusal("format", known, repr(FORMAT), "choose a profile file, this is another kind of safetensors")
    version = metadata.get("version")
    if version != str(VERSION):
        raise refusal("version", version, f"'{VERSION}'", "made by a newer version, or damaged; update the pack")
    text = metadata.get("measured")
    if not isinstance(text, str):
        raise refusal("measured", text, "a JSON object in a string")
    return measured_from_json(text)


def measured_to_json(measured: Measured) -> str:
    """One line of JSON, the same for equal values."""
    values = asdict(measured)
    for name in ("shift", "guidance"):
        values[name] = None if values[name] is None else float(values[name])
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def measured_from_json(text: str) -> Measured:
    """The reverse of `measured_to_json`. Raises ProfileError."""
    values = _object("measured", text)
    _check_names({f"measured.{name}" for name in values}, {f"measured.{field.name}" for field in fields(Measured)})
    if isinstance(values["latent_shape"], list):
        values["latent_shape"] = tuple(values["latent_shape"])
    return Measured(**values)


def _object(name: str, text: str | bytes) -> dict[str, Any]:
    try:
        return read_object(text)
    except ValueError as error:
        raise refusal(name, str(error), "a JSON object", _COPY) from None


def _check_names(found: set[str], known: set[str], optional: frozenset[str] = frozenset()) -> None:
    for name in sorted(known - optional - found):
        raise refusal(name, "missing", "there")
    for name in sorted(found - known):
        raise refusal(name, "there", "left out, as this version does not know it")


def _pack(tables: Sequence[Table]) -> dict[str, np.ndarray]:
    count = tables[0].sigmas.size
    packed = {
        "gram": np.stack([table.gram[np.triu_indices(count)] for table in tables]),
        "l1": np.stack([table.l1[np.triu_indices(count, 1)] for table in tables]),
    }
    for name in (*_ROWS, *_NUMBERS):
        packed[name] = np.stack([np.asarray(getattr(table, _FIELDS.get(name, name))) for table in tables])
    if (packed["calibration"] == 1.0).all():
        del packed["calibration"]
    return {name: packed[name].astype(_BYTES[dtype]) for name, dtype in _DTYPES.items() if name in packed}


def _unpack(packed: dict[str, np.ndarray]) -> tuple[Table, ...]:
    _check_names(set(packed), set(_DTYPES), _OPTIONAL)
    for name, array in packed.items():
        if array.dtype != np.dtype(_BYTES[_DTYPES[name]]):
            raise refusal(name, str(array.dtype), f"a tensor of type {_DTYPES[name]}")
    shape = packed["sigmas"].shape
    # Before anything of M x M is made.
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_TABLES or not 2 <= shape[1] <= MAX_CALLS:
        raise refusal("sigmas", shape, f"of shape (1 to {MAX_TABLES} runs, 2 to {MAX_CALLS} model calls)")
    runs, count = shape
    sizes = _sizes(count)
    for name, array in packed.items():
        wanted = (runs,) if name in _NUMBERS else (runs, sizes[name])
        if array.shape != wanted:
            raise refusal(name, array.shape, f"of shape {wanted}, as {runs} runs of {count} model calls have")
    return tuple(_table({name: array[t] for name, array in packed.items()}, count) for t in range(runs))


def _table(packed: dict[str, np.ndarray], count: int) -> Table:
    values: dict[str, Any] = {_FIELDS.get(name, name): packed[name] for name in _ROWS}
    values |= {name: packed[name].item() for name in _NUMBERS if name in packed}
    return Table(gram=_squared(packed["gram"], count, 0), l1=_squared(packed["l1"], count, 1), **values)


def _squared(upper: np.ndarray, count: int, diagonal: int) -> np.ndarray:
    matrix = np.zeros((count, count))
    matrix[~np.tri(count, k=diagonal - 1, dtype=bool)] = upper
    return grams.mirrored(matrix)


def _safetensors(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """As `safetensors.numpy.save`, which writes metadata in random order: a digest needs the same bytes every time."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[name], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in tensors.values())])


def _check_recorded(table: Table) -> None:
    """Stricter than a Table: bounds of real runs, within which every plan is finite, whatever the sampler."""
    sigmas, squares = table.sigmas, np.diag(table.gram) / table.elements
    check_all("sigmas", sigmas, sigmas >= MIN_SIGMA, f"{MIN_SIGMA:g} or more, as samplers call the model nowhere below")
    check_all("gram", np.diag(table.gram), squares <= MAX_FEATURE**2, f"that of features up to {MAX_FEATURE:g}")
    most = np.sqrt(squares * (1 + 1e-6) + 1e-300)
    check_all("norm1", table.norm1, table.norm1 <= most, "no larger than the root mean square")
    apart = grams.distances(table.gram)
    apart *= apart
    apart *= (1 + 1e-6) / table.elements
    apart += grams.TOLERANCE * squares[:, None] + 1e-300
    apart += grams.TOLERANCE * squares
    np.sqrt(apart, out=apart)
    apart += float(np.finfo(np.float32).tiny)  # below it float32, in which distances are kept, rounds them up
    check_all("l1", table.l1, table.l1 <= apart, "no larger than the root mean square")
    for name in ("gain", "deviation"):
        response, rule = getattr(table, name), f"at most {MAX_ERROR_RESPONSE:g} over sigma"
        check_all(name, response, np.abs(response) * sigmas <= MAX_ERROR_RESPONSE, rule)
