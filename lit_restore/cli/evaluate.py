"""`evaluate.py run | compare | sets | protocols`: arguments, one-line errors, exit codes.

0 done; 2 the input is wrong; 3 done, but some pictures failed; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_restore.cli import evaluate_restoration, evaluate_sets
from lit_restore.cli.entry import OneLineArguments, guarded
from lit_restore.errors import ExitCode, UserError
from lit_restore.evaluation import given

if TYPE_CHECKING:
    from lit_restore.evaluation.report import Outcome

_PROGRAM = "evaluate.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded(lambda: _main(words))


def _main(argv: list[str]) -> int:
    given.print_any_name()
    _check_utf8(argv)
    args = _parser().parse_args(argv)
    if args.command == "protocols":
        return _protocols(args.name)
    command = shlex.join(["python", _PROGRAM, *(word for word in argv if word != "--resume")])
    try:
        if args.command == "sets":
            return evaluate_sets.run(args, command)
        return _run(args, command) if args.command == "run" else _compare(args, command)
    except BrokenPipeError:
        raise  # `… | head` closed stdout; no file is to blame
    except OSError as error:
        raise given.cannot_write(error.filename or args.out, error) from None


def _check_utf8(argv: Sequence[str]) -> None:
    """The command stands in the run's files, which are UTF-8."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError("is not UTF-8; rename it", where=ascii(word)) from None


def _parser() -> argparse.ArgumentParser:
    parser = OneLineArguments(prog=_PROGRAM, description=__doc__, formatter_class=_Plain)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="degrade pictures, let networks restore them, measure")
    _run_arguments(run)
    compare = commands.add_parser("compare", help="measure pictures against their truths")
    _compare_arguments(compare)
    evaluate_sets.register(commands)
    protocols = commands.add_parser("protocols", help="list the protocols, or explain one")
    protocols.add_argument("name", nargs="?", metavar="NAME")
    return parser


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--ckpt",
        action="append",
        default=[],
        metavar="[NAME=]F",
        help="an exported file, a checkpoint folder or a run folder; again for another row",
    )
    add(
        "--data",
        type=given.text,
        metavar="D",
        help="a folder, a tar archive, or skimage for its photographs",
    )
    add("--prefix", default="", metavar="P", help="only what is below this folder in the data")
    add("--keys", type=given.path, metavar="FILE", help="only these pictures, one name a line")
    add("--seeds", type=_seeds, default=(0,), metavar="0,1,…", help="of the noise (default 0)")
    add("--baselines", type=given.names, metavar="A,B", help="instead of the protocol's own")
    add(
        "--profile",
        type=given.text,
        metavar="NAME",
        help="which average of the weights; raw for none",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--batch", type=int, default=1, metavar="N", help="pictures of one shape at once")
    add(
        "--resume",
        action="store_true",
        help="go on with --out where it exists; pictures that failed are not tried again",
    )
    restoration = parser.add_argument_group("restoration (protocols such as sr-x4 and deblur)")
    evaluate_restoration.register(restoration)
    _common_arguments(parser)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--pred",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="pictures to measure; again for another row",
    )
    add(
        "--target",
        type=given.text,
        required=True,
        metavar="DIR",
        help="their truths, of the same names",
    )
    add("--strip-suffix", metavar="REGEX", help="cut from the ends of names before pairing")
    add("--allow-missing", action="store_true", help="measure the pairs there are")
    _common_arguments(parser)


def _common_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--protocol", required=True, metavar="P", help="see: python evaluate.py protocols")
    add("--out", type=given.path, required=True, metavar="RUN", help="a new folder for the results")
    add("--background", metavar="COLOUR", help="to lay transparent pictures on")
    add("--pictures", type=int, default=24, metavar="N", help="how many to draw (default 24)")
    add(
        "--weights-dir",
        type=given.path,
        metavar="DIR",
        help="weights of perceptual metrics, before $LIT_RESTORE_WEIGHTS and torch hub's cache",
    )
    add(
        "--require",
        type=given.names,
        default=(),
        metavar="A,B",
        help="perceptual metrics that may not stay blank (exit code 2 without their weights)",
    )


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        reason = f"{text} is no list of whole numbers; write 0,1,2".lstrip()
        raise argparse.ArgumentTypeError(reason) from None
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text} names one twice; leave one out")
    return seeds


def _run(args: argparse.Namespace, command: str) -> int:
    from lit_restore.evaluation.protocols import find_protocol
    from lit_restore.evaluation.runner import RunOptions, evaluate

    if find_protocol(args.protocol).task != "denoise":
        return _tell(evaluate_restoration.run(args, command))
    evaluate_restoration.refuse(args)
    return _tell(
        evaluate(
            RunOptions(
                protocol=args.protocol,
                out=args.out,
                ckpts=tuple(args.ckpt),
                data=args.data,
                prefix=args.prefix,
                keys=args.keys,
                seeds=args.seeds,
                baselines=args.baselines,
                profile=args.profile,
                device=args.device,
                batch=args.batch,
                background=args.background,
                pictures=args.pictures,
                resume=args.resume,
                command=command,
            )
        )
    )


def _compare(args: argparse.Namespace, command: str) -> int:
    from lit_restore.evaluation.compare import CompareOptions, compare

    outcome, remarks = compare(
        CompareOptions(
            preds=tuple(args.pred),
            target=args.target,
            protocol=args.protocol,
            out=args.out,
            strip_suffix=args.strip_suffix,
            allow_missing=args.allow_missing,
            background=args.background,
            pictures=args.pictures,
            weights_dir=args.weights_dir,
            require=args.require,
            command=command,
        )
    )
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    return _tell(outcome)


def _tell(outcome: Outcome) -> int:
    from lit_restore.evaluation.table import plain_text

    print(plain_text(outcome.table), end="")
    drawn = f", {outcome.drawn} pictures side by side, overview.png" if outcome.drawn else ""
    print(f"in {outcome.out}: rows.csv, table.md, table.csv{drawn}")
    for key, reason in outcome.failed.items():
        print(f"failed: {key}: {reason}", file=sys.stderr)
    return int(ExitCode.SOME_FAILED if outcome.failed else ExitCode.OK)


def _protocols(name: str | None) -> int:
    from lit_restore.evaluation.protocols import PROTOCOLS, find_protocol

    if name is None:
        width = max(map(len, PROTOCOLS))
        for protocol in PROTOCOLS.values():
            print(f"{protocol.name:{width}}  v{protocol.version}  {protocol.summary}")
        return int(ExitCode.OK)
    protocol = find_protocol(name)
    print("\n".join(protocol.words))
    print("columns: " + ", ".join(column.title for column in protocol.columns))
    print("baselines: " + (", ".join(protocol.baselines) or "none"))
    return int(ExitCode.OK)
