"""`lit-restore restore IMAGE… --ckpt F --tau 50`: your own degraded pictures, by DP-IR."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_restore.cli.pictures import targets_of, with_channels
from lit_restore.cli.posterior_arguments import add_networks, add_sampler, as_text, options_of
from lit_restore.errors import ExitCode, UserError
from lit_restore.evaluation import given
from lit_restore.io import fs

if TYPE_CHECKING:
    import torch

    from lit_restore.io import images
    from lit_restore.sampling.restoration import Restored, RestoreOptions
    from lit_restore.weights.fused import LoadedFusion

_EXPLANATION = """\
Writes IMAGE's stem with .restored.png beside it, 8 bits, upright. With --samples N it is the mean
of N samples; their standard deviation, mean of the colours, goes to .deviation.png, 16 grey levels
for each of the picture's. Exit code 3: some pictures failed, the others are written."""
_DEVIATION = 16


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EXPLANATION
    add = parser.add_argument
    add("images", nargs="+", type=given.path, metavar="IMAGE")
    add_networks(parser)
    add_sampler(parser)
    add("--samples", type=int, default=1, metavar="N", help="drawn of each picture (default 1)")
    add("--out", type=given.path, metavar="DIR", help="a folder for the results")
    add("--force", action="store_true", help="overwrite results that exist")
    add("--background", metavar="COLOUR", help="to lay transparent pictures on")


def run(args: argparse.Namespace) -> int:
    """Restore every picture; exit code 3 if some failed."""
    given.print_any_name()
    given.check_background(args.background)
    options = options_of(args, tau=args.tau, samples=args.samples)
    if args.out is not None:
        given.check_out(args.out)
    targets = targets_of(args.images, args.out, ".restored.png", force=args.force)
    others: dict[Path, Path] = {}
    if args.samples > 1:
        others = targets_of(args.images, args.out, ".deviation.png", force=args.force)
    job = _job(args, options)
    failed = 0
    for source, target in targets.items():
        try:
            nfe = job.restore(source, target, others.get(source))
        except UserError as error:
            print(f"failed: {' '.join(str(error).split())}", file=sys.stderr)
            failed += 1
        except OSError as error:
            raise given.cannot_write(target, error) from None
        else:
            drawn = "" if args.samples == 1 else f", mean of {args.samples} samples"
            once = job.model.restorer_calls
            print(f"{target}: tau {args.tau}, {once} + {args.samples * nfe} evaluations{drawn}")
    return int(ExitCode.SOME_FAILED if failed else ExitCode.OK)


def _job(args: argparse.Namespace, options: RestoreOptions) -> _Job:
    from lit_restore.evaluation.methods import pick_device
    from lit_restore.sampling.restoration import check_tau
    from lit_restore.weights.fused import load_fusion

    device = pick_device(args.device)
    model = load_fusion(
        as_text(args.ckpt) or "",
        denoiser=as_text(args.denoiser),
        restorer=as_text(args.restorer),
        profile=args.profile,
    )
    try:
        check_tau(model, options)
    except UserError as error:
        raise UserError(error.message, where="--tau") from None
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    for net in model.networks().values():
        net.to(device)
    return _Job(model=model, device=device, options=options, background=args.background)


@dataclass(frozen=True)
class _Job:
    model: LoadedFusion
    device: torch.device
    options: RestoreOptions
    background: str | None

    def restore(self, source: Path, target: Path, deviation: Path | None) -> int:
        """Write one picture's sample; the evaluations it took."""
        from lit_restore.io import images
        from lit_restore.io.quantise import to_uint8

        picture = images.read_picture(source, background=self.background)
        if picture.profile is not None:
            message = f"colour profile {picture.profile} is not kept; colours may look different"
            print(f"note: {source}: {message}", file=sys.stderr)
        grey = picture.pixels.shape[2] == 1
        found = self._restored(source, picture)
        fs.make_dir(target.parent)
        image = found.images.mean(1, keepdim=True) if grey else found.images
        images.write_png(target, to_uint8(image)[0])
        if deviation is not None and found.deviation is not None:
            level = found.deviation.mean(1, keepdim=True) * _DEVIATION
            images.write_png(deviation, to_uint8(level)[0])
        return found.nfe

    def _restored(self, source: Path, picture: images.Picture) -> Restored:
        from lit_restore.io.quantise import from_pixels
        from lit_restore.sampling.restoration import restore_images

        degraded = from_pixels(picture.pixels)
        fitting = with_channels(degraded, self.model.restorer.in_channels, source)
        try:
            found = restore_images(self.model, fitting.to(self.device), self.options, [source.stem])
        except UserError as error:
            where = source if error.where is None else f"{source}: {error.where}"
            raise UserError(error.message, where=where) from None
        except (RuntimeError, MemoryError) as error:
            raise UserError(str(error) or "is too large for the memory", where=source) from None
        if not found.images.isfinite().all():
            raise UserError("the networks' output is not finite", where=source)
        return found
