"""Each failpoint of a save, with each way to fail there: what is left, in a process of its own."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_restore.errors import UserError
from lit_restore.io import failpoints, folder

STEP = re.compile(r"step-\d+")
PACKAGE = Path(folder.__file__).parents[1]

SAVE_TWO_OVER_ONE = """
import sys
from pathlib import Path
from lit_restore.io import folder

root = Path(sys.argv[1])
draft = folder.Draft.begin(root / "step-2")
try:
    draft.write("network.safetensors", b"weights two")
    draft.write("state.json", "{}")
    draft.publish()
except OSError as error:
    draft.abandon()
    sys.exit(f"save failed: {error}")
folder.discard(root / "step-1")
"""

BEFORE, BOTH, AFTER = ["step-1"], ["step-1", "step-2"], ["step-2"]
LEFT = {
    "ckpt.write": BEFORE,
    "ckpt.fsync": BEFORE,
    "ckpt.manifest": BEFORE,
    "ckpt.complete": BEFORE,
    "ckpt.draft": BEFORE,
    "ckpt.rename": BEFORE,
    "ckpt.parent": BOTH,
    "ckpt.drop": BOTH,
    "ckpt.unlink": AFTER,
}
"""Which saves are there after a failure at the point."""
CODES = {"kill": -9, "term": -15, "exit": 1, "eio": 1, "enospc": 1, "raise": 1}


def save(target: Path, text: str) -> None:
    draft = folder.Draft.begin(target)
    draft.write("network.safetensors", text)
    draft.publish()


def run(root: Path, spec: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SAVE_TWO_OVER_ONE, str(root)],
        env={**os.environ, failpoints.VARIABLE: spec, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def verified(root: Path) -> list[str]:
    found = folder.complete(root, STEP)
    for path in found:
        folder.verify(path)
    return [path.name for path in found]


# Leaving by another way takes the same path as `kill`, another error the same as `eio`: two points
# stand for all.
CASES = [
    (point, action)
    for point in LEFT
    for action in CODES
    if action in ("kill", "eio", "raise") or point in ("ckpt.fsync", "ckpt.rename")
]


@pytest.mark.parametrize(("point", "action"), CASES)
def test_what_is_left_after_a_failure_at_each_point(tmp_path, point, action):
    save(tmp_path / "step-1", "weights one")
    result = run(tmp_path, f"{point}={action}")
    assert result.returncode == CODES[action], result.stderr
    assert result.stderr.startswith(f"lit_restore: failpoints are active: {point}={action}\n")
    assert verified(tmp_path) == LEFT[point]
    folder.sweep(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == LEFT[point]


def test_without_the_variable_nothing_happens_and_nothing_is_said(tmp_path):
    save(tmp_path / "step-1", "weights one")
    result = run(tmp_path, "")
    assert (result.returncode, result.stderr, verified(tmp_path)) == (0, "", AFTER)
    assert failpoints.hit is failpoints._hit_nothing


def test_every_point_of_a_save_has_an_outcome_here():
    assert set(LEFT) == {name for name in failpoints.POINTS if name.startswith("ckpt.")}


def used() -> list[tuple[str, ast.expr]]:
    """(place, argument) of every failpoint in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "failpoints"
                and node.func.attr in ("hit", "fires")
            ):
                found.append((f"{path.name}:{node.lineno}", node.args[0]))
    return found


def test_the_list_of_failpoints_is_what_the_source_uses():
    names = set()
    for place, argument in used():
        assert isinstance(argument, ast.Constant), f"{place}: a failpoint's name is a literal"
        names.add(argument.value)
    assert names == set(failpoints.POINTS)


# The language -------------------------------------------------------------------------------------


def passages(spec: str, name: str = "train.loss_nan", times: int = 12) -> list[int]:
    """At which passages (from 1) `fires` was true."""
    with failpoints.armed(spec):
        return [n for n in range(1, times + 1) if failpoints.fires(name)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train.loss_nan=nan", [1]),
        ("train.loss_nan=nan@3", [3]),
        ("train.loss_nan=nan@10x2", [10, 11]),
        ("train.loss_nan=nan@11x*", [11, 12]),
        ("train.loss_nan=nan x3", [1, 2, 3]),
        ("train.loss_nan=nan@2; train.loss_nan=nan@5", [2, 5]),
        ("train.loss_nan=sleep:0@1x2;train.loss_nan=nan@2", [2]),
        ("train.step=nan", []),
        ("train.loss_nan=nan@2 rank=0", [2]),
        ("train.loss_nan=nan@2 rank=1", []),
    ],
)
def test_which_passages_a_clause_means(monkeypatch, spec, expected):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert passages(spec) == expected


def test_a_clause_for_a_rank_acts_in_that_rank_only(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert passages("train.loss_nan=nan@2 rank=1") == [2]
    assert passages("train.loss_nan=nan@2 rank=0") == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ckpt.rname=kill", "no failpoint ckpt.rname; there are ckpt.write"),
        ("ckpt.rename=explode", "no action explode; there are kill"),
        ("ckpt.rename", '"ckpt.rename" is not name=action'),
        ("ckpt.rename=kill@", '"ckpt.rename=kill@" is not name=action'),
    ],
)
def test_a_wrong_clause_is_refused(spec, message):
    with (
        pytest.raises(UserError, match=re.escape(f"LIT_RESTORE_FAILPOINTS: {message}")),
        failpoints.armed(spec),
    ):
        pass


def test_errors_name_their_failpoint_and_their_kind():
    with failpoints.armed("shard.read=eio"), pytest.raises(OSError, match=r"shard\.read") as info:
        failpoints.hit("shard.read")
    assert info.value.errno == 5
    with failpoints.armed("shard.read=raise"), pytest.raises(RuntimeError, match=r"shard\.read"):
        failpoints.hit("shard.read")
    failpoints.hit("shard.read")  # disarmed
