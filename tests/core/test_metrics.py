"""PSNR and SSIM against scikit-image and against arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ertacache.erta.metrics import PSNR_MAX, frame_psnr, psnr, relative_error, snr, ssim


def pair(*shape: int, noise: float = 0.1, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    reference = torch.rand(shape, generator=generator, dtype=torch.float64)
    noisy = reference + noise * torch.randn(shape, generator=generator, dtype=torch.float64)
    return reference.to(dtype), noisy.to(dtype)


@pytest.mark.parametrize(
    ("shape", "data_range"), [((3, 3, 32, 45), 1.0), ((2, 16, 15, 26), 6.5), ((1, 1, 11, 11), 1.0), ((2, 4, 12, 11), 1)]
)
def test_both_equal_scikit_images(shape: tuple[int, ...], data_range: float):
    reference, candidate = pair(*shape)
    expected = [
        structural_similarity(
            x.numpy(),
            y.numpy(),
            channel_axis=0,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(reference, candidate, strict=True)
    ]
    assert ssim(reference, candidate, data_range).tolist() == pytest.approx(expected, abs=1e-9)
    by_frame = [
        peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=data_range)
        for x, y in zip(reference, candidate, strict=True)
    ]
    assert frame_psnr(reference, candidate, data_range).tolist() == pytest.approx(by_frame, abs=1e-9)
    whole = peak_signal_noise_ratio(reference.numpy(), candidate.numpy(), data_range=data_range)
    assert psnr(reference, candidate, data_range) == pytest.approx(whole, abs=1e-9)


def test_psnr_of_a_clip_is_not_the_mean_of_its_frames():
    reference = torch.zeros(2, 3, 16, 16)
    candidate = torch.stack([torch.full((3, 16, 16), 0.1), torch.full((3, 16, 16), 0.001)])
    assert frame_psnr(reference, candidate, 1.0).tolist() == pytest.approx([20.0, 60.0], abs=1e-5)
    # mean squared error (0.01 + 0.000001) / 2
    assert psnr(reference, candidate, 1.0) == pytest.approx(-10 * math.log10(0.0050005), abs=1e-5)
    assert psnr(reference, candidate, 10.0) == pytest.approx(psnr(reference, candidate, 1.0) + 20.0)


def test_identical_frames_get_the_convention_and_nothing_gets_more():
    reference, _ = pair(2, 3, 16, 16)
    assert psnr(reference, reference, 1.0) == PSNR_MAX == 100.0
    assert frame_psnr(reference, reference + 1e-9, 1.0).tolist() == [100.0, 100.0]
    assert ssim(reference, reference, 1.0).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_half_precision_is_computed_in_float64():
    reference, candidate = pair(1, 3, 16, 16, dtype=torch.float16)
    assert psnr(reference, candidate, 1.0) == psnr(reference.double(), candidate.double(), 1.0)
    assert ssim(reference, candidate, 1.0).dtype == torch.float64


def test_a_frame_smaller_than_the_window_is_seen_whole_by_the_largest_odd_one():
    """By hand for 4x4: three taps, so that four windows lie inside."""
    x, y = pair(1, 1, 4, 4)
    taps = torch.tensor([math.exp(-1 / 4.5), 1.0, math.exp(-1 / 4.5)], dtype=torch.float64)
    window = torch.outer(taps, taps) / taps.sum() ** 2
    scores = []
    for top, left in ((0, 0), (0, 1), (1, 0), (1, 1)):
        a, b = (frame[0, 0, top : top + 3, left : left + 3] for frame in (x, y))
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        covariance = (window * (a - mean_a) * (b - mean_b)).sum()
        luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        scores.append(luminance * (2 * covariance + 9e-4) / (var_a + var_b + 9e-4))
    assert ssim(x, y, 1.0).item() == pytest.approx(torch.stack(scores).mean().item(), abs=1e-12)


def test_signal_to_noise_ratio() -> None:
    """An error of a tenth of the signal, whatever the shape and the sign; identical ones and silence."""
    sound = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float16)
    assert snr(sound, sound * 1.1) == pytest.approx(20.0, abs=0.05)
    assert snr(sound, -sound) == pytest.approx(-20.0 * math.log10(2.0))
    assert snr(sound, sound.clone()) == snr(0.0 * sound, 0.0 * sound) == PSNR_MAX
    assert snr(0.0 * sound, sound) == -PSNR_MAX
    loud = torch.full((4,), 6e4, dtype=torch.float16)
    assert snr(loud, -loud) == pytest.approx(-20.0 * math.log10(2.0)), "in double: half precision overflows"


def test_the_relative_error_is_that_of_all_values_together():
    """Errors of 3 and 4 on values of 10 and 0: the root of 25 / 100."""
    reference, candidate = torch.tensor([[10.0], [0.0]]), torch.tensor([[13.0], [4.0]])
    assert relative_error(reference, candidate) == pytest.approx(0.5)
    assert relative_error(reference.half(), reference.half()) == 0.0
