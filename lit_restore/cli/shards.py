"""`lit-restore shards make | inspect | verify`: data sets in webdataset's format."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lit_restore.data.array_rows import array_rows
from lit_restore.data.encode import ENCODES, Encoding
from lit_restore.data.inspection import Summary, summarise, verify
from lit_restore.data.packing import write_shards
from lit_restore.data.sources import (
    ARRAYS,
    Collection,
    archive_of_images,
    class_folders,
    folder_of_images,
    paired_folders,
    procedural_images,
)
from lit_restore.errors import ExitCode, UserError
from lit_restore.io import fs
from lit_restore.io.wording import human_size, shown

_SHOWN = 20
_PER_SHARD, _PER_TILED_SHARD = 1000, 50


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the three actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _register_make(actions.add_parser("make", help="pack pictures and arrays into shards"))
    inspect = actions.add_parser("inspect", help="say what shards hold")
    check = actions.add_parser("verify", help="check hashes and counts, with --decode all pictures")
    for action in (inspect, check):
        action.add_argument("path", type=Path, help="a folder of shards, or one shard")
    check.add_argument("--decode", action="store_true", help="also decode every member")


def _register_make(make: argparse.ArgumentParser) -> None:
    make.description = (
        "Pack a folder, a pair of folders, class folders, a tar, the rows of an array (latents) or "
        "procedural images into shards. "
        "Interrupted, run the same command again: it goes on, and the bytes are the same."
    )
    add = make.add_argument
    add(
        "source",
        type=Path,
        nargs="?",
        metavar="SRC",
        help="folder or .tar of JPEG, PNG, WebP; "
        "folder of .npy, .npz; or one .npy, .npz whose rows are the samples",
    )
    add("--out", type=Path, required=True, help="folder of the shards; new, or an interrupted one")
    add("--pairs", type=Path, metavar="CLEAN", help="SRC holds degraded pictures, CLEAN theirs")
    add("--classes", action="store_true", help="the folders in SRC are classes")
    add("--array", metavar="NAME", help="which array of an .npz, or of each .npz in SRC")
    add("--labels", metavar="NAME", help="class numbers of the rows: array of the .npz, or a .npy")
    add("--procedural", type=int, metavar="COUNT", help="draw COUNT pictures instead of SRC")
    add("--size", type=int, default=256, help="side of procedural pictures (default 256)")
    add("--seed", type=int, default=0, help="of procedural pictures (default 0)")
    add("--per_shard", type=int, help="pictures a shard (default 1000; with --tile 50)")
    add("--tile", type=int, help="cut into squares of this side")
    add(
        "--encode",
        choices=ENCODES,
        default="keep",
        help="keep the files' bytes (tiles: lossless WebP, procedural: jpeg95), or encode anew",
    )
    add("--max_bad", type=int, default=0, help="damaged pictures that may be left out (default 0)")
    add("--sorted", action="store_true", help="keep the order of the names; shuffled otherwise")
    add("--workers", type=int, help="processes (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    actions = {"make": _make, "inspect": _inspect, "verify": _verify}
    return actions[args.action](args)


def _make(args: argparse.Namespace) -> int:
    collection = _collection(args)
    default = _PER_SHARD if args.tile is None else _PER_TILED_SHARD
    manifest = write_shards(
        collection,
        args.out,
        per_shard=default if args.per_shard is None else args.per_shard,
        encoding=Encoding(encode=args.encode, tile=args.tile),
        max_bad=args.max_bad,
        workers=len(os.sched_getaffinity(0)) if args.workers is None else args.workers,
    )
    size = human_size(sum(shard.size for shard in manifest.shards))
    print(f"{args.out}: {manifest.count} samples in {_shards(len(manifest.shards))}, {size}")
    return ExitCode.OK


def _collection(args: argparse.Namespace) -> Collection:
    chosen = [args.source is not None, args.procedural is not None]
    if sum(chosen) != 1:
        raise UserError("give a folder or tar of pictures, or --procedural COUNT", where="make")
    if args.procedural is not None:
        _refuse(args, ("pairs", "classes", "array", "labels"), "not with --procedural")
        return procedural_images(args.procedural, size=args.size, seed=args.seed)
    source: Path = args.source
    if fs.exists(source) and not fs.is_dir(source):
        _refuse(args, ("pairs", "classes"), "needs a folder, not a file")
        found = _of_file(args, source)
    elif args.pairs is not None:
        _refuse(args, ("classes", "array", "labels"), "not with --pairs")
        found = paired_folders(source, args.pairs)
    else:
        _refuse(args, ("labels",), "needs a .npy or .npz file; a folder has --classes")
        make = class_folders if args.classes else folder_of_images
        found = make(source, array_name=args.array)
    return found if args.sorted else found.shuffled()


def _of_file(args: argparse.Namespace, source: Path) -> Collection:
    if source.suffix.lower() in ARRAYS:
        return array_rows(source, array=args.array, labels=args.labels)
    _refuse(args, ("array", "labels"), "needs a .npy or .npz file, or a folder of them")
    return archive_of_images(source)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(args, name):
            raise UserError(why, where=f"--{name}")


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
