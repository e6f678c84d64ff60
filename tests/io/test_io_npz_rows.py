"""An array written row by row is numpy's own, whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_restore.io.arrays import locate_rows
from lit_restore.io.npz_rows import NpzRows

ROWS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def written(path: Path) -> bytes:
    with NpzRows(path, "arr_0", ROWS.shape, ROWS.dtype) as rows:
        for row in ROWS:
            rows.write(row)
    return path.read_bytes()


def test_numpy_reads_what_was_written_and_equal_rows_make_equal_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "a.npz") == written(tmp_path / "b.npz")
    with np.load(tmp_path / "a.npz") as held:
        assert held.files == ["arr_0"]
        np.testing.assert_array_equal(held["arr_0"], ROWS)
    assert locate_rows(tmp_path / "a.npz", "arr_0").shape == ROWS.shape
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_an_error_between_the_rows_leaves_an_older_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    before = written(path)

    def fails() -> None:
        with NpzRows(path, "arr_0", ROWS.shape, ROWS.dtype) as rows:
            rows.write(ROWS[1])
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_row_of_another_shape_is_a_bug(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError),
        NpzRows(tmp_path / "a.npz", "arr_0", ROWS.shape, ROWS.dtype) as rows,
    ):
        rows.write(ROWS[0, :2])
