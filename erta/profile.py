"""Profile: what full sampling runs measured, as small frozen tables, and its file.

The file is a safetensors file, at most MAX_BYTES. Its metadata MUST hold ``format`` (FORMAT), ``version`` (VERSION) and
``measured`` (the fields of `Measured` as one JSON object); other metadata is ignored. It MUST hold exactly these
tensors, for T tables of M model calls, little-endian:

    gram (T, M (M + 1) / 2) F64   upper half with the diagonal, row by row
    l1   (T, M (M - 1) / 2) F32   upper half without the diagonal, row by row
    sigmas, norm1, mean, gain, spread (T, M) F64
    run, stream, elements (T,) I64        latent_rms (T,) F64

The Gram matrix is float64 because predicted errors are its small differences: a feature that is 1e-5 off leaves 1e-10
of its square, which float32 cannot tell from nothing. That makes 17.1 KB per recorded run of 50 model calls.
Sigmas MUST be MIN_SIGMA or more, a feature's root mean square at most MAX_FEATURE and not below its mean of absolute
values, gain and spread times sigma at most MAX_ANSWER.
Files come from strangers: reading one either gives a Profile that can be planned with or raises ProfileError.
"""

from __future__ import annotations

import hashlib
import io
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from .interpolation import (
    SIGMA_TOLERANCE,
    gram_distances,
    interpolation,
    last_at_each_sigma,
    linear_weights,
    ratio_of,
    with_diagonal,
)

FORMAT = "ertacache.profile"
VERSION = 1

MAX_BYTES = 8 * 2**20
MAX_HEADER = 2**16
MAX_CALLS = 1000
MAX_TABLES = 512
MAX_SIGMA = 1e6
# Numbers up to here can be squared and summed in float64 and kept in float32.
MAX_VALUE = 1e36
MAX_COUNT = 10**15

# What a file may hold is far beyond what models do, and near enough to it that all planned from it is finite.
MIN_SIGMA = 1e-9
MAX_FEATURE = 1e6
MAX_ERROR_RESPONSE = 1e6

# Of the trace: how far a Gram matrix may be from symmetric and positive semidefinite.
GRAM_TOLERANCE = 1e-9
# A trace below this is 0, or has too few digits left to tell.
_LEAST_TRACE = np.finfo(np.float64).tiny / GRAM_TOLERANCE

_TEXT = 200
_DTYPES = {
    "gram": "F64",
    "sigmas": "F64",
    "norm1": "F64",
    "mean": "F64",
    "gain": "F64",
    "deviation": "F64",
    "latent_rms": "F64",
    "run": "I64",
    "stream": "I64",
    "elements": "I64",
    "l1": "F32",
}
_BYTES = {"F64": "<f8", "I64": "<i8", "F32": "<f4"}
_RECORD_AGAIN = "record a new profile with ERTA Profile"


class ProfileError(ValueError):
    """A profile, or its file, is not valid. The message names the field, its value and what to do."""


def _refusal(field: str, value: object, rule: str, remedy: str = _RECORD_AGAIN) -> ProfileError:
    return ProfileError(f"profile field {field!r} is {reprlib.repr(value)[:80]}, but must be {rule}: {remedy}")


def _misfit(field: str, present: bool) -> ProfileError:
    given, rule = ("there", "left out, as this version does not know it") if present else ("missing", "there")
    return _refusal(field, given, rule)


