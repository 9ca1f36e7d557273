"""Recorder: its tables against brute force, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ertacache.erta import recorder as module
from ertacache.erta.recorder import IncompleteRecording, Recorder, pairwise

SIGMAS = np.array([1.0, 0.8, 0.5, 0.2])


def recorded(features: torch.Tensor, sigmas: np.ndarray = SIGMAS, key: str = "guided") -> Recorder:
    recorder = Recorder(sigmas)
    for i, feature in enumerate(features):
        recorder.observe(i, key, feature)
    return recorder


@pytest.mark.parametrize("elements", [7, 1000, module._CHUNK + 13])
def test_tables_equal_brute_force(elements: int) -> None:
    features = torch.randn(4, elements, generator=torch.Generator().manual_seed(elements))
    (table,) = recorded(features).tables(3, 0.7)
    wide = features.double().numpy()
    np.testing.assert_allclose(table.gram, wide @ wide.T, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(table.l1, np.abs(wide[:, None] - wide[None]).mean(axis=2), rtol=1e-6)
    np.testing.assert_allclose(table.norm1, np.abs(wide).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(table.mean, wide.mean(axis=1), rtol=1e-9, atol=1e-12)
    assert (table.run, table.stream, table.elements, table.latent_rms) == (3, 0, elements, 0.7)
    np.testing.assert_array_equal(table.sigmas, SIGMAS)


def test_gram_tells_features_apart_that_differ_by_1e_5() -> None:
    """|F - F'|^2 = 1e-10 |F|^2, from the Gram matrix alone: float32 sums, good to 1e-7, would lose it entirely."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(100_000, generator=generator)
    features = torch.stack([base, base * (1 + 1e-5 * torch.randn(100_000, generator=generator))])
    gram, _ = pairwise(features)
    distance = gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]
    expected = float((features[0].double() - features[1].double()).square().sum())
    assert 0.5e-10 < expected / gram[0, 0] < 2e-10
    assert distance == pytest.approx(expected, rel=1e-3)


def test_gram_is_exactly_symmetric_and_l1_to_itself_is_zero() -> None:
    gram, l1 = pairwise(torch.randn(5, 300, generator=torch.Generator().manual_seed(2)))
    assert np.array_equal(gram, gram.T)
    assert np.array_equal(l1, l1.T)
    assert not np.diag(l1).any()
    assert gram.dtype == l1.dtype == np.float64


def test_any_shape_and_dtype_is_taken_as_one_list_of_numbers() -> None:
    features = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(3))
    (flat,) = recorded(features.reshape(4, -1)).tables(0, 1.0)
    (shaped,) = recorded(features.transpose(1, 3).contiguous().transpose(1, 3)).tables(0, 1.0)
    (half,) = recorded(features.to(torch.bfloat16)).tables(0, 1.0)
    np.testing.assert_array_equal(flat.gram, shaped.gram)
    np.testing.assert_allclose(half.gram, flat.gram, rtol=0.05, atol=0.3)


def test_what_is_kept_does_not_change_with_the_senders_tensor() -> None:
    """Samplers write into their tensors (docs/compatibility/traps.md, T2)."""
    features = torch.randn(4, 50, generator=torch.Generator().manual_seed(4))
    (before,) = recorded(features.clone()).tables(0, 1.0)
    recorder, one = Recorder(SIGMAS), torch.empty(50)
    for i in range(4):
        one.copy_(features[i])
        recorder.observe(i, "guided", one)
    (after,) = recorder.tables(0, 1.0)
    np.testing.assert_array_equal(before.gram, after.gram)


def test_streams_become_tables_in_the_order_in_which_they_appeared() -> None:
    features = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(5))
    recorder = Recorder(SIGMAS)
    for i in range(4):
        recorder.observe(i, "b", features[0, i])
        recorder.observe(i, "a", features[1, i])
    first, second = recorder.tables(7, 1.0)
    assert [(t.run, t.stream) for t in (first, second)] == [(7, 0), (7, 1)]
    np.testing.assert_allclose(first.gram, (features[0].double() @ features[0].double().T).numpy())
    np.testing.assert_allclose(second.gram, (features[1].double() @ features[1].double().T).numpy())
    assert recorder.cache_bytes == 2 * 4 * 20 * 4


