"""W&B mirrors what metrics.jsonl holds; the offline run's own files are read back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import encoded, picture, write_tar
from support_runs import rows, train, write_recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_tar(folder / "t.tar", [(f"{k}.png", encoded(picture(k))) for k in range(9)])
    recipe = write_recipe(tmp_path, folder, wandb={"mode": "offline", "project": "test"})
    run = tmp_path / "run"
    assert train(recipe, run, failpoint="train.step=term@9", seconds=200) == [75]
    assert train(recipe, run, seconds=200) == [0]
    return run


def log_records(log: bytes) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    position, parts = 7, b""
    while position + 7 <= len(log):
        left = 32768 - position % 32768
        if left < 7:  # too short for a record's header: padding
            position += left
            continue
        size, kind = struct.unpack_from("<HB", log, position + 4)
        parts += log[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history(segment: Path) -> tuple[list[dict[str, float]], list[str]]:
    """Scalars of each step, and the names of the pictures, from the offline run's own file."""
    from wandb.proto import wandb_internal_pb2

    scalars, pictures = [], []
    for data in log_records(next(segment.glob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        row = {}
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            value = json.loads(item.value_json)
            if name == "samples/path":
                pictures.append(value)
            elif isinstance(value, int | float):
                row[name] = value
        scalars.append(row)
    return scalars, pictures


def test_scalars_and_grids_are_in_the_offline_run_and_both_parts_have_one_id(run: Path) -> None:
    segments = sorted((run / "wandb").glob("offline-run-*"))
    assert len(segments) == 2, "each part is a segment"
    assert len({segment.name.rsplit("-", 1)[1] for segment in segments}) == 1
    found = [history(segment) for segment in segments]
    mirrored = {
        (row["samples_seen"], name.removeprefix("train/")): value
        for scalars, _ in found
        for row in scalars
        for name, value in row.items()
        if name.startswith("train/")
    }
    train_rows = [row for row in rows(run / "metrics.jsonl") if row["kind"] == "train"]
    assert len(train_rows) == 6
    for row in train_rows:
        assert mirrored[row["samples_seen"], "loss"] == row["loss"]
        assert mirrored[row["samples_seen"], "psnr"] == row["psnr"]
    pictures = [(s, path) for s, (_, paths) in zip(segments, found, strict=True) for path in paths]
    assert len(pictures) == 2
    from PIL import Image

    ours = [np.asarray(Image.open(p)) for p in sorted((run / "samples").glob("*.png"))]
    theirs = [np.asarray(Image.open(segment / "files" / path)) for segment, path in pictures]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
