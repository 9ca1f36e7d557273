"""How close two clips of one shape (frames, channels, height, width) are: PSNR, SSIM, relative error, in float64 on the
host, as Apple's devices have none. `data_range` is the span of the values, above 0; 1.0 for images."""

import torch
from torch import Tensor

PSNR_MAX = 100.0  # dB: what identical frames get, as JSON has no infinity; an error of 1e-5 of the range
_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def psnr(reference: Tensor, candidate: Tensor, data_range: float) -> float:
    """PSNR in dB of all frames together, from the mean of their squared errors; PSNR_MAX at most."""
    return _decibel(_frame_mse(reference, candidate).mean(), data_range).item()


def frame_psnr(reference: Tensor, candidate: Tensor, data_range: float) -> Tensor:
    """PSNR in dB of each frame, shape (frames,); PSNR_MAX at most."""
    return _decibel(_frame_mse(reference, candidate), data_range)


def relative_error(reference: Tensor, candidate: Tensor) -> float:
    """Root mean square of the difference over that of the reference: what a plan's predicted error predicts."""
    nothing = reference.new_zeros(()).expand_as(reference)
    return (_frame_mse(reference, candidate).mean() / _frame_mse(reference, nothing).mean()).sqrt().item()


def ssim(reference: Tensor, candidate: Tensor, data_range: float) -> Tensor:
    """Structural similarity of each frame, shape (frames,), averaged over channels and pixels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004, eq. 13:
    Gaussian window of 11x11 and sigma 1.5, K1 0.01, K2 0.03, only where the window lies inside the frame. On a frame
    with a side under 11, which latents of small images have, the window is the largest odd one that fits.
    """
    c1, c2 = ((k * data_range) ** 2 for k in (_K1, _K2))
    radius = (min(_WINDOW, *reference.shape[-2:]) - 1) // 2
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / _SIGMA) ** 2)
    weights /= weights.sum()
    frames = []
    for x, y in zip(reference, candidate, strict=True):  # one at a time: five float64 copies of a long clip do not fit
        x, y = x.cpu().double(), y.cpu().double()
        mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]), weights.tolist())
        means = 2 * mean_x * mean_y, mean_x**2 + mean_y**2
        variances = 2 * (xy - mean_x * mean_y), xx + yy - means[1]
        frames.append(((means[0] + c1) * (variances[0] + c2) / ((means[1] + c1) * (variances[1] + c2))).mean())
    return torch.stack(frames)


def snr(reference: Tensor, candidate: Tensor) -> float:
    """Signal-to-noise ratio in dB of values of any shape: the reference's power over the error's; PSNR_MAX at most."""
    error = torch.tensor(relative_error(reference, candidate))  # NaN of two silent ones
    return (-20.0 * torch.log10(error)).nan_to_num(PSNR_MAX).clamp(-PSNR_MAX, PSNR_MAX).item()


def _frame_mse(reference: Tensor, candidate: Tensor) -> Tensor:
    pairs = zip(reference, candidate, strict=True)
    return torch.stack([(x.cpu().double() - y.cpu().double()).square().mean() for x, y in pairs])


def _decibel(mse: Tensor, data_range: float) -> Tensor:
    return (10.0 * torch.log10(data_range**2 / mse)).clamp(max=PSNR_MAX)


def _blur(planes: Tensor, weights: list[float]) -> Tensor:
    """The separable window where it fits. Shifted sums: conv2d in float64 is eight times slower, and unfolds."""
    for dim in (-2, -1):
        length = planes.shape[dim] - len(weights) + 1
        blurred = torch.zeros_like(planes.narrow(dim, 0, length))
        for shift, weight in enumerate(weights):
            blurred.add_(planes.narrow(dim, shift, length), alpha=weight)
        planes = blurred
    return planes
