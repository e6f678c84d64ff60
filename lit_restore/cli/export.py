"""`lit-restore export CKPT --out FILE.safetensors`: a checkpoint as one file to pass on."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_restore.cli.writing import write_network


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


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    from lit_restore.weights.loading import load_network

    loaded = load_network(args.checkpoint, profile=args.profile)
    kept = ("task", "profile", "samples_seen", "config", "versions")
    info = {key: loaded.info[key] for key in kept if key in loaded.info}
    return write_network(args.out, loaded.net, {**info, "source": loaded.source.name})
