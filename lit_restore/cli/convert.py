"""`lit-restore convert --from KIND FILE[:MEMBER] --out FILE.safetensors`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_restore.cli.writing import write_network
from lit_restore.errors import UserError


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from lit_restore.weights.foreign import ADAPTERS

    parser.add_argument(
        "--from", dest="kind", required=True, choices=sorted(ADAPTERS), help="whose weights"
    )
    parser.add_argument(
        "file",
        metavar="FILE[:MEMBER]",
        help="a .npz, .pth, .pt, .bin or .safetensors, or one inside a tar (x.tar:a.npz)",
    )
    parser.add_argument(
        "--weights",
        choices=sorted({name for adapter in ADAPTERS.values() for name in adapter.sets}),
        help="which of a training's weights (default: the averaged ones, where there are any)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    from lit_restore.weights.foreign import ADAPTERS, load_foreign, split_member

    if args.weights is not None and args.weights not in ADAPTERS[args.kind].sets:
        raise UserError(f"files of {args.kind} hold one set; leave it out", where="--weights")
    path, member = split_member(args.file)
    net = load_foreign(args.kind, path, member, args.weights)
    about = {"profile": args.weights or args.kind, "source": member or path.name}
    return write_network(args.out, net, {**ADAPTERS[args.kind].info, **about})
