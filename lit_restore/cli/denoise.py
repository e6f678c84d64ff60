"""`lit-restore denoise IMAGE… --ckpt F --sigma 25`: your own photos."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_restore.cli.pictures import targets_of, with_channels
from lit_restore.errors import ExitCode, UserError
from lit_restore.evaluation import given
from lit_restore.io import fs

if TYPE_CHECKING:
    from lit_restore.evaluation.methods import Restore

_EXPLANATION = """\
Writes IMAGE's stem with .denoised.png beside it, 8 bits, upright. The noise level is given in
levels of an 8-bit picture (0 to 255 is black to white): 5 is a little noise, 25 is a lot, 50 hides
detail; `auto` estimates it from the picture's finest wavelets. Too low leaves noise, too high
smooths. Exit code 3: some pictures failed, the others are written."""


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EXPLANATION
    add = parser.add_argument
    add("images", nargs="+", type=given.path, metavar="IMAGE")
    add(
        "--ckpt",
        required=True,
        type=given.path,
        metavar="F",
        help="an exported file, checkpoint or run folder",
    )
    add("--sigma", default="auto", metavar="25", help="noise in 8-bit levels, or auto (default)")
    add("--out", type=given.path, metavar="DIR", help="a folder for the results")
    add("--force", action="store_true", help="overwrite results that exist")
    add(
        "--profile",
        type=given.text,
        metavar="NAME",
        help="which average of the weights; raw for none",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--background", metavar="COLOUR", help="to lay transparent pictures on")


def run(args: argparse.Namespace) -> int:
    """Denoise every picture; exit code 3 if some failed."""
    given.print_any_name()
    level = _level(args.sigma)
    given.check_background(args.background)
    if args.out is not None:
        given.check_out(args.out)
    targets = targets_of(args.images, args.out, ".denoised.png", force=args.force)
    job = _job(args)
    failed = 0
    for source, target in targets.items():
        try:
            sigma = job.denoise(source, target, level)
        except UserError as error:
            print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
            failed += 1
        except OSError as error:
            raise given.cannot_write(target, error) from None
        else:
            found = " (estimated)" if level is None else ""
            print(f"{target}: noise of {sigma * 255:.3g} of 255{found} removed")
    return int(ExitCode.SOME_FAILED if failed else ExitCode.OK)


def _level(text: str) -> float | None:
    """σ in image units; None for `auto`."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 255:
        raise UserError(
            "is the noise in levels of an 8-bit picture, 0 to 255 (try 25), or auto",
            where=f"--sigma {text}",
        )
    return value / 255


def _job(args: argparse.Namespace) -> _Job:
    from lit_restore.evaluation.methods import (
        denoise_with,
        image_channels,
        load_denoiser,
        pick_device,
    )

    device = pick_device(args.device)
    loaded = load_denoiser(args.ckpt, profile=args.profile)
    return _Job(
        restore=denoise_with(loaded.net.to(device), device),
        channels=image_channels(loaded),
        background=args.background,
    )


@dataclass(frozen=True)
class _Job:
    restore: Restore
    channels: int
    """Of the network's images."""
    background: str | None

    def denoise(self, source: Path, target: Path, level: float | None) -> float:
        """Write one picture's estimate; the σ that was used, in image units."""
        from lit_restore.evaluation.estimate import estimate_sigma
        from lit_restore.evaluation.tiles import restore_tiled
        from lit_restore.io import images
        from lit_restore.io.quantise import from_pixels, to_uint8

        picture = images.read_picture(source, background=self.background)
        if picture.profile is not None:
            message = f"colour profile {picture.profile} is not kept; colours may look different"
            print(f"note: {source}: {message}", file=sys.stderr)
        noisy = from_pixels(picture.pixels)
        try:
            sigma = estimate_sigma(noisy) if level is None else level
        except UserError as error:
            raise UserError(error.message, where=source) from None
        fitting = with_channels(noisy, self.channels, source)
        try:
            estimate = restore_tiled(self.restore, fitting, sigma)
        except (RuntimeError, MemoryError) as error:
            raise UserError(str(error) or "is too large for the memory", where=source) from None
        if not estimate.isfinite().all():
            raise UserError("the network's output is not finite", where=source)
        if noisy.shape[1] < estimate.shape[1]:
            estimate = estimate.mean(1, keepdim=True)
        fs.make_dir(target.parent)
        images.write_png(target, to_uint8(estimate)[0])
        return sigma
