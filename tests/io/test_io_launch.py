"""The rank that a launcher gives, known before the processes join."""

from __future__ import annotations

import pytest

from lit_restore.io.launch import launch_rank


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 5),
        ({"RANK": "8", "LOCAL_RANK": "0"}, 8),  # the first process of the second node
        ({"SLURM_PROCID": "3", "LOCAL_RANK": "0"}, 3),
        ({"LOCAL_RANK": "2"}, 2),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 1),
        ({"LOCAL_RANK": "x"}, 0),
    ],
)
def test_the_launcher_gives_the_rank(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: int
) -> None:
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch_rank() == rank
