"""`lit-restore tune`, and the table of measured backends that it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lit_restore.cli import tune
from lit_restore.cli.main import main
from lit_restore.ops.selective_scan import dispatch, tuned
from lit_restore.ops.selective_scan.tuned import Entry, nearest

TABLE = (
    Entry("sm_90", "bfloat16", 1024, 256, {"cuda": 1.0, "triton": 2.0}),
    Entry("sm_90", "bfloat16", 65536, 256, {"cuda": 4.0, "triton": 3.0}),
    Entry("sm_80", "bfloat16", 1024, 256, {"triton": 1.0}),
)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("sm_90", "bfloat16", 1024, 256), "cuda"),
        (("sm_90", "bfloat16", 2000, 500), "cuda"),
        (("sm_90", "bfloat16", 50000, 200), "triton"),
        (("sm_90", "bfloat16", 8192, 256), None),
        (("sm_90", "bfloat16", 1024, 1024), None),
        (("sm_90", "float32", 1024, 256), None),
        (("sm_80", "bfloat16", 1024, 256), "triton"),
        (("sm_120", "bfloat16", 1024, 256), None),
    ],
)
def test_the_nearest_measurement_speaks_within_a_factor_of_two(
    asked: tuple[str, str, int, int], expected: str | None
) -> None:
    assert nearest(TABLE, *asked) == expected


def test_the_table_names_only_backends_that_there_are() -> None:
    for entry in tuned.table():
        assert set(entry.milliseconds) <= set(dispatch.BACKENDS)
        assert entry.dtype in ("float32", "bfloat16", "float16")


def test_measuring_replaces_the_entries_of_its_architecture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tuned.json"
    tune.update(path, TABLE)
    monkeypatch.setattr(tune, "CHANNELS", (8,))
    monkeypatch.setattr(tune, "LENGTHS", (3, 5))
    monkeypatch.setattr(tune, "TYPES", (torch.float32,))
    ran: list[object] = []

    def timer(call: object) -> float:
        ran.append(call)
        call()  # type: ignore[operator]
        return float(len(ran))

    entries = tune.measure("sm_90", ["reference"], "cpu", timer)
    assert [(e.dtype, e.channels, e.length) for e in entries] == [
        ("float32", 8, 3), ("float32", 8, 5),
    ]  # fmt: skip
    assert entries[0].milliseconds == {"reference": 5.5}
    tune.update(path, entries)
    rows = [Entry(**row) for row in json.loads(path.read_text())["entries"]]
    assert rows == [TABLE[2], *entries]
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_gpu_nothing_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == "error: tune: no CUDA device to measure on\n"
