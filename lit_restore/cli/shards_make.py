"""`lit-restore shards make`: pictures and arrays → shards."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from pathlib import Path

from lit_restore.data.array_rows import (
    array_rows,
    picture_files,
    picture_rows,
    with_class_names,
)
from lit_restore.data.encode import ENCODES, Encoding
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

_PER_SHARD, _PER_TILED_SHARD = 1000, 50
_SIDE = 256
_OF_ARRAYS = ("labels", "class_names", "pictures", "shape", "offsets")
_DESCRIPTION = """\
Pack a folder, a pair of folders, class folders, a tar, the rows of an array (latents, pictures) or
procedural images into shards. Interrupted, run the same command again: it goes on, and the bytes
are the same."""


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = _DESCRIPTION
    add = parser.add_argument
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
    _register_arrays(parser)
    add("--procedural", type=int, metavar="COUNT", help="draw COUNT pictures instead of SRC")
    add("--size", type=int, help="side of procedural pictures (default 256)")
    add("--seed", type=int, help="of procedural pictures (default 0)")
    add("--per_shard", type=int, help="pictures a shard (default 1000; with --tile 50)")
    add("--tile", type=int, metavar="SIDE", help="cut into squares of this side")
    add("--resize", type=int, metavar="SIDE", help="scale the middle square to this side")
    add("--pad", type=int, metavar="SIDE", help="put into a black square of this side")
    add(
        "--encode",
        choices=ENCODES,
        default="keep",
        help="keep the files' bytes (where they are cut, resized or padded: lossless WebP; "
        "pixels of an array: PNG; procedural: jpeg95), or encode anew",
    )
    add("--max_bad", type=int, default=0, help="damaged pictures that may be left out (default 0)")
    add("--sorted", action="store_true", help="keep the order of the names; shuffled otherwise")
    add("--workers", type=int, help="processes (default: one a core)")


def _register_arrays(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--array", metavar="NAME", help="which array of an .npz, or of each .npz in SRC")
    add("--labels", metavar="NAME", help="class numbers of the rows: array of the .npz, or a .npy")
    add("--class_names", type=Path, metavar="FILE", help="names of these classes, one a line")
    add("--pictures", action="store_true", help="the rows are pixels of pictures, uint8")
    add("--shape", metavar="HxW", help="of such a picture where rows are flat: 28x28, 3x32x32")
    add(
        "--offsets",
        metavar="NAME",
        help="the array is the bytes of JPEG, PNG, WebP files; this one says where each begins "
        "and the last ends",
    )


def run(args: argparse.Namespace) -> int:
    """Pack, and say what there is."""
    collection = _collection(args)
    default = _PER_SHARD if args.tile is None else _PER_TILED_SHARD
    manifest = write_shards(
        collection,
        args.out,
        per_shard=default if args.per_shard is None else args.per_shard,
        encoding=Encoding(encode=args.encode, tile=args.tile, resize=args.resize, pad=args.pad),
        max_bad=args.max_bad,
        workers=len(os.sched_getaffinity(0)) if args.workers is None else args.workers,
    )
    size = human_size(sum(shard.size for shard in manifest.shards))
    shards = f"{len(manifest.shards)} shard{'' if len(manifest.shards) == 1 else 's'}"
    print(f"{args.out}: {manifest.count} samples in {shards}, {size}")
    return ExitCode.OK


def _collection(args: argparse.Namespace) -> Collection:
    chosen = [args.source is not None, args.procedural is not None]
    if sum(chosen) != 1:
        raise UserError("give a folder or tar of pictures, or --procedural COUNT", where="make")
    if args.procedural is not None:
        _refuse(args, ("pairs", "classes", "array", *_OF_ARRAYS), "not with --procedural")
        size = _SIDE if args.size is None else args.size
        return procedural_images(args.procedural, size=size, seed=args.seed or 0)
    _refuse(args, ("size",), "is of --procedural; pictures have --resize")
    _refuse(args, ("seed",), "is of --procedural; leave it out")
    source: Path = args.source
    if fs.exists(source) and not fs.is_dir(source):
        _refuse(args, ("pairs", "classes"), "needs a folder, not a file")
        found = _of_file(args, source)
    elif args.pairs is not None:
        _refuse(args, ("classes", "array", *_OF_ARRAYS), "not with --pairs")
        found = paired_folders(source, args.pairs)
    else:
        _refuse(args, _OF_ARRAYS[:2], "needs a .npy or .npz file; a folder has --classes")
        _refuse(args, _OF_ARRAYS[2:], "needs a .npy or .npz file")
        make = class_folders if args.classes else folder_of_images
        found = make(source, array_name=args.array)
    if args.encode != "keep" and "image" not in found.fields:
        raise UserError("arrays are stored as they are; pixels have --pictures", where="--encode")
    return found if args.sorted else found.shuffled()


def _of_file(args: argparse.Namespace, source: Path) -> Collection:
    if source.suffix.lower() not in ARRAYS:
        needs = "needs a .npy or .npz file"
        _refuse(args, ("array",), f"{needs}, or a folder of them")
        _refuse(args, _OF_ARRAYS, needs)
        return archive_of_images(source)
    found = _of_array(args, source)
    return with_class_names(found, args.class_names) if args.class_names else found


def _of_array(args: argparse.Namespace, source: Path) -> Collection:
    if args.offsets is not None:
        _refuse(args, ("shape",), "not with --offsets: the files have theirs")
        return picture_files(source, offsets=args.offsets, array=args.array, labels=args.labels)
    if args.pictures:
        shape = None if args.shape is None else _shape(args.shape)
        return picture_rows(source, array=args.array, labels=args.labels, shape=shape)
    _refuse(args, ("shape", "resize", "pad"), "needs --pictures")
    return array_rows(source, array=args.array, labels=args.labels)


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]{1,5}(x[0-9]{1,5}){1,2}", text):
        raise UserError(f"{shown(text)} is no shape; give 28x28, or 3x32x32", where="--shape")
    return tuple(map(int, text.split("x")))


def _refuse(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) is not False:
            raise UserError(why, where=f"--{name}")