def test_large_features_are_sampled_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 20th of the elements, taken over the whole feature and over every channel, gives distances to some percent."""
    channels, places = 16, 20_000
    generator = torch.Generator().manual_seed(6)
    # Channels of very different size, laid out innermost: a stride that fell into step with them would see only some.
    scale = torch.logspace(-1, 1, channels)
    ramp = torch.linspace(0.5, 1.5, places)[:, None]
    features = torch.randn(4, places, channels, generator=generator) * scale * ramp
    (whole,) = recorded(features).tables(0, 1.0)
    monkeypatch.setattr(module, "SAMPLE", channels * places // 20)
    recorder = recorded(features)
    (sampled,) = recorder.tables(0, 1.0)
    assert channels * places / 25 < sampled.elements < channels * places / 10
    assert recorder.cache_bytes == 4 * 4 * sampled.elements
    for name in ("gram", "l1", "norm1"):
        found, expected = getattr(sampled, name), getattr(whole, name)
        per_element = (found / sampled.elements, expected / whole.elements) if name == "gram" else (found, expected)
        diagonal = np.diag(per_element[0]), np.diag(per_element[1])
        pairs = diagonal if name == "gram" else per_element
        np.testing.assert_allclose(*pairs, rtol=0.08)


@pytest.mark.parametrize("size", [1, 16, 1000, 4096, 4097])
def test_sampling_stride_is_odd_and_leaves_small_features_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 1000)
    (table,) = recorded(torch.ones(4, size)).tables(0, 1.0)
    stride = -(-size // table.elements)
    assert table.elements == size if size < 2000 else 500 <= table.elements <= 2000
    assert stride % 2 == 1


# What is no recording


def test_missing_call_is_refused() -> None:
    recorder = Recorder(SIGMAS)
    for i in (0, 1, 3):
        recorder.observe(i, "guided", torch.ones(5))
    with pytest.raises(IncompleteRecording, match="no feature at model call 2"):
        recorder.tables(0, 1.0)


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(IncompleteRecording, match="no feature was seen"):
        Recorder(SIGMAS).tables(0, 1.0)


def test_changed_shape_is_refused() -> None:
    recorder = recorded(torch.ones(4, 5))
    recorder.observe(2, "guided", torch.ones(6))
    with pytest.raises(IncompleteRecording, match="changed its shape"):
        recorder.tables(0, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_run_that_gave_no_numbers_is_refused_not_raised(value: float) -> None:
    """The render is done and is shown, black as it is; only the profile does not come to be."""
    features = torch.ones(4, 5)
    features[2, 3] = value
    with pytest.raises(IncompleteRecording, match="finite"):
        recorded(features).tables(0, 1.0)
    with pytest.raises(IncompleteRecording, match="latent_rms"):
        recorded(torch.ones(4, 5)).tables(0, value)


def test_run_of_one_call_is_refused() -> None:
    with pytest.raises(IncompleteRecording, match="only one model call"):
        recorded(torch.ones(1, 5), SIGMAS[:1]).tables(0, 1.0)


def test_closed_recorder_has_nothing() -> None:
    recorder = recorded(torch.ones(4, 5))
    recorder.close()
    assert recorder.cache_bytes == 0
    with pytest.raises(IncompleteRecording):
        recorder.tables(0, 1.0)


def test_parts_of_a_latent_have_each_a_size_of_their_own() -> None:
    recorder = Recorder(SIGMAS)
    for i in range(len(SIGMAS)):
        recorder.observe(i, "picture", torch.ones(5) * i)
        recorder.observe(i, "sound", torch.ones(3) * i)
    assert [(t.stream, t.elements, t.latent_rms) for t in recorder.tables(0, 2.0, 0.5)] == [(0, 5, 2.0), (1, 3, 0.5)]
    assert [t.latent_rms for t in recorder.tables(0, 2.0)] == [2.0, 2.0]
