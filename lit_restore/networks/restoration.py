"""One face for every restoration network, ours or foreign: R(y) ≈ E[x | y].

Whatever size, channels and precision a network wants, it is called with images in [0, 1] of any
size. Padding is by reflection at the bottom and the right, and only where a side is no multiple (or
below the minimum) of what the network takes; SwinIR's own script pads a whole window more even
where nothing is missing, which changes its output slightly.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.networks.base import reflect_to, require_counts
from lit_restore.networks.tiling import overlap_of, tile_for, tiled

Grey = Literal["refuse", "repeat"]
OVERLAP = 32
"""Overlap of tiles by default, pixels of the degraded image."""


class RestorationNetwork(nn.Module):
    """A restoration network and what has to be known to call it.

    Args:
        net: (B, in_channels, h, w) in [0, 1] → (B, out_channels, scale · h, scale · w).
        name: for error lines.
        scale: how many times larger the output is.
        in_channels: of the degraded image.
        out_channels: of the restored image; none for `in_channels`.
        multiple: height and width that `net` takes are multiples of it.
        minimum: the least height and width that it takes.
        square: it takes square images alone.
        autocast: types in which it may run under autocast; under another it runs in float32 (FFTs
            and attention of some networks overflow or fail in fewer bits).
        tile: largest side that goes through in one piece, in pixels of the degraded image, rounded
            up to `multiple`; larger images are cut into tiles. None for no tiles.
        overlap: of neighbouring tiles, likewise rounded up; see `networks.tiling`.
        grey: what a 1-channel image does to a network of 3: it is refused, or repeated on the way
            in and averaged on the way out.
        frozen: always in evaluation mode, its parameters without gradients, and no gradient
            through it to its input. Without, it is an ordinary module.

    Raises:
        UserError: a number is not positive, or tiles are no larger than their overlap or the
            minimum.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        scale: int = 1,
        in_channels: int = 3,
        out_channels: int | None = None,
        multiple: int = 1,
        minimum: int = 1,
        square: bool = False,
        autocast: Collection[torch.dtype] = (torch.bfloat16, torch.float16),
        tile: int | None = None,
        overlap: int = OVERLAP,
        grey: Grey = "refuse",
        frozen: bool = True,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        require_counts(
            scale=scale, in_channels=in_channels, out_channels=out_channels, multiple=multiple
        )
        self.net = net
        self.name, self.scale, self.frozen, self.grey = name, scale, frozen, grey
        self.in_channels, self.out_channels = in_channels, out_channels
        self.multiple, self.minimum, self.square = multiple, _up(max(1, minimum), multiple), square
        self.autocast = frozenset(autocast)
        self.set_tile(tile, overlap)
        if frozen:
            self.freeze()

    def freeze(self, frozen: bool = True) -> None:
        """Evaluation mode for good and no gradients, or with False an ordinary module again."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        self.train(False)

    def set_tile(self, tile: int | None, overlap: int = OVERLAP) -> None:
        """Cut images above `tile` pixels a side into tiles from now on; None for no tiles.

        Raises:
            UserError: tiles no larger than their overlap, or than the network's least size.
        """
        if overlap < 0:
            raise UserError(f"{overlap} is below 0", where="overlap")
        self.overlap = _up(overlap, self.multiple)
        self.tile = None if tile is None else _up(tile, self.multiple)
        least = max(self.overlap + 1, self.minimum)
        if self.tile is not None and self.tile < least:
            raise UserError(
                f"{tile} is too small for {self.name} with an overlap of {self.overlap}; "
                f"give at least {_up(least, self.multiple)}",
                where="tile",
            )

    def tile_output(self, degraded: Tensor, tile: int | None = None) -> int | None:
        """Cut into tiles what is too large for one piece, as `tiling.tile_for` decides.

        Args:
            degraded: (B, C, h, w), the images to come.
            tile: side in pixels of the output.

        Returns:
            The side of the tiles, in pixels of the output; None for one piece.
        """
        height, width = (self.scale * side for side in degraded.shape[-2:])
        side = tile_for(height, width, tile)
        if side is None:
            self.set_tile(None)
        else:
            self.set_tile(-(-side // self.scale), -(-overlap_of(side) // self.scale))
        return side

    def train(self, mode: bool = True) -> RestorationNetwork:
        """Evaluation mode whatever is asked, where it is frozen."""
        return super().train(mode and not self.frozen)

    def forward(self, degraded: Tensor) -> Tensor:
        """E[clean image | degraded image].

        Args:
            degraded: (B, C, h, w) float, in [0, 1] up to noise; C the network's, or 1 where grey
                images are repeated.

        Returns:
            (B, C', scale · h, scale · w), C' being `out_channels` (1 for a repeated image); not
            clipped, of the type of `degraded` (under autocast too).

        Raises:
            UserError: an image of other channels or without pixels, or the output is not of
                `scale`.
        """
        repeated = self._check(degraded)
        images = degraded.expand(-1, self.in_channels, -1, -1) if repeated else degraded
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            restored = self._any_size(images)
        return restored.mean(1, keepdim=True) if repeated else restored

    def _check(self, degraded: Tensor) -> bool:
        """Whether a grey image is to be repeated."""
        assert degraded.is_floating_point(), degraded.dtype
        if degraded.ndim != 4 or not all(degraded.shape[-2:]):
            shape = "x".join(map(str, degraded.shape))
            raise UserError(f"takes images (B, C, h, w), given {shape}", where=self.name)
        channels = degraded.shape[1]
        if channels == self.in_channels:
            return False
        if channels == 1 and self.in_channels == 3:
            if self.grey == "repeat":
                return True
            mend = "; convert it to RGB, or repeat its channel (grey: repeat)"
        else:
            mend = ""
        raise UserError(
            f"takes images of {_channels(self.in_channels)}, given {_channels(channels)}{mend}",
            where=self.name,
        )

    def _any_size(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.tile is None or max(height, width) <= self.tile:
            return self._padded(images)
        return tiled(
            self._padded,
            reflect_to(images, *self._taken(height, width)),
            scale=self.scale,
            tile=self.tile,
            overlap=self.overlap,
        )[..., : self.scale * height, : self.scale * width]

    def _padded(self, images: Tensor) -> Tensor:
        """One pass: padded to what the network takes, and cut back."""
        height, width = images.shape[-2:]
        padded = reflect_to(images, *self._taken(height, width))
        restored = self._in_its_precision(padded)
        wanted = tuple(self.scale * side for side in padded.shape[-2:])
        if tuple(restored.shape[-2:]) != wanted or restored.shape[1] != self.out_channels:
            raise UserError(
                f"gave {_shape(restored)} for {_shape(padded)}; "
                f"expected {_channels(self.out_channels)} and a scale of {self.scale}",
                where=self.name,
            )
        return restored[..., : self.scale * height, : self.scale * width].to(images.dtype)

    def _taken(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = (_up(max(n, self.minimum), self.multiple) for n in (height, width))
        return (max(rows, columns),) * 2 if self.square else (rows, columns)

    def _in_its_precision(self, images: Tensor) -> Tensor:
        kind = images.device.type
        free = torch.is_autocast_enabled(kind)
        if free and torch.get_autocast_dtype(kind) not in self.autocast:
            with torch.autocast(kind, enabled=False):
                island: Tensor = self.net(images.float())
            return island
        out: Tensor = self.net(images)
        return out

    def extra_repr(self) -> str:
        """What printing it tells."""
        tile = "" if self.tile is None else f", tile {self.tile} with overlap {self.overlap}"
        return (
            f"{self.name}, scale {self.scale}, channels {self.in_channels} to {self.out_channels}, "
            f"multiple {self.multiple}{tile}"
        )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _channels(count: int) -> str:
    return f"{count} channel" if count == 1 else f"{count} channels"


def _shape(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))
