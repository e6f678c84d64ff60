"""`lit-restore shards restore`: restored pictures beside the clean ones, once, before training."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_restore.cli.shards_encode import classes_of, devices_of
from lit_restore.errors import ExitCode, UserError
from lit_restore.io.wording import human_size

_EXPLANATION = """\
A fusion training (task: fusion) reads the restored pictures instead of calling the restoration
network at every step. Pictures are degraded as the network's own training degraded them, unless
--degradation says otherwise or the shards hold pairs. Interrupted, run the same command again."""


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = "Restore the pictures of shards, for a training over the results."
    parser.epilog = _EXPLANATION
    add = parser.add_argument
    add("source", metavar="SHARDS", help="what data.train takes: a folder, shard, pattern, URL")
    add(
        "--restorer",
        required=True,
        metavar="F",
        help="a run of `task: regression` or `task: burst`, or any weights that spandrel knows",
    )
    add("--out", type=Path, required=True, help="folder of the shards; new, or an interrupted one")
    add(
        "--degradation",
        metavar="YAML",
        help="as in a recipe: '{class_path: Downscale, init_args: {scale: 4}}'",
    )
    add(
        "--other-degradation",
        action="store_true",
        help="degrade otherwise than the network's own training did",
    )
    add("--seed", type=int, default=0, help="of the degradation (default 0)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--workers", type=int, help="processes (default: one a GPU, or one a core)")


def run(args: argparse.Namespace) -> int:
    """Restore, and say what there is."""
    from lit_restore.data.burst_shards import is_burst_network, restore_bursts
    from lit_restore.data.locate import open_source
    from lit_restore.data.restored_shards import restore_shards

    devices = devices_of(args.device, args.workers)
    source = open_source(args.source, key="SHARDS")
    classes = classes_of(args.source, source)
    if is_burst_network(args.restorer):
        if args.degradation is not None:
            raise UserError("bursts are made in one way; leave it out", where="--degradation")
        manifest = restore_bursts(
            source, args.restorer, args.out, seed=args.seed, devices=devices, classes=classes
        )
    else:
        alone = source.read(0).degraded is None
        manifest = restore_shards(
            source,
            args.restorer,
            args.out,
            degradation=_degradation(
                args.degradation, args.restorer, alone, other=args.other_degradation
            ),
            seed=args.seed,
            devices=devices,
            classes=classes,
        )
    size = human_size(sum(shard.size for shard in manifest.shards))
    shards = f"{len(manifest.shards)} shard{'' if len(manifest.shards) == 1 else 's'}"
    print(f"{args.out}: {manifest.count} restored pictures in {shards}, {size}")
    return ExitCode.OK


def _degradation(
    text: str | None, restorer: str, needed: bool, *, other: bool
) -> dict[str, object] | None:
    """What is given, else that of the network's training; none for pairs."""
    from lit_restore.data.degradations import same_degradation
    from lit_restore.data.degradations.recorded import as_record, record_of
    from lit_restore.io.yaml import parse_yaml
    from lit_restore.weights.fused import recorded_degradation
    from lit_restore.weights.restorers import load_restorer

    if text is None and not needed:
        return None
    own = as_record(recorded_degradation(load_restorer(restorer).info), where=restorer)
    if text is None and own is None:
        raise UserError(
            f"{restorer} was not trained on pictures degraded here, and the shards hold no pairs; "
            "give one",
            where="--degradation",
        )
    if text is None:
        return dict(own) if own is not None else None
    given = record_of(parse_yaml(text, where="--degradation"), where="--degradation")
    difference = None if own is None or other else same_degradation(own, given)
    if difference:
        raise UserError(
            f"{restorer} was {difference}; --other-degradation does it all the same",
            where="--degradation",
        )
    return given
