"""Profile: what full sampling runs measured, as small frozen tables that cannot hold what no run measures.

A table has the features' scalar products and distances (docs/method.md, "The profile"). profile_file.py reads and
writes profiles; resampling.py moves them to other sigmas.
"""

import reprlib
from dataclasses import dataclass, field

import numpy as np

from . import gram as grams
from .response import MAX_CALLS
from .strict_json import is_number

MAX_TABLES = 512
MAX_SIGMA = 1e6
# Numbers up to here can be squared and summed in float64 and kept in float32.
MAX_VALUE = 1e36
MAX_COUNT = 10**15
MAX_CALIBRATION = 1000.0

# Sigmas that differ by less than this share are the same: schedulers work in float32.
SIGMA_TOLERANCE = 1e-5

_TEXT = 200


class ProfileError(ValueError):
    """A profile, or its file, is not valid. The message names the field, its value and the remedy."""


def refusal(
    name: str, value: object, rule: str, remedy: str = "record a new profile with ERTA Profile"
) -> ProfileError:
    """The error for a field of a profile whose value breaks a rule."""
    return ProfileError(f"profile field {name!r} is {reprlib.repr(value)[:80]}, but must be {rule}: {remedy}")


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
            raise refusal("level", self.level, "'output' or 'blocks'")
        _check_count("parameters", self.parameters, 0, MAX_COUNT)
        _check_count("steps", self.steps, 1, 10 * MAX_CALLS)
        for name, value in (("shift", self.shift), ("guidance", self.guidance)):
            if value is not None and not (is_number(value) and abs(value) <= MAX_SIGMA):
                raise refusal(name, value, f"none, or a number of at most {MAX_SIGMA:g}")
        if not isinstance(self.latent_shape, tuple) or not 1 <= len(self.latent_shape) <= 8:
            raise refusal("latent_shape", self.latent_shape, "1 to 8 whole numbers")
        for size in self.latent_shape:
            _check_count("latent_shape", size, 1, 10**9)


@dataclass(frozen=True, eq=False)
class Table:
    """One recorded run of one stream: M model calls, in the order in which they came.

    run, stream: ordinals from 0. elements: how many numbers n a feature has. latent_rms: root mean square of the run's
    final latent in model units, the unit of relative errors. sigmas: (M,) sigma of each call, not always falling
    (heun). gram: (M, M) <F_i, F_j>. l1: (M, M) mean |F_i - F_j|. norm1: (M,) mean |F_i|. mean: (M,) mean F_i. gain,
    deviation: (M,) the model's error response per call (`simulation.ErrorResponse`), in units of 1 / sigma; left out or
    all 0 where it was not measured. calibration: the perturbed run's relative error over what these predict of it.

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
    calibration: float = 1.0

    def __post_init__(self) -> None:
        _check_count("run", self.run, 0, 2**31)
        _check_count("stream", self.stream, 0, 2**31)
        _check_count("elements", self.elements, 1, MAX_COUNT)
        if not is_number(self.latent_rms) or not 0 <= self.latent_rms <= MAX_VALUE:
            raise refusal("latent_rms", self.latent_rms, f"a number from 0 to {MAX_VALUE:g}")
        if not is_number(self.calibration) or not 1 / MAX_CALIBRATION <= self.calibration <= MAX_CALIBRATION:
            raise refusal("calibration", self.calibration, f"within a factor of {MAX_CALIBRATION:g} of 1")
        sigmas = as_floats("sigmas", self.sigmas)
        count = sigmas.size
        if sigmas.ndim != 1 or not 2 <= count <= MAX_CALLS:
            raise refusal("sigmas", sigmas.shape, f"one list of 2 to {MAX_CALLS} sigmas")
        check_all("sigmas", sigmas, (sigmas >= 0) & (sigmas <= MAX_SIGMA), f"from 0 to {MAX_SIGMA:g}")
        gram = _shaped("gram", self.gram, (count, count))
        l1 = _shaped("l1", self.l1, (count, count))
        norm1 = _shaped("norm1", self.norm1, (count,))
        mean = _shaped("mean", self.mean, (count,))
        _check_distances(l1, norm1, mean)
        _check_gram(gram)
        kept = {"sigmas": sigmas, "gram": gram, "l1": l1, "norm1": norm1, "mean": mean}
        for name in ("gain", "deviation"):
            value = getattr(self, name)
            kept[name] = _shaped(name, value, (count,)) if np.size(value) else np.zeros(count)
        check_all("deviation", kept["deviation"], kept["deviation"] >= 0, "0 or more")
        for name, array in kept.items():
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def has_error_response(self) -> bool:
        """Whether the model's error response was measured in this run."""
        return bool(self.gain.any() or self.deviation.any())

    def extended_gram(self) -> np.ndarray:
        """(M + 1, M + 1): the Gram matrix with the constant feature 1 as the last one."""
        extended = np.empty((self.mean.size + 1,) * 2)
        extended[:-1, :-1] = self.gram
        extended[-1, :-1] = extended[:-1, -1] = self.elements * self.mean
        extended[-1, -1] = self.elements
        return extended


