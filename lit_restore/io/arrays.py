"""`.npy` arrays from strangers: no pickles, no allocation that the bytes do not cover."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt

from lit_restore.errors import UserError


def parse_npy(data: bytes, *, name: str) -> npt.NDArray[np.generic]:
    """The array in the bytes of a `.npy` file.

    Args:
        data: the whole file.
        name: named in the error line.

    Raises:
        UserError: not `.npy`, holds Python objects, or is shorter or longer than it says.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
    except (ValueError, EOFError):
        raise UserError("not a readable .npy array", where=name) from None
    if dtype.hasobject:
        raise UserError("holds Python objects, refused", where=name)
    needed, held = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if needed != held:
        raise UserError(f"needs {needed} bytes for {shape}, has {held}", where=name)
    stream.seek(0)
    array: npt.NDArray[np.generic] = np.load(stream, allow_pickle=False)
    return array
