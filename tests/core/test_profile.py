"""Profile: its tables, its file, and what becomes of it at other sigmas."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load, save

from ertacache.erta import profile_file as module
from ertacache.erta.profile import Measured, Profile, ProfileError, Table
from ertacache.erta.profile_file import (
    MAX_BYTES,
    MAX_HEADER,
    digest,
    from_bytes,
    measured_to_json,
    most_tables,
    read_head,
    read_header,
    to_bytes,
)
from ertacache.erta.resampling import interpolation, resampled
from ertacache.tests.core.made import flow

MEASURED = Measured(
    model_class="WAN21",
    parameters=1_418_996_800,
    weights="0123456789abcdef" * 4,
    loras="",
    sampling="ModelSamplingDiscreteFlow+CONST",
    shift=8.0,
    sampler="euler",
    scheduler="simple",
    steps=3,
    guidance=6.0,
    latent_shape=(1, 16, 21, 60, 104),
    level="output",
    pack_version="0.1.0",
    comfy_version="0.3.75",
)


def table_of(features: np.ndarray, sigmas: np.ndarray, run: int = 0, stream: int = 0) -> Table:
    """The table that a recorder would make of features (M, n)."""
    return Table(
        run=run,
        stream=stream,
        elements=features.shape[1],
        latent_rms=0.5,
        sigmas=sigmas,
        gram=features @ features.T,
        l1=np.abs(features[:, None] - features[None]).mean(axis=2),
        norm1=np.abs(features).mean(axis=1),
        mean=features.mean(axis=1),
    )


def small_profile() -> Profile:
    # Features (3, 4) and (0, -1), (1, 2): every entry of the tables is exact in binary.
    first = table_of(np.array([[3.0, 4.0], [1.0, 2.0], [0.0, -1.0]]), np.array([1.0, 0.75, 0.5]))
    second = table_of(np.array([[2.0, 4.0], [1.0, 1.0], [0.5, 0.0]]), np.array([1.0, 0.75, 0.5]), run=1)
    return Profile(MEASURED, (first, second))


def equal(one: Table, other: Table) -> bool:
    names = ("run", "stream", "elements", "latent_rms", "sigmas", "gram", "l1", "norm1", "mean", "gain", "deviation")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def with_error_response(profile: Profile) -> Profile:
    """With an error response measured in the first run only."""
    first, *others = profile.tables
    responding = replace(first, gain=np.array([-0.5, 0.0, 2.0]), deviation=np.array([0.25, 0.0, 1.5]))
    return Profile(profile.measured, (responding, *others))


def flow_sigmas(steps: int, shift: float = 8.0) -> np.ndarray:
    """As Wan's schedule "simple", without the trailing zero."""
    return flow(steps, shift)[:-1]


# Tables


def test_table_keeps_read_only_float64_copies() -> None:
    gram = np.eye(2, dtype=np.float32)
    table = Table(0, 0, 4, 1, [1, 0.5], gram, np.zeros((2, 2)), np.full(2, 0.5), np.zeros(2))  # type: ignore[arg-type]
    gram[0, 0] = 7
    assert table.gram[0, 0] == 1
    assert table.sigmas.dtype == table.gram.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        table.gram[0, 0] = 7


def test_extended_gram_is_the_gram_matrix_of_the_features_and_the_constant() -> None:
    features = np.array([[3.0, 4.0], [1.0, 2.0], [0.0, -1.0]])
    with_constant = np.vstack([features, np.ones(2)])
    table = table_of(features, np.array([1.0, 0.75, 0.5]))
    np.testing.assert_allclose(table.extended_gram(), with_constant @ with_constant.T)


