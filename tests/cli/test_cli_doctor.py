"""`lit-restore doctor`: what it says about the scan."""

from __future__ import annotations

import pytest
import torch

from lit_restore.cli.main import main
from lit_restore.ops.selective_scan import cpu, dispatch


def test_it_says_which_backend_scans_and_why_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cpu, "unavailable", lambda: "no C++ compiler found")
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out.partition("selective scan\n")[2].splitlines()
    rows = dict(line.split(maxsplit=1) for line in told)
    assert rows.pop(dispatch.VARIABLE) == "asks for cpu"
    assert list(rows) == list(dispatch.BACKENDS)
    assert rows["cpu"] == "is not available: no C++ compiler found"
    assert rows["reference"] == "is used"
    assert rows["triton"] == rows["mamba_ssm"] == "does not compute on cpu"
