"""What is drawn for a burst: kept with it, so that its picture can be made and its noise known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lit_restore.data.bursts.cameras import draw_ccm, draw_gains
from lit_restore.data.bursts.motion import draw_motion
from lit_restore.data.bursts.noise import draw_noise_levels
from lit_restore.errors import require_at_least


@dataclass(frozen=True, kw_only=True)
class BurstOptions:
    """How bursts are made. The defaults are those of the SyntheticBurst benchmark.

    Raises:
        UserError: a number is negative.
    """

    max_translation: float = 24.0
    """Pixels of the full-size picture, along each axis, uniform in ±."""
    max_rotation: float = 1.0
    """Degrees, uniform in ±."""
    border: int = 24
    """Pixels cut off at each side of the picture; only motion brings them into view."""
    noise: bool = True
    """False: shot and read noise are zero."""

    def __post_init__(self) -> None:
        require_at_least(
            0, max_translation=self.max_translation, max_rotation=self.max_rotation,
            border=self.border,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class BurstParameters:
    """One burst's parameters, or those of a batch with a leading dimension B in every field."""

    rgb_gain: Tensor
    """(): brightness."""
    red_gain: Tensor
    """(): white balance of red against green."""
    blue_gain: Tensor
    """(): white balance of blue against green."""
    ccm: Tensor
    """(3, 3): linear sRGB to camera RGB, rows of sum 1."""
    shot: Tensor
    """(): variance of the shot noise at intensity 1."""
    read: Tensor
    """(): variance of the read noise."""
    motion: Tensor
    """(F, 2, 3): see `motion.draw_motion`."""

    def as_tensors(self) -> dict[str, Tensor]:
        """Field → tensor, for collating and saving; `BurstParameters(**tensors)` is the inverse."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def stack(cls, several: Sequence[BurstParameters]) -> BurstParameters:
        """Those of a batch, from one of each burst, which must have as many frames."""
        rows = [one.as_tensors() for one in several]
        return cls(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def unstack(self) -> list[BurstParameters]:
        """The inverse of `stack`."""
        tensors = self.as_tensors()
        return [
            BurstParameters(**{name: tensor[k] for name, tensor in tensors.items()})
            for k in range(len(self.rgb_gain))
        ]

    def to(self, like: Tensor) -> BurstParameters:
        """In the type and on the device of a tensor."""
        return BurstParameters(**{name: t.to(like) for name, t in self.as_tensors().items()})


def draw_parameters(
    frames: int, generator: torch.Generator, options: BurstOptions | None = None
) -> BurstParameters:
    """Draw a burst's parameters.

    Args:
        frames: frames of the burst.
        generator: all randomness.
        options: None for the defaults.

    Returns:
        One burst's, float32, on the generator's device.
    """
    options = options or BurstOptions()
    rgb, red, blue = draw_gains(generator)
    ccm = draw_ccm(generator)
    # Drawn in any case: a burst without noise is the same burst.
    shot, read = draw_noise_levels(generator)
    motion = draw_motion(frames, options.max_translation, options.max_rotation, generator)
    level = 1.0 if options.noise else 0.0
    return BurstParameters(
        rgb_gain=rgb, red_gain=red, blue_gain=blue, ccm=ccm, shot=level * shot, read=level * read,
        motion=motion,
    )  # fmt: skip