BAD_TABLES: dict[str, tuple[str, object, str]] = {
    "negative run": ("run", -1, "run"),
    "fractional stream": ("stream", 0.5, "stream"),
    "no elements": ("elements", 0, "elements"),
    "NaN latent_rms": ("latent_rms", float("nan"), "latent_rms"),
    "one model call": ("sigmas", np.ones(1), "sigmas"),
    "too many model calls": ("sigmas", np.ones(1001), "sigmas"),
    "sigmas in two dimensions": ("sigmas", np.ones((3, 1)), "sigmas"),
    "negative sigma": ("sigmas", np.array([1.0, 0.5, -0.1]), "sigmas"),
    "huge sigma": ("sigmas", np.array([2e6, 0.5, 0.1]), "sigmas"),
    "NaN sigma": ("sigmas", np.array([1.0, np.nan, 0.1]), "sigmas"),
    "sigmas are text": ("sigmas", ["a", "b", "c"], "sigmas"),
    "gram of another size": ("gram", np.eye(2), "gram"),
    "infinite gram": ("gram", np.diag([1.0, np.inf, 1.0]), "gram"),
    "gram beyond what float32 holds": ("gram", np.diag([1.0, 1e37, 1.0]), "gram"),
    "negative square": ("gram", np.diag([1.0, -1.0, 1.0]), "gram"),
    "gram not symmetric": ("gram", np.eye(3) + np.eye(3, k=1) * 1e-6, "symmetric"),
    "gram indefinite": ("gram", np.eye(3) + 0.8 * (np.eye(3, k=1) + np.eye(3, k=-1)), "positive semidefinite"),
    "gram beyond Cauchy and Schwarz": ("gram", np.full((3, 3), 30.0) + np.diag([0, 0, -29.9]), "gram"),
    "l1 not symmetric": ("l1", np.eye(3, k=1), "l1"),
    "negative l1": ("l1", -np.eye(3, k=1) - np.eye(3, k=-1), "l1"),
    "l1 to itself": ("l1", np.eye(3), "l1"),
    "negative norm1": ("norm1", np.array([4.0, -1.0, 1.0]), "norm1"),
    "NaN gain": ("gain", np.array([0.5, np.nan, 0.5]), "'gain' is nan"),
    "infinite gain": ("gain", np.array([0.5, -np.inf, 0.5]), "'gain' is -inf"),
    "gain beyond what can be squared": ("gain", np.array([0.5, -1e37, 0.5]), "'gain'"),
    "gain of another size": ("gain", np.zeros(2), "'gain'.*shape"),
    "gain in two dimensions": ("gain", np.zeros((3, 1)), "'gain'.*shape"),
    "one gain for all": ("gain", 0.5, "'gain'.*shape"),
    "gain is text": ("gain", ["a", "b", "c"], "'gain'"),
    "gain is nothing": ("gain", None, "'gain'"),
    "NaN deviation": ("deviation", np.array([0.5, np.nan, 0.5]), "'deviation' is nan"),
    "infinite deviation": ("deviation", np.array([0.5, np.inf, 0.5]), "'deviation' is inf"),
    "negative deviation": ("deviation", np.array([0.5, -0.1, 0.5]), "'deviation' is -0.1.*0 or more"),
    "deviation of another size": ("deviation", np.zeros(4), "'deviation'.*shape"),
    "mean above norm1": ("mean", np.array([3.5, 1.5, 0.6]), "mean"),
}


