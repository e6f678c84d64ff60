"""`lit-restore export CKPT --out FILE.safetensors`: a checkpoint as one file to pass on."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from lit_restore.cli.writing import write_network, write_safetensors
from lit_restore.errors import ExitCode, UserError
from lit_restore.io import fs

if TYPE_CHECKING:
    from lit_restore.weights import LoadedNetwork


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "checkpoint", type=Path, help="a run folder (its newest checkpoint), or a checkpoint"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help="which average of the weights, or raw for the weights themselves "
        "(default: the first average)",
    )
    parser.add_argument(
        "--format",
        choices=("lit_restore", "dimsum"),
        default="lit_restore",
        help="ours (default), or DiMSUM's published names",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    from lit_restore.weights.loading import load_network

    loaded = load_network(args.checkpoint, profile=args.profile)
    if args.format == "dimsum":
        return _write_dimsum(args.out, loaded)
    kept = ("task", "profile", "samples_seen", "config", "versions", "frozen", "degradation")
    info = {key: loaded.info[key] for key in kept if key in loaded.info}
    return write_network(args.out, loaded.net, {**info, "source": loaded.source.name})


def _write_dimsum(out: Path, loaded: LoadedNetwork) -> int:
    from lit_restore.io.tensors import save_tensors
    from lit_restore.networks import DiMSUM
    from lit_restore.weights.dimsum import to_official, unseen_options

    if not isinstance(loaded.net, DiMSUM):
        told = f"holds a {loaded.net.kind}; --format dimsum is for DiMSUM"
        raise UserError(told, where=loaded.source)
    try:
        state = to_official(loaded.net)
    except UserError as error:
        raise UserError(str(error), where=loaded.source) from None
    # "format" is what readers of safetensors look for; the rest is for people.
    metadata = {"format": "pt", "dimsum": unseen_options(loaded.net)}
    content = io.BytesIO()
    save_tensors(content, state, metadata)
    write_safetensors(out, lambda: fs.write_atomic(out, content.getvalue()))
    print(f"{out}: {len(state)} tensors by DiMSUM's names, {metadata['dimsum']}")
    return int(ExitCode.OK)
