"""`lit-restore convert --from KIND FILE[:MEMBER] --out FILE.safetensors`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_restore.cli.writing import write_network


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from lit_restore.weights.foreign import ADAPTERS

    parser.add_argument(
        "--from", dest="kind", required=True, choices=sorted(ADAPTERS), help="whose weights"
    )
    parser.add_argument(
        "file", metavar="FILE[:MEMBER]", help="a .npz or .pth, or one inside a tar (x.tar:a.npz)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    from lit_restore.weights.foreign import load_foreign, split_member

    path, member = split_member(args.file)
    net = load_foreign(args.kind, path, member)
    info = {"task": "denoiser", "profile": args.kind, "source": member or path.name}
    return write_network(args.out, net, info)
