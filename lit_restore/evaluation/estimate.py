"""How much noise a picture holds, from the picture alone."""

from __future__ import annotations

from torch import Tensor


def estimate_sigma(noisy: Tensor) -> float:
    """Standard deviation of white Gaussian noise, in image units.

    The median absolute deviation of the finest diagonal wavelet coefficients (Donoho and Johnstone
    1994), mean over the channels. Fine texture counts as noise; noise that was clipped, compressed
    or smoothed is underestimated.

    Args:
        noisy: (1, C, H, W).
    """
    from skimage.restoration import estimate_sigma as wavelet_mad

    image = noisy[0].permute(1, 2, 0).double().numpy()
    return float(wavelet_mad(image, average_sigmas=True, channel_axis=-1))  # type: ignore[no-untyped-call]
