"""A killed evaluation goes on to the same rows; a run folder knows what it is of."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support_evaluation import KillingDisk, pixels_of, run, write_network, write_pictures
from support_fork import fork, wait_all

from lit_restore.errors import UserError
from lit_restore.evaluation import rows as rows_module
from lit_restore.evaluation.rows import TIMING, Row, RowWriter, csv_text, read_rows
from lit_restore.io import fs, images
from lit_restore.io.disk import Disk

KILLS = 10


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An evaluation of 14 rows in five parts."""
    monkeypatch.setattr(rows_module, "_ROWS", 3)
    data = write_pictures(tmp_path / "data", ["a", "b/c", "b/d", "e", "f", "g", "h"])
    network = write_network(tmp_path / "net.safetensors")
    words = ["run", "--protocol", "denoise-25", "--pictures", "1"]
    return [*words, "--data", str(data), "--ckpt", str(network)]


def untimed(out: Path) -> list[dict[str, str]]:
    table = list(csv.DictReader((out / "rows.csv").read_text().splitlines()))
    return [{k: v for k, v in row.items() if k not in TIMING} for row in table]


def drafts(out: Path) -> list[Path]:
    return list(out.rglob("tmp-*"))


def evaluate_and_die(arguments: list[str], out: Path, at: int) -> int:
    def child() -> int:
        with fs.using(KillingDisk(at)):
            return run(*arguments, "--out", out, "--resume")

    return wait_all([fork(child, env={}, output=out.parent / "log")], 60)[0]


def test_killed_anywhere_and_resumed_gives_the_same_rows(
    arguments: list[str], tmp_path: Path
) -> None:
    counting = KillingDisk()
    with fs.using(counting):
        assert run(*arguments, "--out", tmp_path / "whole") == 0
    whole = tmp_path / "whole"
    expected = untimed(whole)
    assert len(expected) == 14
    assert len(list((whole / "rows").iterdir())) == 5
    rng = random.Random(3)
    moments = sorted(rng.sample(range(1, counting.count + 1), KILLS))
    for at in moments:
        out = tmp_path / f"killed-{at}"
        assert evaluate_and_die(arguments, out, at) == -signal.SIGKILL, (at, moments)
        # Once more, into the work of the second process.
        second = evaluate_and_die(arguments, out, 5)
        assert second in (-signal.SIGKILL, 0)
        assert run(*arguments, "--out", out, "--resume") == 0
        assert untimed(out) == expected, (at, moments)
        assert not drafts(out), (at, moments)
        assert read_rows(out) != []