@pytest.mark.parametrize(("field", "value", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_table_refuses(field: str, value: object, message: str) -> None:
    good = small_profile().tables[0]
    with pytest.raises(ProfileError, match=message):
        replace(good, **{field: value})


def test_an_error_response_that_is_left_out_was_not_measured() -> None:
    table = small_profile().tables[0]
    assert not table.has_error_response
    assert table.gain.tolist() == table.deviation.tolist() == [0, 0, 0]
    assert replace(table, deviation=np.array([0.0, 0.5, 0.0])).has_error_response
    assert replace(table, gain=np.array([0.0, -0.5, 0.0])).has_error_response


def test_an_error_response_is_kept_as_a_read_only_float64_copy() -> None:
    gain = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    table = replace(small_profile().tables[0], gain=gain, deviation=gain)
    gain[0] = 7
    for kept in (table.gain, table.deviation):
        assert kept.tolist() == [1, 2, 3]
        assert kept.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 7


def test_gram_may_be_singular_or_zero() -> None:
    line = np.outer([1.0, 0.9, 0.8], np.arange(5.0))
    table_of(line, np.array([1.0, 0.75, 0.5]))
    table_of(np.zeros((3, 5)), np.array([1.0, 0.75, 0.5]))


BAD_MEASURED: dict[str, tuple[str, object]] = {
    "empty model_class": ("model_class", ""),
    "long model_class": ("model_class", "x" * 201),
    "line break": ("sampler", "euler\nheun"),
    "lone surrogate": ("scheduler", "\ud800"),
    "text as parameters": ("parameters", "1"),
    "weights too short": ("weights", "ab"),
    "weights upper case": ("weights", "A" * 64),
    "loras no digest": ("loras", "none"),
    "infinite shift": ("shift", float("inf")),
    "NaN guidance": ("guidance", float("nan")),
    "truth as guidance": ("guidance", True),
    "no steps": ("steps", 0),
    "truth as steps": ("steps", True),
    "shape a list": ("latent_shape", [1, 2]),
    "empty shape": ("latent_shape", ()),
    "zero in shape": ("latent_shape", (1, 0)),
    "other level": ("level", "attention"),
    "no version": ("pack_version", ""),
}


@pytest.mark.parametrize(("field", "value"), BAD_MEASURED.values(), ids=BAD_MEASURED.keys())
def test_measured_refuses(field: str, value: object) -> None:
    with pytest.raises(ProfileError, match=f"'{field}'.*must be"):
        replace(MEASURED, **{field: value})


def test_tables_must_belong_together() -> None:
    first, second = small_profile().tables
    with pytest.raises(ProfileError, match="tables"):
        Profile(MEASURED, ())
    with pytest.raises(ProfileError, match="'run'"):
        Profile(MEASURED, (first, first))
    with pytest.raises(ProfileError, match="'elements'"):
        Profile(MEASURED, (first, replace(second, elements=3)))
    with pytest.raises(ProfileError, match="'sigmas'"):
        Profile(MEASURED, (first, replace(second, sigmas=second.sigmas * (1 + 1e-4))))
    assert Profile(MEASURED, (first, replace(second, sigmas=second.sigmas * (1 + 1e-6)))).calls == 3


def test_parts_of_a_nested_latent_are_of_their_own_size_in_memory_and_in_the_file() -> None:
    first, second = small_profile().tables
    sound = [table_of(np.array([[2.0], [1.0], [3.0]]), first.sigmas, run=run, stream=1) for run in (0, 1)]
    profile = Profile(MEASURED, (first, sound[0], second, sound[1]))
    assert profile.parts == (0, 1)
    back = from_bytes(to_bytes(profile))
    assert all(equal(one, other) for one, other in zip(back.tables, profile.tables, strict=True))
    assert small_profile().parts == () == Profile(replace(MEASURED, level="blocks"), profile.tables).parts
    with pytest.raises(ProfileError, match="'elements' is 5, but must be that of the first run, 1"):
        Profile(MEASURED, (first, sound[0], second, replace(sound[1], elements=5)))


# The file


def test_small_profile_has_golden_bytes() -> None:
    data = to_bytes(small_profile())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["__metadata__"] == {
        "format": "ertacache.profile",
        "version": "1",
        "measured": measured_to_json(MEASURED),
    }
    # gram 2 * 6 * 8, l1 2 * 3 * 4, sigmas, norm1, mean 2 * 3 * 8 each, gain, spread 2 * 3 * 8 each,
    # latent_rms, run, stream, elements 2 * 8 each
    assert len(data) - 8 - length == 96 + 24 + 3 * 48 + 2 * 48 + 4 * 16
    # A change of these digits is a change of the format: files made before can no longer be distinguished by digest.
    assert hashlib.sha256(data).hexdigest() == "de4d72e799397b45851f0dd5ce7b376e03b37c8ddbf4b61824baa52d62b922c4"


def test_file_is_read_by_safetensors_itself(tmp_path) -> None:
    path = tmp_path / "small.safetensors"
    path.write_bytes(to_bytes(small_profile()))
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["format"] == "ertacache.profile"
        assert file.get_tensor("gram")[0].tolist() == [25, 11, -4, 5, -2, 1]
        assert file.get_tensor("l1")[0].tolist() == [2, 4, 2]


def test_save_and_load_give_the_same_profile() -> None:
    profile = small_profile()
    data = to_bytes(profile)
    again = from_bytes(data)
    assert again.measured == profile.measured == read_header(data) == read_header(io.BytesIO(data))
    assert all(map(equal, again.tables, profile.tables))
    assert (len(again.tables), again.calls) == (2, 3)


def test_error_responses_survive_save_and_load_and_change_the_digest() -> None:
    profile = with_error_response(small_profile())
    again = from_bytes(to_bytes(profile))
    assert all(map(equal, again.tables, profile.tables))
    assert [table.has_error_response for table in again.tables] == [True, False]
    assert again.tables[0].gain.tolist() == [-0.5, 0.0, 2.0]
    assert again.tables[0].deviation.tolist() == [0.25, 0.0, 1.5]
    assert digest(again) == digest(profile) != digest(small_profile())


@settings(max_examples=40, deadline=None)
@given(
    features=hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
        elements=st.floats(-1e6, 1e6, allow_subnormal=False),
    ),
    name=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=200),
    guidance=st.none() | st.floats(-1e6, 1e6) | st.integers(0, 100),
)
@example(features=np.array([[6.84e-45, 6.84e-45], [0.0, 0.0]]), name="0", guidance=None)
def test_digest_survives_save_and_load(features: np.ndarray, name: str, guidance: float | None) -> None:
    measured = replace(MEASURED, model_class=name, guidance=guidance)
    profile = Profile(measured, (table_of(features, np.linspace(1, 0.1, len(features))),))
    data = to_bytes(profile)
    assert int.from_bytes(data[:8], "little") % 8 == 0  # as safetensors aligns its data
    again = from_bytes(data)
    assert again.measured == measured
    assert digest(again) == digest(profile)
    assert np.array_equal(again.tables[0].gram, profile.tables[0].gram)
    np.testing.assert_allclose(again.tables[0].l1, profile.tables[0].l1, rtol=1e-6, atol=1e-37)


