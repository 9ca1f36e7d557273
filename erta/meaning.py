"""What a relative error of the final latent means to the eye.

From 12,688 pairs of renders of the bench (docs/measured/README.md), medians: up to VISIBLE the PSNR is 48 dB or more,
SSIM 0.999 and FLIP below 0.03; up to CHANGED 44 to 33 dB, 0.997 to 0.965 and 0.04 to 0.09; beyond, worse.
"""

from collections.abc import Sequence

from .candidate import Point

VISIBLE, CHANGED = 0.03, 0.15

# A speed that is recommended keeps some way off.
KEPT = 0.1


def meaning(error: float) -> str:
    """Of a relative error (RMS of the difference over RMS of the latent), in words without a full stop."""
    if error < VISIBLE:
        return "no visible difference expected"
    return "small differences in detail" if error < CHANGED else "motion and layout may change"


def good_point(curve: Sequence[Point]) -> Point | None:
    """The fastest point of an error curve that keeps the picture, None where none does."""
    good = [point for point in curve if 0.0 < point.median <= KEPT]
    return max(good, key=lambda point: point.speed, default=None)