@dataclass(frozen=True, eq=False)
class Profile:
    """Tables of one or more recorded runs of the same model and settings. Compare profiles by `profile_file.digest`.

    Raises ProfileError where the tables do not belong together.
    """

    measured: Measured
    tables: tuple[Table, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.tables, tuple) or not 1 <= len(self.tables) <= MAX_TABLES:
            raise refusal("tables", self.tables, f"a tuple of 1 to {MAX_TABLES} recorded runs")
        first, elements = self.tables[0], {table.stream: table.elements for table in reversed(self.tables)}
        for table in self.tables[1:]:
            if not same_sigmas(table.sigmas, first.sigmas):
                raise refusal("sigmas", table.sigmas, f"those of the first run, {reprlib.repr(first.sigmas)}")
            if table.elements != elements[table.stream]:
                raise refusal("elements", table.elements, f"that of the first run, {elements[table.stream]}")
        keys = [(table.run, table.stream) for table in self.tables]
        if len(set(keys)) < len(keys):
            raise refusal("run", sorted(keys), "a number that each recorded run and stream has for itself")

    @property
    def sigmas(self) -> np.ndarray:
        """(M,) sigma of each model call."""
        return self.tables[0].sigmas

    @property
    def parts(self) -> tuple[int, ...]:
        """The streams that are parts of a nested latent, such as picture and sound; none where the latent is whole."""
        streams = {table.stream for table in self.tables}
        return tuple(sorted(streams)) if self.measured.level == "output" and len(streams) > 1 else ()

    @property
    def calls(self) -> int:
        """M, model calls per run."""
        return self.sigmas.size


def same_sigmas(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two lists of sigmas are equal up to float32 rounding."""
    return one.shape == other.shape and np.allclose(one, other, rtol=SIGMA_TOLERANCE, atol=0)


def as_floats(name: str, value: object) -> np.ndarray:
    """A float64 copy. Raises ProfileError for what is no number, not finite or beyond MAX_VALUE."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise refusal(name, value, "numbers") from None
    check_all(name, array, (array <= MAX_VALUE) & (array >= -MAX_VALUE), f"finite and at most {MAX_VALUE:g}")
    return array


def check_all(name: str, array: np.ndarray, good: np.ndarray, rule: str) -> None:
    """Raise ProfileError with the first value of a field that is not good."""
    if not good.all():
        raise refusal(name, float(array[~good][0]), rule)


def _check_text(name: str, value: object, least: int) -> None:
    # A lone surrogate, which JSON allows and UTF-8 does not, is not printable either.
    if not isinstance(value, str) or not least <= len(value) <= _TEXT or not value.isprintable():
        raise refusal(name, value, f"{least} to {_TEXT} printable characters")


def _check_fingerprint(name: str, value: object) -> None:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise refusal(name, value, "64 lower-case hex digits")


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise refusal(name, value, f"a whole number from {least} to {most}")


def _shaped(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    array = as_floats(name, value)
    if array.shape != shape:
        raise refusal(name, array.shape, f"of shape {shape}, as the sigmas are {shape[0]}")
    return array


def _check_distances(l1: np.ndarray, norm1: np.ndarray, mean: np.ndarray) -> None:
    check_all("l1", l1, l1 >= 0, "0 or more")
    check_all("l1", np.diag(l1), np.diag(l1) == 0, "0 between a feature and itself")
    check_all("l1", l1, l1 == l1.T, "symmetric")
    check_all("norm1", norm1, norm1 >= 0, "0 or more")
    check_all("mean", mean, np.abs(mean) <= norm1 * (1 + 1e-6), "no larger than norm1, the mean of absolute values")


def _check_gram(gram: np.ndarray) -> None:
    """That it is positive semidefinite makes every predicted squared error 0 or more."""
    check_all("gram", gram, gram == gram.T, "symmetric")
    if not grams.is_semidefinite(gram):
        raise refusal("gram", gram, "a matrix of scalar products (positive semidefinite)")
