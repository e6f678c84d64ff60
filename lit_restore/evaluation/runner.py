"""`evaluate.py run`: noise onto clean pictures, methods that remove it, one row for each result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_restore.errors import UserError
from lit_restore.evaluation.baselines import find_baselines
from lit_restore.evaluation.given import check_background, check_pictures
from lit_restore.evaluation.identity import (
    Identity,
    check_run_folder,
    digests,
    open_run,
    versions,
)
from lit_restore.evaluation.loop import Loop
from lit_restore.evaluation.methods import Method, check_names, network_method, pick_device
from lit_restore.evaluation.protocols import Protocol, find_protocol
from lit_restore.evaluation.report import Outcome, Report
from lit_restore.evaluation.rows import RowWriter, intact, read_rows
from lit_restore.evaluation.scoring import for_the_eye, read_output
from lit_restore.evaluation.sources import PHOTOGRAPHS, Item, open_source, read_keys


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `evaluate.py run` is asked for."""

    protocol: str
    out: Path
    ckpts: tuple[str, ...] = ()
    """``F`` or ``NAME=F``, each a row of the table."""
    data: str | None = None
    """Needed unless the protocol says which."""
    prefix: str = ""
    keys: Path | None = None
    seeds: tuple[int, ...] = (0,)
    baselines: tuple[str, ...] | None = None
    """Instead of the protocol's."""
    profile: str | None = None
    device: str = "auto"
    batch: int = 1
    background: str | None = None
    pictures: int = 24
    """How many pictures to draw side by side."""
    resume: bool = False
    command: str = ""
    """As typed, for the foot of the table."""


def evaluate(options: RunOptions) -> Outcome:
    """Evaluate, or go on with an evaluation, and write everything into the run folder.

    Raises:
        UserError: an option is wrong, or the folder holds another evaluation.
        OSError: the run folder cannot be written.
    """
    protocol = _protocol(options)
    check_background(options.background)
    check_pictures(options.pictures)
    check_run_folder(options.out, resume=options.resume)
    items = _items(options, protocol)
    device = pick_device(options.device)
    names = protocol.baselines if options.baselines is None else options.baselines
    methods = find_baselines(names)
    methods += [network_method(c, profile=options.profile, device=device) for c in options.ckpts]
    if not methods:
        raise UserError("nothing to evaluate; give a --ckpt or a --baselines", where="--ckpt")
    check_names(methods, "--ckpt")
    identity = _identity(options, protocol, items, methods, device)
    with open_run(options.out, identity, command=options.command, resume=options.resume) as command:
        done = {row.id for row in read_rows(options.out) if intact(options.out, row)}
        with RowWriter(options.out) as writer:
            Loop(
                out=options.out,
                protocol=protocol,
                methods=methods,
                seeds=options.seeds,
                batch=options.batch,
                background=options.background,
                writer=writer,
                done=done,
            ).run(items)
        by_key = {item.key: item for item in items}
        report = Report(
            out=options.out,
            protocol=protocol,
            methods=methods,
            seeds=options.seeds,
            total=len(items),
            run_id=identity.run_id,
            command=command,
            pictures=options.pictures,
            clean=lambda key: for_the_eye(by_key[key], options.background),
            output=lambda row: read_output(options.out / str(row.png))[0],
        )
        return report.write(read_rows(options.out))


def _protocol(options: RunOptions) -> Protocol:
    protocol = find_protocol(options.protocol)
    if protocol.task != "denoise":
        raise UserError("adds no noise; use it with compare", where=f"--protocol {protocol.name}")
    if protocol.data is not None and options.data not in (None, *PHOTOGRAPHS):
        raise UserError(
            f"{protocol.name} is defined on {protocol.data}; leave --data out, or use "
            "--protocol denoise-25",
            where=f"--data {options.data}",
        )
    if protocol.data is not None and (options.keys or options.prefix):
        raise UserError(
            f"{protocol.name} is defined on all of its pictures; leave it out",
            where="--keys" if options.keys else "--prefix",
        )
    if protocol.data is None and options.data is None:
        raise UserError(
            f"{protocol.name} needs pictures: a folder, a tar archive, or skimage", where="--data"
        )
    if options.batch < 1:
        raise UserError("at least 1; the default is 1", where=f"--batch {options.batch}")
    return protocol


def _items(options: RunOptions, protocol: Protocol) -> list[Item]:
    keys = None if options.keys is None else read_keys(options.keys)
    return open_source(protocol.data or options.data or "", prefix=options.prefix, keys=keys)


def _identity(
    options: RunOptions,
    protocol: Protocol,
    items: Sequence[Item],
    methods: Sequence[Method],
    device: torch.device,
) -> Identity:
    parts: dict[str, object] = {
        "protocol": protocol.identity(),
        "methods": {method.name: method.identity for method in methods},
        "seeds": list(options.seeds),
        "dtype": "float32",
        "flags": {
            "device": device.type,
            "batch": options.batch,
            "background": options.background,
        },
        "versions": versions(),
    }
    return Identity(parts=parts, data=digests(items))