def test_digest_tells_profiles_apart() -> None:
    profile = small_profile()
    moved = replace(profile.tables[0], latent_rms=0.25)
    assert digest(profile) != digest(Profile(MEASURED, (moved, profile.tables[1])))
    assert digest(profile) != digest(Profile(replace(MEASURED, shift=None), profile.tables))


def test_fifty_calls_take_at_most_20_000_bytes() -> None:
    features = np.random.default_rng(0).standard_normal((50, 64))
    one = Profile(MEASURED, (table_of(features, flow_sigmas(50)),))
    assert len(to_bytes(one)) <= 20_000


def test_file_resolves_features_that_differ_by_1e_5() -> None:
    rng = np.random.default_rng(1)
    feature, change = rng.standard_normal((2, 4096))
    near = feature + 1e-5 * np.linalg.norm(feature) / np.linalg.norm(change) * change
    profile = Profile(MEASURED, (table_of(np.stack([feature, near]), np.array([1.0, 0.5])),))
    gram = from_bytes(to_bytes(profile)).tables[0].gram
    weights = np.array([1.0, -1.0])
    assert weights @ gram @ weights == pytest.approx(((feature - near) ** 2).sum(), rel=0.03)


# Hostile files


def altered(change: Callable[[dict], None]) -> bytes:
    """The small profile's file with a changed header, still a safetensors file by its own count."""
    data = to_bytes(small_profile())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def altered_metadata(**values: str) -> bytes:
    return altered(lambda header: header["__metadata__"].update(values))


def altered_measured(**values: object) -> bytes:
    return altered_metadata(measured=json.dumps(json.loads(measured_to_json(MEASURED)) | values))


def with_tensor_bytes(name: str, old: bytes, new: bytes) -> bytes:
    data = to_bytes(small_profile())
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    start, end = start + 8 + length, end + 8 + length
    assert old in data[start:end]
    return data[:start] + data[start:end].replace(old, new, 1) + data[end:]


def f8(value: float) -> bytes:
    return np.float64(value).tobytes()


def raw(header: bytes, claimed: int | None = None) -> bytes:
    return (len(header) if claimed is None else claimed).to_bytes(8, "little") + header