@dataclass(frozen=True)
class Measured:
    """What a profile was measured on.

    model_class: class name of the model. parameters: how many it has. weights: 64 hex digits that stand for its base
    weights. loras: the same for the weight patches on top, "" without any. sampling: class names of the model sampling,
    as "ModelSamplingDiscreteFlow+CONST"; shift: its shift, None where it has none. sampler, scheduler: names, scheduler
    "" where unknown. steps: of the schedule. guidance: the CFG scale, None where there is no such number. latent_shape:
    of the run's latent. level: "output" or "blocks". pack_version, comfy_version: what recorded it.

    Raises ProfileError for anything else.
    """

    model_class: str
    parameters: int
    weights: str
    loras: str
    sampling: str
    shift: float | None
    sampler: str
    scheduler: str
    steps: int
    guidance: float | None
    latent_shape: tuple[int, ...]
    level: str
    pack_version: str
    comfy_version: str

    def __post_init__(self) -> None:
        for name in ("model_class", "sampling", "sampler", "pack_version", "comfy_version"):
            _check_text(name, getattr(self, name), least=1)
        _check_text("scheduler", self.scheduler, least=0)
        _check_fingerprint("weights", self.weights)
        if self.loras != "":
            _check_fingerprint("loras", self.loras)
        if self.level not in ("output", "blocks"):
            raise _refusal("level", self.level, "'output' or 'blocks'")
        _check_count("parameters", self.parameters, 0, MAX_COUNT)
        _check_count("steps", self.steps, 1, 10 * MAX_CALLS)
        for name in ("shift", "guidance"):
            _check_number_or_none(name, getattr(self, name))
        if not isinstance(self.latent_shape, tuple) or not 1 <= len(self.latent_shape) <= 8:
            raise _refusal("latent_shape", self.latent_shape, "1 to 8 whole numbers")
        for size in self.latent_shape:
            _check_count("latent_shape", size, 1, 10**9)

    def to_json(self) -> str:
        """One line of JSON, the same for equal values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["latent_shape"] = list(self.latent_shape)
        for name in ("shift", "guidance"):
            values[name] = None if values[name] is None else float(values[name])
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """The reverse of `to_json`. Raises ProfileError."""
        values = _parse_object("measured", text)
        known = {field.name for field in fields(cls)}
        for name in sorted(known ^ values.keys()):
            raise _misfit(f"measured.{name}", name in values)
        shape = values["latent_shape"]
        values["latent_shape"] = tuple(shape) if isinstance(shape, list) else shape
        return cls(**values)


def _check_text(name: str, value: object, least: int) -> None:
    # A lone surrogate, which JSON allows and UTF-8 does not, is not printable either.
    if not isinstance(value, str) or not least <= len(value) <= _TEXT or not value.isprintable():
        raise _refusal(name, value, f"{least} to {_TEXT} printable characters")


def _check_fingerprint(name: str, value: object) -> None:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise _refusal(name, value, "64 lower-case hex digits")


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise _refusal(name, value, f"a whole number from {least} to {most}")


def _check_number_or_none(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and -MAX_SIGMA <= value <= MAX_SIGMA):
        raise _refusal(name, value, f"none, or a number of at most {MAX_SIGMA:g}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, eq=False)
class Table:
    """One recorded run of one stream: M model calls, in the order in which they came.

    run, stream: ordinals from 0. elements: how many numbers n a feature has. latent_rms: RMS of the run's final latent
    in model units, for relative errors. sigmas: (M,) sigma at each model call, not always falling (heun). gram: (M, M)
    <F_i, F_j>. l1: (M, M) mean |F_i - F_j|. norm1: (M,) mean |F_i|. mean: (M,) mean F_i. gain, spread: (M,) how the
    model answered to being evaluated at a latent that is off (loop.Feedback); all 0 where that was not measured, which
    is also what leaving them out means.

    Arrays are kept as read-only float64 copies. Raises ProfileError where they cannot come from real features.
    """

    run: int
    stream: int
    elements: int
    latent_rms: float
    sigmas: np.ndarray
    gram: np.ndarray
    l1: np.ndarray
    norm1: np.ndarray
    mean: np.ndarray
    gain: np.ndarray = field(default_factory=lambda: np.empty(0))
    deviation: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        _check_count("run", self.run, 0, 2**31)
        _check_count("stream", self.stream, 0, 2**31)
        _check_count("elements", self.elements, 1, MAX_COUNT)
        if not _is_number(self.latent_rms) or not 0 <= self.latent_rms <= MAX_VALUE:
            raise _refusal("latent_rms", self.latent_rms, f"a number from 0 to {MAX_VALUE:g}")
        sigmas = _floats("sigmas", self.sigmas)
        count = sigmas.size
        if sigmas.ndim != 1 or not 2 <= count <= MAX_CALLS:
            raise _refusal("sigmas", sigmas.shape, f"one list of 2 to {MAX_CALLS} sigmas")
        _check_all("sigmas", sigmas, (sigmas >= 0) & (sigmas <= MAX_SIGMA), f"from 0 to {MAX_SIGMA:g}")
        gram = _shaped("gram", self.gram, (count, count))
        l1 = _shaped("l1", self.l1, (count, count))
        norm1 = _shaped("norm1", self.norm1, (count,))
        mean = _shaped("mean", self.mean, (count,))
        _check_distances(l1, norm1, mean)
        nothing = np.zeros(count)
        given = {"gain": self.gain, "deviation": self.deviation}
        answers = {name: _shaped(name, a, (count,)) if np.size(a) else nothing for name, a in given.items()}
        _check_all("deviation", answers["deviation"], answers["deviation"] >= 0, "0 or more")
        kept = {"sigmas": sigmas, "gram": _checked_gram(gram), "l1": _mirrored(l1), "norm1": norm1, "mean": mean}
        kept |= answers
        for name, array in kept.items():
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def has_error_response(self) -> bool:
        """Whether the model's answer to errors was measured in this run."""
        return bool(self.gain.any() or self.deviation.any())

    def extended_gram(self) -> np.ndarray:
        """(M + 1, M + 1): the Gram matrix with the constant feature 1 as the last one."""
        extended = np.empty((self.mean.size + 1,) * 2)
        extended[:-1, :-1] = self.gram
        extended[-1, :-1] = extended[:-1, -1] = self.elements * self.mean
        extended[-1, -1] = self.elements
        return extended


