"""Wavelet packets of token grids, as matrix products.

A packet of J levels splits a grid into 4^J bands: the two-channel filter bank is applied along both
axes, and then to every band of the level before. Bands are in the packet's natural order: each
level is a digit, low 0, detail down the rows 1, detail along the columns 2, both 3 (PyWavelets' a,
h, v, d), the first level's the most significant. It is scaled by 2^-J, so that band 0 is in the
units of the tokens (Haar: their plain mean) and an orthogonal wavelet divides the norm by 2^J.

Layouts: `official` is that of DiMSUM's released models (Phung et al. 2024, arXiv 2411.04168), where
a token holds all bands of one place for every 4^J-th channel; `subband` is what the paper's figure
shows, a window of the grid for each band.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lit_restore.errors import UserError
from lit_restore.ops import filter_banks

LAYOUTS = ("official", "subband")
"""Where the bands may go."""


class WaveletPacket(nn.Module):
    """A packet transform of tokens and its inverse; no parameters, nothing in the state dict.

    With S = 2^levels and coarse place (y, x) in (height/S, width/S):

    `official`: channel m·S² + r of the tokens gives its bands to token (S·y + r // S, S·x + r % S),
    where band b stands at channel b·(channels/S²) + m.
    `subband`: the band of row filter i and column filter j (their J binary digits, low 0, the first
    level's the most significant) fills window (i, j) of the grid: its coefficients at (y, x) are
    token (i·height/S + y, j·width/S + x), channels as they were. Window (0, 0) is the low-pass.

    Haar is one small matrix product between permutations; the other wavelets, with periodic
    borders, are one dense matrix for each axis. Under autocast both run in the lower precision.

    Args:
        height: rows of the grid, a multiple of 2^levels.
        width: columns of the grid, likewise.
        channels: channels of a token; for `official` a multiple of 4^levels.
        wavelet: a discrete wavelet by its PyWavelets name. Where it is not orthogonal, the inverse
            is the inverse matrix.
        levels: J, at least 1.
        layout: a name of `LAYOUTS`.

    Raises:
        UserError: the grid or the channels do not divide so often, or there is no such wavelet or
            layout.
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        *,
        wavelet: str = "haar",
        levels: int = 2,
        layout: str = "official",
    ) -> None:
        super().__init__()
        _check(height, width, channels, levels, layout)
        self.shape = (height * width, channels)
        self.name = f"{height}x{width}x{channels}, {wavelet}, levels={levels}, {layout}"
        grid = _Grid(height, width, channels, 2**levels)
        filter_banks.check(wavelet)
        self.packet: _Packet
        if wavelet not in filter_banks.HAAR:
            self.packet = _PeriodicPacket(grid, wavelet, levels, layout)
        elif layout == "official":
            self.packet = _HaarByPlace(grid, levels)
        else:
            self.packet = _HaarByBand(grid, levels)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, height · width, channels), row-major → coefficients, the same shape."""
        assert x.shape[1:] == self.shape, (x.shape, self.shape)
        return cast("Tensor", self.packet(x))

    def inverse(self, x: Tensor) -> Tensor:
        """Coefficients (B, height · width, channels), as `forward` gives them → the tokens."""
        assert x.shape[1:] == self.shape, (x.shape, self.shape)
        return self.packet.inverse(x)

    def extra_repr(self) -> str:
        """Its options, for printed networks."""
        return self.name


class _Grid:
    """The grid's coarse places and patches."""

    def __init__(self, height: int, width: int, channels: int, side: int) -> None:
        self.height, self.width, self.channels, self.side = height, width, channels, side
        self.rows, self.columns = height // side, width // side

    def by_place(self) -> tuple[int, ...]:
        """Sizes of (y, a, x, c, m, p, q): place (y, x), pixel (a, c), channel m·S² + p·S + q."""
        s = self.side
        return (self.rows, s, self.columns, s, self.channels // s**2, s, s)


class _Packet(nn.Module):
    """A transform of tokens (B, N, C) with an inverse."""

    def inverse(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def keep(self, name: str, matrix: filter_banks.Matrix, dtype: torch.dtype) -> None:
        """Register a matrix where parameters are made; with values also in a network on "meta"."""
        device = torch.get_default_device()
        if device.type == "meta":
            device = torch.device("cpu")
        tensor = torch.as_tensor(matrix, dtype=dtype, device=device)
        self.register_buffer(name, tensor, persistent=False)


class _Haar(_Packet):
    """Haar: the bands of a patch of S × S tokens are a matrix times its pixels."""

    analysis: Tensor
    synthesis: Tensor

    def __init__(self, grid: _Grid, levels: int, bands: npt.NDArray[np.int64] | None) -> None:
        super().__init__()
        self.grid = grid
        axis = filter_banks.packet_matrix("haar", grid.side, levels)
        analysis = np.kron(axis, axis)
        if bands is not None:
            analysis = analysis[bands]
        # Entries ±4^-J and ±1: exact in every floating-point type.
        self.keep("analysis", analysis, torch.float32)
        self.keep("synthesis", analysis.T * grid.side**2, torch.float32)


class _HaarByPlace(_Haar):
    """Layout `official`: one permutation, one product (two levels: H x / 16 of a patch)."""

    def __init__(self, grid: _Grid, levels: int) -> None:
        super().__init__(grid, levels, filter_banks.natural_bands(levels))

    def forward(self, x: Tensor) -> Tensor:
        """Each token (y, p, x, q) collects the S² pixels (a, c) of its channels m."""
        pixels = x.reshape(-1, *self.grid.by_place()).permute(0, 1, 6, 3, 7, 2, 4, 5)
        return _times(self.analysis, self._by_token(pixels, x)).view(x.shape)

    def inverse(self, x: Tensor) -> Tensor:
        rows, s, columns, _, m, _, _ = self.grid.by_place()
        pixels = _times(self.synthesis, self._by_token(x, x))
        pixels = pixels.view(-1, rows, s, columns, s, s, s, m)
        return pixels.permute(0, 1, 5, 3, 6, 7, 2, 4).reshape(x.shape)

    def _by_token(self, values: Tensor, like: Tensor) -> Tensor:
        s = self.grid.side
        return values.reshape(like.shape[0] * like.shape[1], s * s, like.shape[2] // s**2)


class _HaarByBand(_Haar):
    """Layout `subband`; one product, permutations before and after."""

    def __init__(self, grid: _Grid, levels: int) -> None:
        super().__init__(grid, levels, None)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (a, c) of all places and channels → bands (i, j) → windows."""
        g, s = self.grid, self.grid.side
        pixels = x.reshape(-1, g.rows, s, g.columns, s, g.channels).permute(0, 2, 4, 1, 3, 5)
        bands = _times(
            self.analysis, pixels.reshape(len(x), s * s, g.rows * g.columns * g.channels)
        )
        bands = bands.view(-1, s, s, g.rows, g.columns, g.channels)
        return bands.transpose(2, 3).reshape(x.shape)

    def inverse(self, x: Tensor) -> Tensor:
        g, s = self.grid, self.grid.side
        bands = x.reshape(-1, s, g.rows, s, g.columns, g.channels).transpose(2, 3)
        pixels = _times(
            self.synthesis, bands.reshape(len(x), s * s, g.rows * g.columns * g.channels)
        )
        pixels = pixels.view(-1, s, s, g.rows, g.columns, g.channels)
        return pixels.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


class _PeriodicPacket(_Packet):
    """Any wavelet: a dense matrix along the rows and one along the columns, layout `subband`."""

    rows: Tensor
    columns: Tensor
    inverse_rows: Tensor
    inverse_columns: Tensor

    def __init__(self, grid: _Grid, wavelet: str, levels: int, layout: str) -> None:
        super().__init__()
        self.grid = grid
        self.official = layout == "official"
        for name, size in (("rows", grid.height), ("columns", grid.width)):
            matrix = filter_banks.packet_matrix(wavelet, size, levels)
            self.keep(name, matrix, torch.float64)
            self.keep(f"inverse_{name}", np.linalg.inv(matrix), torch.float64)
        self.to_places, self.cube = _regrouping(grid, levels)
        self.to_windows = tuple(int(k) for k in np.argsort(self.to_places))

    def forward(self, x: Tensor) -> Tensor:
        coefficients = self._along_both(x, self.rows, self.columns)
        if not self.official:
            return coefficients
        return coefficients.view(-1, *self.cube).permute(self.to_places).reshape(x.shape)

    def inverse(self, x: Tensor) -> Tensor:
        if self.official:
            sizes = [self.cube[k - 1] for k in self.to_places[1:]]
            x = x.reshape(-1, *sizes).permute(self.to_windows)
        return self._along_both(x, self.inverse_rows, self.inverse_columns)

    def _along_both(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        g, batch = self.grid, len(x)
        x = _times(rows, x.reshape(batch, g.height, g.width * g.channels))
        x = _times(columns, x.view(batch * g.height, g.width, g.channels))
        return x.view(batch, g.height * g.width, g.channels)


def _regrouping(grid: _Grid, levels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layout `subband` → `official` as a permutation of axes.

    Returns:
        The permutation, and the sizes of the axes before it but the batch's: the row filters of
        each level, y, the column filters of each level, x, m, p, q. After it: y, p, x, q, (column
        filter, row filter) of each level, m.
    """
    rows, s, columns, _, m, _, _ = grid.by_place()
    y, x = levels + 1, 2 * levels + 2
    filters = [k for level in range(1, levels + 1) for k in (y + level, level)]
    cube = (*[2] * levels, rows, *[2] * levels, columns, m, s, s)
    return (0, y, x + 2, x, x + 3, *filters, x + 1), cube


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """(K, K) times each of (B, K, n). Not `matmul`, which copies `x` to make one flat product."""
    return torch.bmm(matrix.to(x.dtype).expand(len(x), -1, -1), x)


def _check(height: int, width: int, channels: int, levels: int, layout: str) -> None:
    if layout not in LAYOUTS:
        raise UserError(f"{layout!r} is neither of {', '.join(LAYOUTS)}", where="layout")
    if levels < 1:
        raise UserError(f"{levels} is below 1", where="levels")
    if any(size >> levels << levels != size for size in (height, width)):
        raise UserError(
            f"{levels} do not fit a grid of {height}x{width} tokens, which must be divisible by "
            f"2^{levels}; take fewer levels or another size of input",
            where="levels",
        )
    if layout == "official" and channels >> 2 * levels << 2 * levels != channels:
        raise UserError(
            f"{levels} do not fit {channels} channels on a grid of {height}x{width} tokens: layout "
            f"official needs a multiple of 4^{levels}; take fewer levels, another width or "
            "layout subband",
            where="levels",
        )
