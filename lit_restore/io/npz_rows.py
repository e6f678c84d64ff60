"""An `.npz` of one array that is written row by row."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_restore.io import fs


class NpzRows:
    """An uncompressed `.npz` of one array, written row by row: it may be larger than memory.

    Equal rows make equal bytes. As a context manager the file appears wholly at its end, or not at
    all.

    Args:
        target: the file.
        name: of the array.
        shape: of the array, rows first.
        dtype: of its numbers.

    Raises:
        OSError: the disk refused.
    """

    def __init__(
        self, target: Path, name: str, shape: Sequence[int], dtype: np.dtype[np.generic]
    ) -> None:
        self.target, self._draft = target, fs.temporary(target)
        self._files = ExitStack()
        self._name, self._shape, self._dtype = f"{name}.npy", tuple(shape), dtype

    def __enter__(self) -> NpzRows:
        with ExitStack() as files:
            files.push(self._publish)
            file = files.enter_context(fs.HashingFile(self._draft))
            archive = files.enter_context(zipfile.ZipFile(_Appending(file), "w"))
            member = zipfile.ZipInfo(self._name)  # of 1 January 1980
            self._array = files.enter_context(archive.open(member, "w", force_zip64=True))
            about = {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": self._shape,
            }
            np.lib.format.write_array_header_1_0(self._array, about)
            self._files = files.pop_all()
        return self

    def write(self, row: npt.NDArray[np.generic]) -> None:
        """Append a row."""
        assert row.shape == self._shape[1:], (row.shape, self._shape)
        self._array.write(np.ascontiguousarray(row, self._dtype).tobytes())

    def __exit__(self, *error: object) -> None:
        self._files.__exit__(*error)  # type: ignore[arg-type]

    def _publish(self, kind: object, *_: object) -> None:
        """After the file is closed: give it its name, or drop what an error left."""
        if kind is None:
            fs.rename(self._draft, self.target)
            fs.fsync_dir(self.target.parent)
            return
        with suppress(OSError):
            fs.remove_file(self._draft)


class _Appending(io.RawIOBase):
    """A `HashingFile` as `zipfile` wants it: nothing is sought."""

    def __init__(self, file: fs.HashingFile) -> None:
        self.file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()
