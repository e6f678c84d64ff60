"""`lit-restore COMMAND`: the commands beside training and evaluation.

Each command is a module with `register(parser)`, which declares its arguments, and `run(args)`,
which returns an exit code. Modules are imported only when their command is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lit_restore import __version__
from lit_restore.cli.entry import OneLineArguments, guarded

COMMANDS = {
    "shards": ("lit_restore.cli.shards", "make, encode, restore, inspect and verify data shards"),
    "sample": ("lit_restore.cli.sample", "make pictures with a generative training"),
    "denoise": ("lit_restore.cli.denoise", "remove noise from your own photos"),
    "restore": ("lit_restore.cli.restore", "restore your own degraded pictures (DP-IR)"),
    "sweep-tau": ("lit_restore.cli.sweep_tau", "draw fidelity against perception over tau (DP-IR)"),
    "export": ("lit_restore.cli.export", "turn a checkpoint into one safetensors file"),
    "convert": ("lit_restore.cli.convert", "turn another project's weights into one of ours"),
    "import-weights": ("lit_restore.cli.import_weights", "bring in what perceptual metrics need"),
    "status": ("lit_restore.cli.status", "say how a run stands, and whether to start it again"),
    "tune": ("lit_restore.cli.tune", "measure the selective scan's backends on this GPU"),
    "doctor": ("lit_restore.cli.doctor", "say what this machine has and what will be used"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return guarded(lambda: _main(sys.argv[1:] if argv is None else list(argv)))


def _main(argv: list[str]) -> int:
    parser = OneLineArguments(prog="lit-restore", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"lit-restore {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            importlib.import_module(module).register(sub)
    args = parser.parse_args(argv)
    result: int = importlib.import_module(COMMANDS[args.command][0]).run(args)
    return result


if __name__ == "__main__":
    sys.exit(main())
