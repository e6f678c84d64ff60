"""What `evaluate.py run` takes where networks restore degraded pictures."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lit_restore.cli.posterior_arguments import add_sampler, as_text, options_of
from lit_restore.errors import UserError
from lit_restore.evaluation import given

if TYPE_CHECKING:
    from lit_restore.evaluation.report import Outcome

_OWN = {
    "degraded": None, "degradation": None, "other_degradation": False, "taus": (50,),
    "denoiser": None, "restorer": None, "steps": None, "tail": "ancestral", "eta": 0.0,
    "variance": "beta", "start": "jump", "estimate": "fusion", "tile": None, "weights_dir": None,
    "require": (),
}  # fmt: skip


def register(parser: argparse._ArgumentGroup) -> None:
    """Declare the arguments."""
    add_networks_and_inputs(parser, taus=_OWN["taus"])
    add_sampler(parser, tau=False, seed=False)


def add_networks_and_inputs(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, taus: object
) -> None:
    """What is restored, by which networks, at which times.

    Args:
        parser: takes the arguments.
        taus: the default of ``--tau``.
    """
    add = parser.add_argument
    add(
        "--degraded",
        type=given.text,
        metavar="DIR",
        help="degraded pictures of the same names, or shards that hold them",
    )
    add(
        "--degradation",
        metavar="YAML",
        help="or how to make them: '{class_path: GaussianBlur, init_args: {}}'",
    )
    add(
        "--other-degradation",
        action="store_true",
        help="measure networks that were trained for another one",
    )
    add(
        "--tau",
        dest="taus",
        type=_taus,
        default=taus,
        metavar="5,50,…",
        help="of fusion trainings, a row each",
    )
    add("--denoiser", type=given.path, metavar="F", help="another denoiser under them")
    add(
        "--restorer",
        type=given.path,
        metavar="F",
        help="another restoration network under them; given: --degraded has been through one",
    )


def refuse(args: argparse.Namespace) -> None:
    """Refuse what a protocol of noise has no use for.

    Raises:
        UserError: names the option.
    """
    for name, default in _OWN.items():
        if getattr(args, name) != default:
            option = "tau" if name == "taus" else name.replace("_", "-")
            raise UserError(f"{args.protocol} has no use for it", where=f"--{option}")


def run(args: argparse.Namespace, command: str) -> Outcome:
    """Evaluate; see `evaluation.restoring`."""
    from lit_restore.data.degradations.recorded import record_of
    from lit_restore.evaluation.restoring import RestorationRun, evaluate_restoration
    from lit_restore.io.yaml import parse_yaml

    for name, default in (("baselines", None), ("batch", 1)):
        if getattr(args, name) != default:
            raise UserError(f"{args.protocol} has no use for it", where=f"--{name}")
    if args.data is None:
        told = f"{args.protocol} needs clean pictures: a folder, a tar archive, or skimage"
        raise UserError(told, where="--data")
    record = None
    if args.degradation is not None:
        tree = parse_yaml(args.degradation, where="--degradation")
        record = record_of(tree, where="--degradation")
    return evaluate_restoration(
        RestorationRun(
            protocol=args.protocol,
            out=args.out,
            data=args.data,
            degraded=args.degraded,
            degradation=record,
            other_degradation=args.other_degradation,
            ckpts=tuple(args.ckpt),
            taus=args.taus,
            sampler=options_of(args, tau=max(args.taus), fitted=True),
            denoiser=as_text(args.denoiser),
            restorer=as_text(args.restorer),
            prefix=args.prefix,
            keys=args.keys,
            seeds=args.seeds,
            profile=args.profile,
            device=args.device,
            background=args.background,
            pictures=args.pictures,
            weights_dir=args.weights_dir,
            require=args.require,
            resume=args.resume,
            command=command,
        )
    )


def _taus(text: str) -> tuple[int, ...]:
    try:
        taus = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of times; write 5,50") from None
    if min(taus) < 0 or len(set(taus)) < len(taus):
        raise argparse.ArgumentTypeError(f"{text} holds a negative time, or one twice")
    return taus