def test_resuming_a_finished_run_measures_nothing_again(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(*arguments, "--out", out) == 0
    before = (out / "rows.csv").read_bytes()
    monkeypatch.setattr("lit_restore.evaluation.loop.scores", None)
    assert run(*arguments, "--out", out, "--resume") == 0
    assert (out / "rows.csv").read_bytes() == before  # timing and all


def test_parts_without_a_rename_would_not_survive(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def in_place(path: Path, data: bytes | str) -> None:
        if Path(path).suffix != ".jsonl":
            fs_write(path, data)
            return
        with fs.HashingFile(path) as file, fs.using(KillingDisk(at=1)):
            file.write(str(data).encode())

    fs_write = fs.write_atomic

    def child() -> int:
        fs.write_atomic = in_place
        return run(*arguments, "--out", out)

    assert wait_all([fork(child, env={}, output=tmp_path / "log")], 60) == [-signal.SIGKILL]
    with pytest.raises(UserError, match="is no row; was it edited"):
        read_rows(out)
    assert run(*arguments, "--out", out, "--resume") == 2


def test_a_changed_png_is_made_again(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*arguments, "--out", out) == 0
    expected = untimed(out)
    target = next((out / "png").rglob("c.png"))
    original = target.read_bytes()
    images.write_png(target, np.zeros((24, 28, 3), np.uint8))
    (out / "png" / "noisy" / "sigma25" / "seed0" / "a.png").unlink()
    assert run(*arguments, "--out", out, "--resume") == 0
    assert target.read_bytes() == original
    assert untimed(out) == expected


def test_metrics_come_from_the_png(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*arguments, "--out", tmp_path / "a") == 0

    def darker(path: Path, pixels: np.ndarray) -> None:
        fs.write_atomic(path, images.png_bytes(pixels // 2))

    monkeypatch.setattr(images, "write_png", darker)
    assert run(*arguments, "--out", tmp_path / "b") == 0
    for row, spoilt in zip(untimed(tmp_path / "a"), untimed(tmp_path / "b"), strict=True):
        assert float(spoilt["psnr_rgb_b0"]) < float(row["psnr_rgb_b0"]) - 3


def test_ctrl_c_keeps_the_rows_so_far(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = fs.write_atomic

    def interrupted(path: Path, data: bytes | str) -> None:
        if Path(path).name == "e.png":
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(fs, "write_atomic", interrupted)
    assert run(*arguments, "--out", out) == 130
    monkeypatch.undo()
    assert len(read_rows(out)) == 6
    assert run(*arguments, "--out", out, "--resume") == 0
    assert len(read_rows(out)) == 14


def test_full_disk_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(Disk):
        writes = 0

        def write(self, fd: int, data: memoryview) -> None:
            self.writes += 1
            if self.writes > 12:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(fd, data)

    with fs.using(Full()):
        assert run(*arguments, "--out", tmp_path / "out") == 74
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot write (No space left on device); free some space, or choose another" in error
    assert run(*arguments, "--out", tmp_path / "out", "--resume") == 0


# The run's identity -------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_another_evaluation_is_refused_by_what_differs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(*arguments, "--out", out) == 0
    again = [*arguments, "--out", str(out), "--resume"]
    assert "exists; go on with --resume" in refusal(capsys, *again[:-1])
    assert "seeds: [0], now [0, 1]" in refusal(capsys, *again, "--seeds", "0,1")
    assert "flags.batch: 1, now 2" in refusal(capsys, *again, "--batch", "2")
    other = ["denoise-50" if word == "denoise-25" else word for word in again]
    assert 'protocol.name: "denoise-25", now "denoise-50"' in refusal(capsys, *other)
    write_network(tmp_path / "net.safetensors", seed=1)
    assert "methods.net.sha256: " in refusal(capsys, *again)
    write_network(tmp_path / "net.safetensors")
    write_pictures(tmp_path / "data", ["new"])
    assert "data: new new" in refusal(capsys, *again)
    (tmp_path / "data" / "new.png").rename(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "b" / "c.png").unlink()
    message = refusal(capsys, *again)
    assert "data: b/c no longer there" in message
    # picture 0 is what a.png was all along
    assert "data: a changed" not in message
    write_pictures(tmp_path / "data", ["x", "b/c"])
    (tmp_path / "data" / "x.png").unlink()
    assert "data: b/c changed" not in refusal(capsys, *again, "--seeds", "1")
    assert run(*again) == 0


def test_the_run_id_is_that_of_the_content_not_of_the_place(
    arguments: list[str], tmp_path: Path
) -> None:
    ids = []
    for name in ("one", "two"):
        moved = tmp_path / name
        moved.mkdir()
        (tmp_path / "data").rename(moved / "data")
        words = [w.replace(str(tmp_path / "data"), str(moved / "data")) for w in arguments]
        assert run(*words, "--out", moved / "out") == 0
        (moved / "data").rename(tmp_path / "data")
        ids.append(json.loads((moved / "out" / "run.json").read_text())["run_id"])
    assert ids[0] == ids[1]
    assert len(ids[0]) == 64


def test_a_folder_that_is_no_run_is_left_alone(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"")
    for words in (["--resume"], []):
        message = refusal(capsys, *arguments, "--out", out, *words)
        assert "holds no run.json, so is no evaluation; choose another --out" in message
    assert [path.name for path in out.iterdir()] == ["holiday.jpg"]


def test_two_processes_do_not_share_a_run_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_restore.io.lock import RunLock

    out = tmp_path / "out"
    assert run(*arguments, "--out", out) == 0
    with RunLock(out):
        assert "in use by pid" in refusal(capsys, *arguments, "--out", out, "--resume")


# Rows ---------------------------------------------------------------------------------------------


def row(key: str, value: float = 1.0, seconds: float = 0.5) -> Row:
    return Row(key=key, method="m", metrics={"psnr_rgb_b0": value}, seconds=seconds)


def test_a_part_holds_at_most_64_rows_or_30_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(rows_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with RowWriter(tmp_path) as writer:
        for number in range(70):
            writer.add(row(f"{number:03d}"))
        assert len(read_rows(tmp_path)) == 64
        clock[0] = 31.0
        writer.add(row("070"))
        assert len(read_rows(tmp_path)) == 71
        writer.add(row("071"))
    names = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert names == [f"part-0000-{number:06d}.jsonl" for number in range(3)]
    with RowWriter(tmp_path, rank=1) as writer:
        writer.add(row("072"))
    assert len(read_rows(tmp_path)) == 73


def test_rows_survive_an_error_of_the_caller(tmp_path: Path) -> None:
    def caller() -> None:
        with RowWriter(tmp_path) as writer:
            writer.add(row("a"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        caller()
    assert read_rows(tmp_path) == [row("a")]


def test_unequal_duplicates_are_an_error_but_not_in_time(tmp_path: Path) -> None:
    for value, seconds in ((1.0, 0.5), (1.0, 0.7)):
        with RowWriter(tmp_path) as writer:
            writer.add(row("a", value, seconds))
    assert read_rows(tmp_path) == [row("a")]
    with RowWriter(tmp_path) as writer:
        writer.add(row("a", 1.0000000000000002))
    with pytest.raises(UserError, match="another row for"):
        read_rows(tmp_path)


def test_csv_holds_floats_by_repr_and_words_for_blanks() -> None:
    rows = [
        row("a", 1 / 3),
        dataclasses.replace(row("b"), metrics={}, blanks={"psnr_rgb_b0": "too, small"}),
        Row(key="c", method="m", error='not "readable"'),
    ]
    text = csv_text(rows, ["psnr_rgb_b0"])
    table = list(csv.DictReader(text.splitlines()))
    assert table[0]["psnr_rgb_b0"] == "0.3333333333333333"
    assert (table[1]["psnr_rgb_b0"], table[1]["blanks"]) == ("", "psnr_rgb_b0: too, small")
    assert table[2]["error"] == 'not "readable"'
    header = text.partition("\n")[0]
    assert header.endswith(",seconds")
    assert csv_text(rows, ["psnr_rgb_b0"], timing=False).partition("\n")[0] == header[:-8]


def test_outputs_are_the_size_of_the_pictures(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(*arguments, "--out", out) == 0
    written = list((out / "png").rglob("*.png"))
    assert len(written) == 14
    assert {pixels_of(path).shape for path in written} == {(24, 28, 3)}