def with_tensors(**changed: np.ndarray | None) -> bytes:
    """A whole safetensors file with some tensors replaced, added or (None) left out."""
    data = to_bytes(small_profile())
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = {name: array for name, array in {**load(data), **changed}.items() if array is not None}
    return save(tensors, metadata)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "header"),
    "too large": (lambda: bytes(MAX_BYTES + 1), "'file'"),
    "header length beyond the cap": (lambda: raw(b"{}", 2**63), f"'header'.*{MAX_HEADER}"),
    "header cut off": (lambda: raw(b"{}", 100), "'header'"),
    "header no JSON": (lambda: raw(b"{]"), "'header'"),
    "header no UTF-8": (lambda: raw(b'{"\xff":1}'), "'header'"),
    "header a list": (lambda: raw(b"[1]"), "'header'"),
    "header nested deeply": (lambda: raw(b'{"a":' + b"[" * 50_000), "'header'"),
    "header with NaN": (lambda: raw(b'{"a":NaN}'), "'header'"),
    "header with a long number": (lambda: raw(b'{"a":' + b"9" * 5000 + b"}"), "'header'|'format'"),
    "key twice": (lambda: raw(b'{"gram":1,"gram":2}'), "twice"),
    "no metadata": (lambda: altered(lambda h: h.pop("__metadata__")), "'format'"),
    "metadata no object": (lambda: altered(lambda h: h.update(__metadata__=[1])), "'format'"),
    "other format": (lambda: altered_metadata(format="pt"), "'format'.*another kind"),
    "newer version": (lambda: altered_metadata(version="2"), "'version'.*newer version.*update the pack"),
    "measured missing": (lambda: altered(lambda h: h["__metadata__"].pop("measured")), "'measured'"),
    "measured no JSON": (lambda: altered_metadata(measured="{"), "'measured'"),
    "measured nested deeply": (lambda: altered_metadata(measured="[" * 20_000), "'measured'"),
    "measured key twice": (lambda: altered_metadata(measured='{"steps":1,"steps":2}'), "twice"),
    "measured field missing": (lambda: altered_metadata(measured="{}"), "measured.comfy_version.*missing"),
    "measured field unknown": (lambda: altered_measured(colour="red"), "measured.colour"),
    "measured field of another type": (lambda: altered_measured(steps="50"), "'steps' is '50'"),
    "measured number infinite": (
        lambda: altered_metadata(measured=measured_to_json(MEASURED).replace("8.0", "1e999")),
        "'shift' is inf",
    ),
    "measured shape nested": (lambda: altered_measured(latent_shape=[[1]]), "'latent_shape'"),
    "tensor missing": (lambda: with_tensors(gram=None), "'gram' is 'missing'"),
    "tensor unknown": (lambda: with_tensors(extra=np.zeros(2)), "'extra'.*left out"),
    "tensor no object": (lambda: altered(lambda h: h.update(gram=1)), "'file'"),
    "other type": (lambda: altered(lambda h: h["run"].update(dtype="F64")), "'run'.*I64"),
    "no shape": (lambda: altered(lambda h: h["sigmas"].pop("shape")), "'file'"),
    "no model calls": (lambda: with_tensors(sigmas=np.zeros((2, 0))), "'sigmas'.*2 to 1000"),
    "too many runs": (lambda: with_tensors(sigmas=np.zeros((513, 3))), "'sigmas'.*1 to 512"),
    "shape of text": (lambda: altered(lambda h: h["sigmas"].update(shape=["2", 3])), "'file'"),
    "a million model calls": (lambda: with_tensors(sigmas=np.zeros((1, 10**6 - 10**5))), "'sigmas'.*2 to 1000"),
    "gram of another shape": (lambda: altered(lambda h: h["gram"].update(shape=[6, 2])), "'gram'"),
    "elements of another shape": (lambda: altered(lambda h: h["elements"].update(shape=[2, 1])), "'elements'"),
    "gain of another shape": (lambda: altered(lambda h: h["gain"].update(shape=[3, 2])), "'gain'.*shape"),
    "deviation of another shape": (lambda: altered(lambda h: h["spread"].update(shape=[6])), "'spread'.*shape"),
    "gain of another type": (lambda: altered(lambda h: h["gain"].update(dtype="I64")), "'gain'.*F64"),
    "offsets overlap": (lambda: altered(lambda h: h["run"].update(data_offsets=[0, 16])), "'file'"),
    "data cut off": (lambda: to_bytes(small_profile())[:-1], "'file'"),
    "data too long": (lambda: to_bytes(small_profile()) + b"x", "'file'"),
    "NaN in gram": (lambda: with_tensor_bytes("gram", f8(25), f8(float("nan"))), "'gram' is nan"),
    "infinity in l1": (
        lambda: with_tensor_bytes("l1", np.float32(2).tobytes(), np.float32("inf").tobytes()),
        "'l1' is inf",
    ),
    "negative sigma": (lambda: with_tensor_bytes("sigmas", f8(0.5), f8(-0.5)), "'sigmas' is -0.5"),
    "negative norm1": (lambda: with_tensor_bytes("norm1", f8(3.5), f8(-3.5)), "'norm1' is -3.5"),
    "NaN in gain": (lambda: with_tensor_bytes("gain", f8(0), f8(float("nan"))), "'gain' is nan"),
    "NaN in deviation": (lambda: with_tensor_bytes("spread", f8(0), f8(float("nan"))), "'deviation' is nan"),
    "infinity in deviation": (lambda: with_tensor_bytes("spread", f8(0), f8(float("inf"))), "'deviation' is inf"),
    "negative deviation": (lambda: with_tensor_bytes("spread", f8(0), f8(-0.5)), "'deviation' is -0.5"),
    "no elements": (lambda: with_tensor_bytes("elements", np.int64(2).tobytes(), bytes(8)), "'elements' is 0"),
    "run twice": (lambda: with_tensor_bytes("run", np.int64(1).tobytes(), bytes(8)), "'run'"),
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_reading_refuses(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        from_bytes(make())


def test_header_alone_is_refused_by_the_same_rules() -> None:
    for name in ("other format", "newer version", "measured nested deeply"):
        make, message = HOSTILE[name]
        with pytest.raises(ProfileError, match=message):
            read_header(make())


def test_header_is_read_without_the_tables() -> None:
    file = io.BytesIO(to_bytes(small_profile()))
    length = int.from_bytes(file.getvalue()[:8], "little")
    read_header(file)
    assert file.tell() == 8 + length


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_the_head_has_the_sigmas_of_the_first_run_and_nothing_else_is_read() -> None:
    file = Counting(to_bytes(small_profile()))
    assert read_head(file) == (MEASURED, (1.0, 0.75, 0.5))
    assert file.taken == 8 + int.from_bytes(file.getvalue()[:8], "little") + 3 * 8


def with_sigmas(declared: object = None, **changed: object) -> bytes:
    """The small profile's file with another declaration of its sigmas."""
    data = to_bytes(small_profile())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["sigmas"] = {**header["sigmas"], **changed} if changed else declared
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


BAD_HEADS = {
    "no sigmas": with_sigmas(None),
    "a text": with_sigmas("F64"),
    "another type": with_sigmas(dtype="F32"),
    "a type that is none": with_sigmas(dtype=["F64"]),
    "one number for a shape": with_sigmas(shape=6),
    "three dimensions": with_sigmas(shape=[1, 2, 3]),
    "no run": with_sigmas(shape=[0, 3], data_offsets=[0, 0]),
    "one call": with_sigmas(shape=[2, 1], data_offsets=[0, 16]),
    "too many calls": with_sigmas(shape=[1, 10**9], data_offsets=[0, 8 * 10**9]),
    "a shape of texts": with_sigmas(shape=["2", "3"]),
    "a shape of fractions": with_sigmas(shape=[2.0, 3.0]),
    "a place before the file": with_sigmas(data_offsets=[-48, 0]),
    "a place behind the file": with_sigmas(data_offsets=[10**6, 10**6 + 48]),
    "a place beyond any file": with_sigmas(data_offsets=[10**30, 10**30 + 48]),
    "another length": with_sigmas(data_offsets=[0, 40]),
    "a file cut off": to_bytes(small_profile())[:-400],
}


@pytest.mark.parametrize("data", BAD_HEADS.values(), ids=BAD_HEADS.keys())
def test_a_head_is_refused_by_field(data: bytes) -> None:
    with pytest.raises(ProfileError, match="profile field 'sigmas'"):
        read_head(io.BytesIO(data))


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-10, 1e7, np.nan, np.inf])
def test_sigmas_that_no_run_has_are_refused_in_the_head(value: float) -> None:
    data = to_bytes(small_profile())
    place = data.index(np.array([1.0, 0.75, 0.5]).tobytes())
    with pytest.raises(ProfileError, match="profile field 'sigmas'"):
        read_head(io.BytesIO(data[:place] + np.float64(value).tobytes() + data[place + 8 :]))


