"""`lit-restore status RUN`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_restore.cli.main import main
from lit_restore.io import status


def write(run: Path, code: int) -> None:
    status.write_status(
        run, state="running", code=None, samples_seen=4096, checkpoint="step-000000004096",
        message="",
    )  # fmt: skip
    status.write_end(run, code, "stopped by SIGTERM")


def test_status_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 75)
    assert main(["status", str(tmp_path)]) == 0
    said = "preempted (code 75); 4,096 samples; step-000000004096; stopped by SIGTERM\n"
    assert capsys.readouterr().out == said


def test_should_requeue_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 75)
    codes = [main(["status", str(tmp_path), "--should-requeue"]) for _ in range(4)]
    assert codes == [0, 0, 0, 3]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "start again: stopped by SIGTERM"
    assert lines[3].startswith("leave it: started 3 times at 4096 samples")


@pytest.mark.parametrize("words", [[], ["--should-requeue"]])
def test_a_folder_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["status", str(tmp_path / "none"), *words]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such run folder\n"


def test_a_folder_that_is_no_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "holds no readable STATUS.json" in capsys.readouterr().err
