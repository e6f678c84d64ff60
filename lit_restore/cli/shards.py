"""`lit-restore shards make | encode | restore | inspect | verify`: webdataset shards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lit_restore.cli import shards_encode, shards_make, shards_restore
from lit_restore.data.inspection import Summary, summarise, verify
from lit_restore.errors import ExitCode, UserError
from lit_restore.io.wording import human_size, shown

_SHOWN = 20


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the five actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shards_make.register(actions.add_parser("make", help="pack pictures and arrays into shards"))
    shards_encode.register(
        actions.add_parser("encode", help="turn pictures into latents of an autoencoder")
    )
    shards_restore.register(
        actions.add_parser("restore", help="put a restoration network's outputs beside pictures")
    )
    inspect = actions.add_parser("inspect", help="say what shards hold")
    check = actions.add_parser("verify", help="check hashes and counts, with --decode all pictures")
    for action in (inspect, check):
        action.add_argument("path", type=Path, help="a folder of shards, or one shard")
    check.add_argument("--decode", action="store_true", help="also decode every member")


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    actions = {
        "make": shards_make.run,
        "encode": shards_encode.run,
        "restore": shards_restore.run,
        "inspect": _inspect,
        "verify": _verify,
    }
    return actions[args.action](args)


def _inspect(args: argparse.Namespace) -> int:
    summary = summarise(args.path)
    for name, text in _lines(summary):
        print(f"{name:<12}{text}")
    return ExitCode.OK


def _lines(found: Summary) -> list[tuple[str, str]]:
    """The summary as (name, text) rows."""
    some = "" if found.headers >= found.samples else f" (of {found.headers} headers)"
    fields = [
        name if count == found.samples else f"{name} (in {count})"
        for name, count in sorted(found.fields.items())
    ]
    rows = [
        ("samples", f"{found.samples} in {_shards(found.shards)}, {human_size(found.size)}"),
        ("fields", ", ".join(fields)),
        ("formats", ", ".join(f"{count} {kind}" for kind, count in found.formats.items()) + some),
    ]
    if found.widths[2]:
        rows.append(("width", "{0} to {2}, median {1}".format(*found.widths)))
        rows.append(("height", "{0} to {2}, median {1}".format(*found.heights)))
    rows.append(("keys", ", ".join(shown(key) for key in found.keys)))
    if found.classes:
        names = ", ".join(shown(name) for name in found.classes[:_SHOWN])
        more = ", …" if len(found.classes) > _SHOWN else ""
        rows.append(("classes", f"{len(found.classes)}: {names}{more}"))
    return rows


def _verify(args: argparse.Namespace) -> int:
    count, wrong = verify(args.path, decode=args.decode)
    for error in wrong[:_SHOWN]:
        print(f"error: {error}", file=sys.stderr)
    if wrong:
        raise UserError(
            f"{len(wrong)} errors; make the shards anew, or copy again", where=args.path
        )
    print(f"{args.path}: {count} samples, all well")
    return ExitCode.OK


def _shards(count: int) -> str:
    return f"{count} shard{'' if count == 1 else 's'}"
