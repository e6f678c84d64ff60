"""`train.py`: read the configs as text, pick the training they name, run it, say how it ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from lit_restore.cli.entry import guarded
from lit_restore.errors import ExitCode, LitRestoreError, Preempted, UserError
from lit_restore.io import signals, status
from lit_restore.io.launch import launch_rank
from lit_restore.io.yaml import read_yaml

TRUST = "--trust_config"
"""Lets configs name any class; only ever given by hand."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one training command; returns its exit code and leaves STATUS.json in the run folder."""
    words = sys.argv[1:] if argv is None else list(argv)
    signals.install()
    return guarded(lambda: _main(words))


def _main(argv: list[str]) -> int:
    if not argv:
        raise UserError("no command is given; try: python train.py fit -c configs/quickstart.yaml")
    trees = [(path, read_yaml(path)) for path in config_files(argv)]
    if "fit" not in argv:
        return _train(argv, trees)
    run_dir = Path(setting(argv, trees, "run_dir") or "runs/default")
    try:
        code = _train(argv, trees)
    except (LitRestoreError, KeyboardInterrupt) as error:
        code = error.code if isinstance(error, LitRestoreError) else ExitCode.INTERRUPTED
        if code != ExitCode.RANK_LOST:  # told by callbacks.watch, which knows of whom
            _tell(run_dir, code, str(error))
        raise
    except Exception as error:
        _tell(run_dir, ExitCode.BUG, f"{type(error).__name__}: {error}")
        raise
    if not {"--help", "-h"} & set(argv) and not any(w.startswith("--print_config") for w in argv):
        _tell(run_dir, ExitCode.OK, "")
    return code


def _train(argv: list[str], trees: list[tuple[str, dict[str, object]]]) -> int:
    from lit_restore.cli import gate

    if TRUST in argv:
        argv = [word for word in argv if word != TRUST]
        gate.open_gate()
    else:
        for path, tree in trees:
            gate.check_class_paths(tree, path)
        gate.close_gate()
    if signals.requested():
        raise Preempted("stopped before the first step; nothing to save")
    os.environ.setdefault("WDS_SECURE", "1")
    from lit_restore.cli.quiet import quieten
    from lit_restore.cli.restore_cli import RestoreCLI
    from lit_restore.training import TASKS

    quieten()  # Lightning sets its own levels on import

    task = setting(argv, trees, "task")
    if task is None and not trees:
        task = "denoiser"  # for --help
    if task not in TASKS:
        raise UserError(
            f"{task!r} is no training; use one of: {', '.join(TASKS)}"
            if task
            else f"no training is named; use -c a recipe, or --task {' | '.join(TASKS)}",
            where="task",
        )
    RestoreCLI(TASKS[task], argv, trees)
    return int(ExitCode.OK)


def config_files(argv: Sequence[str]) -> list[str]:
    """The files given with -c or --config, in order."""
    files = []
    for word, following in zip_longest(argv, argv[1:]):
        if word in ("-c", "--config"):
            if following is None:
                raise UserError("names no file", where=word)
            files.append(following)
        elif word.startswith("-c") and not word.startswith("--"):
            raise UserError("put a space between -c and the file", where=word)
        elif word.startswith("--config="):
            files.append(word.partition("=")[2])
    return files


def setting(
    argv: Sequence[str], trees: Sequence[tuple[str, dict[str, object]]], key: str
) -> str | None:
    """A top-level setting before any parser exists: the last config that has it, or the option."""
    value: object = None
    for _, tree in trees:
        value = tree.get(key, value)
    for word, following in zip_longest(argv, argv[1:]):
        if word == f"--{key}":
            value = following
        elif word.startswith(f"--{key}="):
            value = word.partition("=")[2]
    return None if value is None else str(value)


def _tell(run_dir: Path, code: int, message: str) -> None:
    """STATUS.json of a run that ended, by rank 0."""
    if launch_rank() == 0:
        status.write_end(run_dir, code, message)
