"""From a picture back to the light a camera saw, and forth again for display.

Brooks et al. 2019, arXiv 1811.11127, section 3. Forth: white balance and brightness, colour
correction, gamma 1/2.2, and the tone curve 3x² - 2x³; back: the inverse of each in the other order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_restore.data.bursts.parameters import BurstParameters

_GAMMA = 2.2
_TINY = 1e-8
"""Below it the gamma curve's slope is without bound."""

_INFLECTION = 0.9
"""Mean intensity above which highlights are kept from being dimmed."""


def unprocess(image: Tensor, parameters: BurstParameters) -> Tensor:
    """A picture as a camera's linear measurement of it.

    Args:
        image: (…, 3, H, W) sRGB in [0, 1].
        parameters: gains and colour matrix, of one burst or of as many as the batch has.

    Returns:
        Linear camera RGB of that shape, in [0, 1].
    """
    linear = inverse_smoothstep(image).clamp(min=_TINY) ** _GAMMA
    camera = apply_matrix(parameters.ccm, linear)
    return _undo_gains(camera, parameters).clamp(0, 1)


def process(linear: Tensor, parameters: BurstParameters) -> Tensor:
    """A linear measurement as a picture for display.

    The inverse of `unprocess` where nothing was clipped and no highlight kept: where the colour-
    corrected picture lies in [0, 1] and its mean over the colours is 0.9 at most.

    Args:
        linear: camera RGB (…, 3, H, W); what white balance brings above 1 is clipped.
        parameters: of `unprocess`.

    Returns:
        sRGB of that shape, in [0, 1].
    """
    balanced = (linear * _gains(parameters).to(linear)).clamp(0, 1)
    display = apply_matrix(torch.linalg.inv(parameters.ccm.to(balanced)), balanced)
    return smoothstep(display.clamp(_TINY, 1) ** (1 / _GAMMA))


def smoothstep(x: Tensor) -> Tensor:
    """The tone curve 3x² - 2x³, from [0, 1] onto [0, 1]."""
    return x * x * (3 - 2 * x)


def inverse_smoothstep(y: Tensor) -> Tensor:
    """1/2 - sin(asin(1 - 2y)/3), after clipping y to [0, 1]."""
    return 0.5 - torch.sin(torch.asin(1 - 2 * y.clamp(0, 1)) / 3)


def apply_matrix(matrix: Tensor, image: Tensor) -> Tensor:
    """Multiply colours: matrix (…, 3, 3) and image (…, 3, H, W) → (…, 3, H, W)."""
    return torch.einsum("...ij,...jhw->...ihw", matrix.to(image), image)


def _gains(parameters: BurstParameters) -> Tensor:
    """(…, 3, 1, 1): what red, green and blue are multiplied by for display."""
    rgb = parameters.rgb_gain
    colours = [rgb * parameters.red_gain, rgb, rgb * parameters.blue_gain]
    return torch.stack(colours, dim=-1)[..., None, None]


def _undo_gains(camera: Tensor, parameters: BurstParameters) -> Tensor:
    """Divide by the gains, but leave highlights at white: a camera would have clipped them there.

    Towards white, mask = (max(mean - 0.9, 0)/0.1)² leads from 1/gain to 1.
    """
    inverse = 1 / _gains(parameters).to(camera)
    mean = camera.mean(dim=-3, keepdim=True)
    mask = ((mean - _INFLECTION).clamp(min=0) / (1 - _INFLECTION)) ** 2
    return camera * torch.maximum(torch.lerp(inverse, torch.ones_like(mask), mask), inverse)
