"""The options of DP-IR's sampler on a command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lit_restore.errors import UserError
from lit_restore.evaluation import given

if TYPE_CHECKING:
    from lit_restore.sampling.restoration import RestoreOptions


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Which networks."""
    add = parser.add_argument
    add(
        "--ckpt",
        required=True,
        type=given.path,
        metavar="F",
        help="a fusion training: a run, a checkpoint or an exported file",
    )
    add("--denoiser", type=given.path, metavar="F", help="another denoiser under it")
    add(
        "--restorer",
        type=given.path,
        metavar="F",
        help="another restoration network under it; given: the pictures have been through one",
    )
    add(
        "--profile",
        type=given.text,
        metavar="NAME",
        help="which average of the fusion's weights; raw for none",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")


def add_sampler(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    *,
    tau: bool = True,
    seed: bool = True,
) -> None:
    """How samples are drawn."""
    add = parser.add_argument
    if tau:
        add(
            "--tau",
            type=int,
            default=50,
            metavar="T",
            help="0 is the restoration network alone; the larger, the more detail is drawn anew, "
            "and the less faithful it is (default 50)",
        )
    add("--steps", type=int, metavar="N", help="from tau to 0 (default: each of them)")
    add("--tail", choices=("ancestral", "ddim"), default="ancestral", help="kind of the steps")
    add("--eta", type=float, default=0.0, help="noise of ddim steps, 0 to 1 (default 0)")
    add("--variance", choices=("beta", "posterior"), default="beta")
    add("--start", choices=("jump", "ccdf"), default="jump", help="ccdf: as SDEdit, to compare")
    add(
        "--estimate",
        choices=("fusion", "restored", "denoised"),
        default="fusion",
        help="to compare, one of its two arguments in the place of the fusion",
    )
    if seed:
        add("--seed", type=int, default=0, help="of the noise (default 0)")
    add("--tile", type=int, metavar="PIXELS", help="largest side in one piece (default: 4 Mpx)")


def options_of(
    args: argparse.Namespace, *, tau: int, samples: int = 1, fitted: bool = False
) -> RestoreOptions:
    """The sampler's options; `fitted`: no more steps than tau has, as a list of tau needs it.

    Raises:
        UserError: one is out of range; names it as it is typed.
    """
    from lit_restore.inverse import PosteriorOptions
    from lit_restore.sampling.restoration import RestoreOptions

    try:
        return RestoreOptions(
            posterior=PosteriorOptions(
                tau=tau,
                steps=min(args.steps, max(1, tau)) if fitted and args.steps else args.steps,
                tail=args.tail,
                eta=args.eta,
                variance=args.variance,
                start=args.start,
            ),
            estimate=args.estimate,
            samples=samples,
            seed=getattr(args, "seed", 0),
            tile=args.tile,
        )
    except UserError as error:
        raise UserError(error.message, where=f"--{error.where}") from None


def as_text(path: Path | None) -> str | None:
    """A path as text, as loaders take it."""
    return None if path is None else str(path)