@pytest.mark.parametrize("make", [make for make, _ in HOSTILE.values()], ids=HOSTILE.keys())
def test_a_hostile_head_is_refused_or_a_head(make: Callable[[], bytes]) -> None:
    with contextlib.suppress(ProfileError):
        measured, sigmas = read_head(io.BytesIO(make()))
        assert isinstance(measured, Measured) and all(1e-9 <= sigma <= 1e6 for sigma in sigmas)


@pytest.mark.parametrize("calls", [300, 1000])
def test_as_many_runs_as_a_file_surely_holds_are_kept_and_not_many_more_would_be(calls: int) -> None:
    features = np.random.default_rng(0).normal(size=(calls, 2)) / 1024
    one = table_of(features, np.linspace(1.0, 0.1, calls))
    most = most_tables(calls)
    assert len(to_bytes(Profile(MEASURED, tuple(replace(one, run=run) for run in range(most))))) <= MAX_BYTES
    with pytest.raises(ProfileError, match="fewer runs"):
        to_bytes(Profile(MEASURED, tuple(replace(one, run=run) for run in range(most + 1))))


def test_writing_refuses_what_reading_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", len(to_bytes(small_profile())) - 1)
    with pytest.raises(ProfileError, match="fewer runs"):
        to_bytes(small_profile())


# Other sigmas


def trajectory(sigmas: np.ndarray) -> np.ndarray:
    """(M, 500) velocity of the exact flow towards 500 Gaussians of standard deviations 0.03 to 1.5: smooth, known."""
    deviation = np.geomspace(1e-3, 2, 500)
    start = np.random.default_rng(2).standard_normal(500)
    s = sigmas[:, None]
    return (s - (1 - s) * deviation) / np.sqrt((1 - s) ** 2 * deviation + s**2) * start


