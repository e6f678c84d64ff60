"""`evaluate.py sets`: distances between sets of pictures, such as FID."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lit_restore.errors import ExitCode
from lit_restore.evaluation import given

_EXPLANATION = """\
A set is a folder of shards (a pattern or URL of them too), a folder of pictures with all below it,
a folder of `lit-restore sample`, or samples.npz (arr_0, uint8). Exit code 3: damaged pictures were
left out, as --max_bad allows."""


def register(commands: Any) -> None:
    """Declare the command among the `commands` of a parser."""
    parser = commands.add_parser(
        "sets", help="how far sets of pictures are from a real one", epilog=_EXPLANATION
    )
    add = parser.add_argument
    add("--real", required=True, type=given.text, metavar="SET", help="the real pictures")
    add(
        "--fake",
        required=True,
        action="append",
        type=given.text,
        metavar="[NAME=]SET",
        help="pictures to measure; again for another row",
    )
    add(
        "--features",
        required=True,
        type=given.text,
        metavar="NAME[:FILE]",
        help="pixels, squeezenet:FILE[:MEMBER] or inception:FILE",
    )
    add(
        "--metrics",
        type=given.names,
        default=("fd", "kid", "precision", "recall"),
        metavar="A,B",
        help="fd,kid,precision,recall (default), fd_infinity, density, coverage",
    )
    add("--count", type=int, metavar="N", help="pictures drawn at random from each set")
    add("--seed", type=int, default=0, help="of that draw, and of KID's subsets (default 0)")
    add(
        "--max_bad",
        type=int,
        default=0,
        metavar="N",
        help="damaged pictures to leave out (default 0)",
    )
    add("--background", metavar="COLOUR", help="to lay transparent pictures on")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--out", type=given.path, metavar="FOLDER", help="for table.md, table.csv and sets.json")


def run(args: argparse.Namespace, command: str) -> int:
    """Compare, print the table; exit code 3 where pictures were left out."""
    from lit_restore.evaluation.set_table import plain_text
    from lit_restore.evaluation.sets import SetsOptions, compare_sets

    outcome = compare_sets(
        SetsOptions(
            real=args.real,
            fakes=tuple(args.fake),
            features=args.features,
            metrics=args.metrics,
            count=args.count,
            seed=args.seed,
            max_bad=args.max_bad,
            background=args.background,
            device=args.device,
            out=args.out,
            command=command,
        )
    )
    print(plain_text(outcome.table), end="")
    if args.out is not None:
        print(f"in {args.out}: table.md, table.csv, sets.json")
    for where, reason in outcome.failed.items():
        print(f"failed: {where}: {reason}", file=sys.stderr)
    return int(ExitCode.SOME_FAILED if outcome.failed else ExitCode.OK)