def _floats(name: str, value: object) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise _refusal(name, value, "numbers") from None
    _check_all(name, array, (array <= MAX_VALUE) & (array >= -MAX_VALUE), f"finite and at most {MAX_VALUE:g}")
    return array


def _shaped(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    array = _floats(name, value)
    if array.shape != shape:
        raise _refusal(name, array.shape, f"of shape {shape}, as the sigmas are {shape[0]}")
    return array


def _check_all(name: str, array: np.ndarray, good: np.ndarray, rule: str) -> None:
    if not good.all():
        raise _refusal(name, float(array[~good][0]), rule)


def _check_distances(l1: np.ndarray, norm1: np.ndarray, mean: np.ndarray) -> None:
    _check_all("l1", l1, l1 >= 0, "0 or more")
    _check_all("l1", np.diag(l1), np.diag(l1) == 0, "0 between a feature and itself")
    _check_all("l1", l1, l1 - l1.T <= GRAM_TOLERANCE * l1.max(), "symmetric")
    _check_all("norm1", norm1, norm1 >= 0, "0 or more")
    _check_all("mean", mean, np.abs(mean) <= norm1 * (1 + 1e-6), "no larger than norm1, the mean of absolute values")


def _checked_gram(gram: np.ndarray) -> np.ndarray:
    """Exactly symmetric. That it is positive semidefinite makes every predicted squared error 0 or more."""
    diagonal = np.diag(gram)
    _check_all("gram", diagonal, diagonal >= 0, "0 or more on the diagonal")
    scale = diagonal.sum()
    _check_all("gram", gram, (gram <= scale) & (gram >= -scale), "no larger than the squares of the features")
    if scale >= _LEAST_TRACE:
        _check_all("gram", gram, gram - gram.T <= GRAM_TOLERANCE * scale, "symmetric")
    gram = _mirrored(gram)
    if not _is_semidefinite(gram):
        raise _refusal("gram", gram, "a matrix of scalar products (positive semidefinite)")
    return gram


def _check_recorded(table: Table) -> None:
    """Stricter than a Table: what real runs have, so that what is planned from it is finite whatever the sampler."""
    sigmas, squares = table.sigmas, np.diag(table.gram) / table.elements
    _check_all("sigmas", sigmas, sigmas >= MIN_SIGMA, f"{MIN_SIGMA:g} or more, as samplers evaluate nowhere below")
    _check_all("gram", np.diag(table.gram), squares <= MAX_FEATURE**2, f"that of features up to {MAX_FEATURE:g}")
    most = np.sqrt(squares * (1 + 1e-6) + 1e-300)
    _check_all("norm1", table.norm1, table.norm1 <= most, "no larger than the root mean square")
    apart = gram_distances(table.gram)
    apart *= apart
    apart *= (1 + 1e-6) / table.elements
    apart += GRAM_TOLERANCE * squares[:, None] + 1e-300
    apart += GRAM_TOLERANCE * squares
    _check_all("l1", table.l1, table.l1 <= np.sqrt(apart, out=apart), "no larger than the root mean square")
    for name in ("gain", "deviation"):
        answer = getattr(table, name)
        _check_all(
            name, answer, np.abs(answer) * sigmas <= MAX_ERROR_RESPONSE, f"at most {MAX_ERROR_RESPONSE:g} over sigma"
        )


def _is_semidefinite(gram: np.ndarray) -> bool:
    """Up to rounding. gram: (M, M), exactly symmetric."""
    diagonal = np.diag(gram)
    scale = diagonal.sum()
    if diagonal.min() < 0 or max(gram.max(), -gram.min()) > scale:
        return False
    if scale < _LEAST_TRACE:
        return True
    unit = gram / scale
    unit.flat[:: len(unit) + 1] += GRAM_TOLERANCE
    try:
        np.linalg.cholesky(unit)
    except np.linalg.LinAlgError:
        return False
    return True


def _mirrored(matrix: np.ndarray) -> np.ndarray:
    """The upper half, and its mirror image below. Not by adding the two: that would make more of NaN and infinity."""
    return np.where(np.tri(len(matrix), k=-1, dtype=bool), matrix.T, matrix)


@dataclass(frozen=True, eq=False)
class Profile:
    """Tables of one or more recorded runs of the same model and settings. Compare profiles by their `digest`.

    Raises ProfileError where the tables do not belong together.
    """

    measured: Measured
    tables: tuple[Table, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.tables, tuple) or not 1 <= len(self.tables) <= MAX_TABLES:
            raise _refusal("tables", self.tables, f"a tuple of 1 to {MAX_TABLES} recorded runs")
        first = self.tables[0]
        for table in self.tables[1:]:
            if not _same_sigmas(table.sigmas, first.sigmas):
                raise _refusal("sigmas", table.sigmas, f"those of the first run, {reprlib.repr(first.sigmas)}")
            if table.elements != first.elements:
                raise _refusal("elements", table.elements, f"that of the first run, {first.elements}")
        keys = [(table.run, table.stream) for table in self.tables]
        if len(set(keys)) < len(keys):
            raise _refusal("run", sorted(keys), "a number that each recorded run and stream has for itself")

    @property
    def sigmas(self) -> np.ndarray:
        """(M,) sigma at each model call."""
        return self.tables[0].sigmas

    @property
    def runs(self) -> int:
        """How many runs were recorded."""
        return len({table.run for table in self.tables})

    @property
    def calls(self) -> int:
        """M, model model calls per run."""
        return self.sigmas.size

    def digest(self) -> str:
        """64 hex digits that stand for the whole content as stored: the same after a save and a load."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def resampled(self, sigmas: np.ndarray) -> Profile:
        """The same runs as if they had been evaluated at other sigmas (M',), for other step counts and samplers.

        Features are interpolated over sigma (`interpolation`), which carries over to the Gram matrix; mean absolute
        values follow from its distances by their measured ratio. Returns self where the sigmas are the measured ones.
        Raises ProfileError for sigmas that no table may have.
        """
        wanted = _floats("sigmas", sigmas)
        if _same_sigmas(wanted, self.sigmas):
            return self
        if wanted.ndim != 1 or not 2 <= wanted.size <= MAX_CALLS:
            raise _refusal("sigmas", wanted.shape, f"one list of 2 to {MAX_CALLS} sigmas")
        return Profile(self.measured, tuple(_resampled(table, wanted) for table in self.tables))

    def to_bytes(self) -> bytes:
        """The file's content, always the same bytes. Raises ProfileError for what `from_bytes` would refuse."""
        for table in self.tables:
            _check_recorded(table)
        packed = _pack(self.tables)
        metadata = {"format": FORMAT, "version": str(VERSION), "measured": self.measured.to_json()}
        data = _safetensors(packed, metadata)
        if len(data) > MAX_BYTES:
            raise _refusal("tables", len(self.tables), f"few enough for {MAX_BYTES} bytes", "record fewer runs")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """The profile in a file's content, from whatever source. Raises ProfileError and nothing else."""
        if len(data) > MAX_BYTES:
            raise _refusal("file", len(data), f"at most {MAX_BYTES} bytes", "choose a profile file")
        header = _read_header(io.BytesIO(data))
        measured = _measured(header)
        _check_layout(header)
        try:
            packed = load_tensors(data)
        except SafetensorError as error:
            raise _refusal("file", str(error), "a whole safetensors file", "copy or record it again") from None
        profile = cls(measured, _unpack(packed))
        for table in profile.tables:
            _check_recorded(table)
        return profile


def read_header(source: bytes | BinaryIO) -> Measured:
    """What a profile was measured on, without reading its tables. Raises ProfileError as `Profile.from_bytes`."""
    header = _read_header(io.BytesIO(source) if isinstance(source, bytes) else source)
    measured = _measured(header)
    _check_layout(header)
    return measured


def _same_sigmas(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=SIGMA_TOLERANCE, atol=0)


def _resampled(table: Table, sigmas: np.ndarray) -> Table:
    weights = interpolation(table.sigmas, sigmas)
    last = last_at_each_sigma(table.sigmas)
    linear = linear_weights(table.sigmas[last], sigmas)
    gram = _resampled_gram(table.gram, weights)
    mean = weights @ table.mean
    # 1 / sqrt(n) for features of equal magnitudes, less for features with outliers: it changes slowly with sigma.
    deviation = ratio_of(table.l1[np.ix_(last, last)], gram_distances(table.gram[np.ix_(last, last)]))
    size = ratio_of(table.norm1[last], np.sqrt(np.diag(table.gram)[last]))
    l1 = gram_distances(gram) * (linear @ with_diagonal(deviation) @ linear.T)
    norm1 = np.sqrt(np.maximum(np.diag(gram), 0)) * (linear @ size)
    return Table(
        run=table.run,
        stream=table.stream,
        elements=table.elements,
        latent_rms=table.latent_rms,
        sigmas=sigmas,
        gram=gram,
        l1=_mirrored(l1),
        norm1=np.maximum(norm1, np.abs(mean)),
        mean=mean,
        gain=_resampled_answer(table.gain, table, linear, sigmas),
        deviation=_resampled_answer(table.deviation, table, linear, sigmas),
    )


def _resampled_gram(gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
    resampled = _mirrored(weights @ gram @ weights.T)
    if _is_semidefinite(resampled):
        return resampled
    # As far as rounding goes the measured one was; where the features are small that is no more so.
    values, vectors = np.linalg.eigh(gram)
    roots = weights @ (vectors * np.sqrt(np.maximum(values, 0.0)))
    return _mirrored(roots @ roots.T)


def _resampled_answer(answer: np.ndarray, table: Table, linear: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Times sigma, its unit, it changes slowly."""
    last = last_at_each_sigma(table.sigmas)
    found: np.ndarray = linear @ (answer * table.sigmas)[last] / np.maximum(sigmas, 1e-12)
    return found


# The file


def _pack(tables: Sequence[Table]) -> dict[str, np.ndarray]:
    count = tables[0].sigmas.size
    packed = {
        "gram": np.stack([table.gram[np.triu_indices(count)] for table in tables]),
        "l1": np.stack([table.l1[np.triu_indices(count, 1)] for table in tables]),
    }
    for name in _DTYPES.keys() - packed.keys():
        packed[name] = np.stack([np.asarray(getattr(table, name)) for table in tables])
    return {name: packed[name].astype(_BYTES[dtype]) for name, dtype in _DTYPES.items()}


def _unpack(packed: dict[str, np.ndarray]) -> tuple[Table, ...]:
    runs, count = packed["sigmas"].shape
    tables = []
    for t in range(runs):
        gram, l1 = _squared(packed["gram"][t], count, 0), _squared(packed["l1"][t], count, 1)
        values: dict[str, Any] = {name: packed[name][t] for name in ("sigmas", "norm1", "mean", "gain", "deviation")}
        values |= {name: packed[name][t].item() for name in ("run", "stream", "elements", "latent_rms")}
        tables.append(Table(gram=gram, l1=l1, **values))
    return tuple(tables)


def _squared(upper: np.ndarray, count: int, diagonal: int) -> np.ndarray:
    matrix = np.zeros((count, count))
    matrix[~np.tri(count, k=diagonal - 1, dtype=bool)] = upper
    return _mirrored(matrix)


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


def _read_header(file: BinaryIO) -> dict[str, Any]:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER:
        raise _refusal("header", length, f"2 to {MAX_HEADER} bytes long", "choose a profile file")
    text = file.read(length)
    if len(text) < length:
        raise _refusal("header", len(text), f"{length} bytes long as the file says", "copy or record it again")
    return _parse_object("header", text)


def _parse_object(name: str, text: str | bytes) -> dict[str, Any]:
    try:
        text = text.decode() if isinstance(text, bytes) else text
        parsed = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refusal(name, str(error), "a JSON object", "copy or record it again") from None
    if not isinstance(parsed, dict):
        raise _refusal(name, parsed, "a JSON object")
    return parsed


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _measured(header: dict[str, Any]) -> Measured:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        given = metadata.get("format") if isinstance(metadata, dict) else metadata
        raise _refusal("format", given, repr(FORMAT), "choose a profile file, this is another kind of safetensors")
    version = metadata.get("version")
    if version != str(VERSION):
        raise _refusal("version", version, f"'{VERSION}'", "made by a newer version, or damaged; update the pack")
    text = metadata.get("measured")
    if not isinstance(text, str):
        raise _refusal("measured", text, "a JSON object in a string")
    return Measured.from_json(text)


def _check_layout(header: dict[str, Any]) -> None:
    """Names, types and shapes of the tensors, as the header declares them."""
    declared = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name in sorted(declared.keys() ^ _DTYPES.keys()):
        raise _misfit(name, name in declared)
    for name, dtype in _DTYPES.items():
        entry = declared[name]
        if not isinstance(entry, dict) or entry.get("dtype") != dtype:
            raise _refusal(name, entry, f"a tensor of type {dtype}")
    shape = declared["sigmas"].get("shape")
    if not _is_shape(shape):
        raise _refusal("sigmas", shape, f"of shape (1 to {MAX_TABLES} runs, 2 to {MAX_CALLS} model calls)")
    runs, count = shape
    wanted = {"gram": [runs, count * (count + 1) // 2], "l1": [runs, count * (count - 1) // 2]}
    wanted |= dict.fromkeys(("norm1", "mean", "gain", "deviation"), shape)
    for name, entry in declared.items():
        if entry.get("shape") != wanted.get(name, [runs] if name != "sigmas" else shape):
            raise _refusal(name, entry.get("shape"), f"of the shape that {runs} runs of {count} model calls have")


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list) or len(shape) != 2 or any(type(size) is not int for size in shape):
        return False
    runs, count = shape
    return bool(1 <= runs <= MAX_TABLES and 2 <= count <= MAX_CALLS)