def bend(gram: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """|F_i - line through F_s2, F_s| for every skipped interval of one to three reused model calls."""
    found = []
    for s in range(1, len(sigmas) - 1):
        for i in range(s + 1, min(s + 4, len(sigmas))):
            slope = (sigmas[i] - sigmas[s]) / (sigmas[s] - sigmas[s - 1])
            weights = np.zeros(len(sigmas))
            weights[[i, s, s - 1]] = 1, -1 - slope, slope
            found.append(np.sqrt(max(weights @ gram @ weights, 0)))
    return np.array(found)


def distances(table: Table) -> np.ndarray:
    squares = np.diag(table.gram)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * table.gram, 0))


@pytest.fixture(scope="module")
def fifty() -> Profile:
    sigmas = flow_sigmas(50)
    return Profile(MEASURED, (table_of(trajectory(sigmas), sigmas),))


def test_measured_sigmas_change_nothing(fifty: Profile) -> None:
    assert resampled(fifty, flow_sigmas(50)) is fifty
    assert resampled(fifty, fifty.sigmas * (1 + 1e-6)) is fifty
    assert resampled(fifty, fifty.sigmas * (1 + 1e-4)) is not fifty


@pytest.mark.parametrize("steps", [10, 20, 30, 40, 49, 60, 80])
def test_t5_distances_at_other_step_counts_are_the_true_ones(fifty: Profile, steps: int) -> None:
    sigmas = flow_sigmas(steps)
    sigmas = sigmas[sigmas >= fifty.sigmas.min()]
    (table,) = resampled(fifty, sigmas).tables
    features = trajectory(sigmas)
    true = table_of(features, sigmas)
    pairs = np.triu_indices(len(sigmas), 1)
    np.testing.assert_allclose(distances(table)[pairs], distances(true)[pairs], rtol=0.01)
    np.testing.assert_allclose(np.diag(table.gram), np.diag(true.gram), rtol=0.01)
    np.testing.assert_allclose(table.l1[pairs], true.l1[pairs], rtol=0.01)
    np.testing.assert_allclose(table.norm1, true.norm1, rtol=0.01)
    np.testing.assert_allclose(table.mean, true.mean, atol=0.01 * true.norm1.max())


@pytest.mark.parametrize("steps", [10, 30, 80])
def test_t5_errors_of_extrapolation_are_the_true_ones(fifty: Profile, steps: int) -> None:
    # Linear or nearest resampling has no curvature of its own, and is off by its own size here.
    sigmas = flow_sigmas(steps)
    sigmas = sigmas[sigmas >= fifty.sigmas.min()]
    true = trajectory(sigmas)
    np.testing.assert_allclose(
        bend(resampled(fifty, sigmas).tables[0].gram, sigmas), bend(true @ true.T, sigmas), rtol=0.05
    )


def test_t5_the_last_sigma_of_more_steps_lies_below_the_range_and_still_has_a_distance(fifty: Profile) -> None:
    # 80 steps end at 0.092, 50 at 0.140. Held there, the last step would look free to reuse.
    sigmas = flow_sigmas(80)
    assert (sigmas < fifty.sigmas.min()).sum() == 1
    (table,) = resampled(fifty, sigmas).tables
    true = table_of(trajectory(sigmas), sigmas)
    np.testing.assert_allclose(distances(table)[-1, :-1], distances(true)[-1, :-1], rtol=0.15)
    np.testing.assert_allclose(bend(table.gram, sigmas), bend(true.gram, sigmas), rtol=0.3)


def test_t5_a_longer_interval_is_never_cheaper_because_steps_are_fewer(fifty: Profile) -> None:
    shortest = []
    for steps in (80, 60, 40, 30, 20, 10):
        (table,) = resampled(fifty, flow_sigmas(steps)).tables
        # From the middle of the run to the model call one step later: the fewer steps, the longer the skipped interval.
        middle = steps // 2
        shortest.append(table.l1[middle, middle + 1])
    assert shortest == sorted(shortest)


def test_an_error_response_at_other_sigmas_is_held_and_interpolated_times_sigma(fifty: Profile) -> None:
    """Its unit is 1 / sigma: what is 0.3 / sigma + 2 is that at any sigma within, and 1 / sigma beyond them."""
    (table,) = fifty.tables
    responding = replace(table, gain=0.3 / table.sigmas + 2.0, deviation=0.7 / table.sigmas)
    wanted = np.array([1.5, 1.0, 0.77, 0.3, 0.2, 0.07])
    (found,) = resampled(Profile(MEASURED, (responding,)), wanted).tables
    np.testing.assert_allclose(found.deviation, 0.7 / wanted, rtol=1e-12)
    np.testing.assert_allclose(found.gain[1:-1], 0.3 / wanted[1:-1] + 2.0, rtol=1e-12)
    lowest = table.sigmas.min()
    np.testing.assert_allclose(found.gain[[0, -1]], [2.3 / 1.5, (0.3 + 2.0 * lowest) / 0.07], rtol=1e-12)


def test_what_was_not_measured_is_not_measured_at_other_sigmas_either(fifty: Profile) -> None:
    (table,) = resampled(fifty, flow_sigmas(20)).tables
    assert not table.has_error_response
    assert not table.gain.any()


def test_of_error_responses_at_one_sigma_the_last_counts() -> None:
    # heun: as the corrector's model call, which comes after the predictor's at the same sigma.
    sigmas = np.array([1.0, 0.5, 0.5])
    table = replace(table_of(np.eye(3), sigmas), gain=np.array([1.0, 2.0, 6.0]), deviation=np.array([1.0, 2.0, 8.0]))
    (found,) = resampled(Profile(MEASURED, (table,)), np.array([1.0, 0.5])).tables
    assert found.gain.tolist() == [1, 6]
    assert found.deviation.tolist() == [1, 8]


def test_sigmas_beyond_the_measured_range_hold_the_feature(fifty: Profile) -> None:
    (table,) = resampled(fifty, np.array([1.5, 1.2, 0.5])).tables
    assert table.l1[0, 1] == 0
    assert table.gram[0, 0] == pytest.approx(table.gram[1, 1])
    assert table.l1[0, 2] > 0


def test_cubics_are_met_exactly_everywhere() -> None:
    nodes = np.array([1.0, 0.97, 0.9, 0.7, 0.4, 0.1])
    wanted = np.array([0.99, 0.95, 0.5, 0.1, 0.0])
    cubic = np.poly1d([2.0, -3.0, 0.5, 1.0])
    np.testing.assert_allclose(interpolation(nodes, wanted) @ cubic(nodes), cubic(wanted))


def test_of_calls_that_share_a_sigma_the_last_counts() -> None:
    # heun: 1, then 0.75 as predicted and as corrected, and so on.
    sigmas = np.array([1.0, 0.75, 0.75, 0.5, 0.5, 0.25])
    weights = interpolation(sigmas, np.array([0.75, 0.6]))
    assert weights[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert weights[1, [1, 3]].tolist() == [0, 0]
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_few_or_equal_sigmas_lower_the_order() -> None:
    assert interpolation(np.array([0.5, 0.5]), np.array([0.5, 0.7])).tolist() == [[0, 1], [0, 1]]
    np.testing.assert_allclose(interpolation(np.array([1.0, 0.0]), np.array([0.25])), [[0.25, 0.75]])
    line = table_of(np.outer([1.0, 1.0], np.arange(3.0)), np.array([0.5, 0.5]))
    assert resampled(Profile(MEASURED, (line,)), np.array([0.5, 0.5, 0.5])).tables[0].l1.max() == 0


def test_uneven_sigmas_do_not_blow_up_rounding() -> None:
    nodes = np.array([1.0, 0.501, 0.5, 0.4999, 0.1])
    weights = interpolation(nodes, np.linspace(1.2, 0, 200))
    assert np.abs(weights).sum(axis=1).max() <= 16
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_resampling_refuses_sigmas_that_no_run_has(fifty: Profile) -> None:
    for sigmas in (np.array([1.0]), np.array([1.0, np.nan]), np.array([1.0, -1.0])):
        with pytest.raises(ProfileError, match="'sigmas'"):
            resampled(fifty, sigmas)


@settings(max_examples=30, deadline=None)
@given(
    features=hnp.arrays(np.float64, (7, 3), elements=st.floats(-1e3, 1e3)),
    sigmas=hnp.arrays(np.float64, 7, elements=st.floats(1e-9, 20)),
    wanted=hnp.arrays(np.float64, 5, elements=st.floats(1e-9, 30)),
    error_responses=hnp.arrays(np.float64, (2, 7), elements=st.floats(-1e3, 1e3)),
)
def test_resampled_tables_are_valid_whatever_was_measured(features, sigmas, wanted, error_responses) -> None:
    table = replace(table_of(features, sigmas), gain=error_responses[0], deviation=np.abs(error_responses[1]))
    moved = resampled(Profile(MEASURED, (table,)), wanted)
    assert digest(from_bytes(to_bytes(moved))) == digest(moved)


def test_format_names_are_fixed() -> None:
    assert (module.FORMAT, module.VERSION) == ("ertacache.profile", 1)
