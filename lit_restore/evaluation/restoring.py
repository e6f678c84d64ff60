"""`evaluate.py run` for restorations: degraded pictures, and what networks make of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lit_restore.data.degradations import Degradation, Record, build_degradation
from lit_restore.errors import UserError
from lit_restore.evaluation.given import check_background, check_pictures
from lit_restore.evaluation.identity import (
    Identity,
    check_run_folder,
    digests,
    open_run,
    versions,
)
from lit_restore.evaluation.methods import check_names, pick_device
from lit_restore.evaluation.metrics import Values
from lit_restore.evaluation.perceptual.meters import Meters, open_meters
from lit_restore.evaluation.perceptual.weights import WeightFolders
from lit_restore.evaluation.protocols import Protocol, find_protocol
from lit_restore.evaluation.report import Outcome, Report
from lit_restore.evaluation.restore_methods import (
    Networks,
    Restoring,
    check_degradation,
    enlarged,
    methods_of,
)
from lit_restore.evaluation.rows import Row, RowWriter, intact, read_rows, reason_of
from lit_restore.evaluation.scoring import png_name, read_output, scores, truth_of, write_output
from lit_restore.evaluation.sources import Item, listed, open_source, read_keys
from lit_restore.inverse import PosteriorOptions
from lit_restore.io.quantise import Pixels, from_pixels, to_uint8
from lit_restore.sampling.restoration import RestoreOptions
from lit_restore.seeding import torch_generator
from lit_restore.weights.fused import GIVEN


@dataclass(frozen=True, kw_only=True)
class RestorationRun:
    """What is asked for."""

    protocol: str
    out: Path
    data: str
    """The clean pictures."""
    degraded: str | None = None
    """The degraded ones, of the same names (restored ones, where `restorer` is `GIVEN`); else they
    are made."""
    degradation: Record | None = None
    """How, where the protocol does not say."""
    other_degradation: bool = False
    """Measure networks that were trained for another one."""
    ckpts: tuple[str, ...] = ()
    """``F`` or ``NAME=F``."""
    taus: tuple[int, ...] = (50,)
    sampler: RestoreOptions = field(default_factory=RestoreOptions)
    denoiser: str | None = None
    restorer: str | None = None
    prefix: str = ""
    keys: Path | None = None
    seeds: tuple[int, ...] = (0,)
    profile: str | None = None
    device: str = "auto"
    background: str | None = None
    pictures: int = 24
    weights_dir: Path | None = None
    require: tuple[str, ...] = ()
    resume: bool = False
    command: str = ""


def evaluate_restoration(options: RestorationRun) -> Outcome:
    """Evaluate, or go on with an evaluation, and write everything into the run folder.

    Raises:
        UserError: an option is wrong, a picture has no partner, or the folder holds another
            evaluation.
        OSError: the run folder cannot be written.
    """
    protocol = find_protocol(options.protocol)
    check_background(options.background)
    check_pictures(options.pictures)
    check_run_folder(options.out, resume=options.resume)
    record = _degradation(options, protocol)
    meters = open_meters(
        (column.metric for column in protocol.columns),
        WeightFolders.of(options.weights_dir),
        require=options.require,
    )
    keys = None if options.keys is None else read_keys(options.keys)
    items = open_source(options.data, prefix=options.prefix, keys=keys)
    inputs = _Inputs(
        None if record is None else build_degradation(record),
        {} if options.degraded is None else _partners(items, options),
        options.background,
    )
    methods = _methods(options, inputs.scale(items))
    if not options.other_degradation:
        check_degradation(methods, record)
    _check_sampler(options, methods)
    identity = _identity(options, protocol, record, items, inputs.partners, methods, meters)
    with open_run(options.out, identity, command=options.command, resume=options.resume) as command:
        done = {row.id: row for row in read_rows(options.out) if intact(options.out, row)}
        with RowWriter(options.out) as writer:
            loop = _Loop(options, protocol, methods, inputs, meters, writer, set(done))
            for item in tqdm(items, unit="picture", disable=None, leave=False):
                loop.picture(item)
        report = Report(
            out=options.out,
            protocol=protocol,
            methods=[method.method for method in methods],
            seeds=options.seeds,
            total=len(items),
            run_id=identity.run_id,
            command=command,
            pictures=options.pictures,
            clean=inputs.truths({item.key: item for item in items}),
            output=lambda row: read_output(options.out / str(row.png))[0],
            about=[method.about for method in methods if method.about],
        )
        return report.write(read_rows(options.out))


def _degradation(options: RestorationRun, protocol: Protocol) -> Record | None:
    """How the pictures are degraded; None where they lie in files."""
    own = protocol.degradation
    if options.restorer == GIVEN and options.degraded is None:
        told = "given: name the folder of the restored pictures with --degraded"
        raise UserError(told, where="--restorer")
    if options.degraded is not None:
        if options.degradation is not None:
            raise UserError("goes with no --degraded; leave one out", where="--degradation")
        return None
    if own is not None and options.degradation is not None:
        raise UserError(f"{protocol.name} has its own; leave it out", where="--degradation")
    if own is None and options.degradation is None:
        raise UserError(
            f"{protocol.name} needs degraded pictures: give their folder, or a --degradation; "
            "compare takes pictures that are restored",
            where="--degraded",
        )
    return own or options.degradation


def _partners(items: Sequence[Item], options: RestorationRun) -> dict[str, Item]:
    part = "restored" if options.restorer == GIVEN else "degraded"
    opened = open_source(
        options.degraded or "", prefix=options.prefix, option="--degraded", part=part
    )
    found = {item.key: item for item in opened}
    missing = [item.key for item in items if item.key not in found]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(items)} pictures are not there: {listed(missing)}",
            where=f"--degraded {options.degraded}",
        )
    return {item.key: found[item.key] for item in items}


def _methods(options: RestorationRun, scale: int) -> list[Restoring]:
    networks = Networks(
        device=pick_device(options.device), profile=options.profile,
        denoiser=options.denoiser, restorer=options.restorer,
    )  # fmt: skip
    methods = [enlarged(scale)]
    for text in options.ckpts:
        methods += methods_of(text, options.taus, options.sampler, networks)
    if not any("options" in method.identity for method in methods):
        for name in ("denoiser", "restorer"):
            if getattr(options, name) is not None:
                raise UserError("no --ckpt is a fusion training, to use it", where=f"--{name}")
    check_names([method.method for method in methods], "--ckpt")
    return methods


def _check_sampler(options: RestorationRun, methods: Sequence[Restoring]) -> None:
    plain = RestoreOptions(posterior=PosteriorOptions(tau=options.sampler.posterior.tau))
    chosen = dataclasses.replace(options.sampler, tile=None) != plain or options.taus != (50,)
    if chosen and not any(method.fused for method in methods):
        raise UserError(
            "is no fusion training; leave --tau and the options of its sampler out", where="--ckpt"
        )


@dataclass(frozen=True)
class _Inputs:
    """Degraded pictures and their truths."""

    degradation: Degradation | None
    partners: Mapping[str, Item]
    background: str | None

    def scale(self, items: Sequence[Item]) -> int:
        """How many times larger the truths are; of the first picture that can be used.

        Raises:
            UserError: of the first picture, where there is none.
        """
        errors = []
        for item in items:
            try:
                degraded, truth = self(item)
            except UserError as error:
                errors.append(error)
                continue
            return max(1, int(truth.shape[0]) // int(degraded.shape[-2]))
        raise errors[0]

    def __call__(self, item: Item) -> tuple[Tensor, Values]:
        """(1, C, h, w) in [0, 1], multiples of 1/255 where it is made; and the truth.

        Raises:
            UserError: a picture cannot be read, or the two do not fit.
        """
        picture = item.picture(self.background)
        truth = truth_of(picture)
        if self.degradation is None:
            degraded = from_pixels(self.partners[item.key].picture(self.background).pixels)
            _check_scale(degraded, truth, item.where)
            return degraded, truth
        height, width = (
            side // self.degradation.multiple * self.degradation.multiple
            for side in truth.shape[:2]
        )
        if not height or not width:
            told = f"is {truth.shape[1]}x{truth.shape[0]}, too small for this degradation"
            raise UserError(told, where=item.where)
        clean = from_pixels(picture.pixels)[..., :height, :width]
        try:
            made = self.degradation(clean[0], torch_generator(0, item.key, "degradation"))
        except UserError as error:
            told = error.message.partition(";")[0]
            raise UserError(f"cannot be degraded so: {told}", where=item.where) from None
        return from_pixels(to_uint8(made[None])[0]), truth[:height, :width]

    def truths(self, items: Mapping[str, Item]) -> _Truths:
        """The clean pictures for the eye."""
        return _Truths(self, items)


def _check_scale(degraded: Tensor, truth: Values, where: str) -> None:
    height, width = degraded.shape[2:]
    scale = truth.shape[0] // height
    if truth.shape[:2] != (scale * height, scale * width):
        sides = f"{truth.shape[1]}x{truth.shape[0]}, its degraded picture {width}x{height}"
        raise UserError(f"is {sides}: no whole scale", where=where)


@dataclass(frozen=True)
class _Truths:
    inputs: _Inputs
    items: Mapping[str, Item]

    def __call__(self, key: str) -> Pixels | None:
        try:
            _, truth = self.inputs(self.items[key])
        except UserError:
            return None
        rounded: Pixels = np.floor(truth + 0.5).astype(np.uint8)
        return rounded


@dataclass(frozen=True)
class _Loop:
    options: RestorationRun
    protocol: Protocol
    methods: Sequence[Restoring]
    inputs: _Inputs
    meters: Meters
    writer: RowWriter
    done: set[tuple[str, str, int, float]]

    def picture(self, item: Item) -> None:
        """All rows of one picture that are not there yet."""
        wanted = [
            (method, Row(key=item.key, method=method.name, seed=seed))
            for method in self.methods
            for seed in self.options.seeds[: None if method.seeded else 1]
        ]
        wanted = [(method, row) for method, row in wanted if row.id not in self.done]
        if not wanted:
            return
        try:
            degraded, truth = self.inputs(item)
        except UserError as error:
            for _, row in wanted:
                self.writer.add(dataclasses.replace(row, error=reason_of(error)))
            return
        height, width = truth.shape[:2]
        for method, row in wanted:
            sized = dataclasses.replace(row, width=width, height=height)
            self.writer.add(self._row(method, sized, degraded, truth))

    def _row(self, method: Restoring, row: Row, degraded: Tensor, truth: Values) -> Row:
        begun = time.perf_counter()
        try:
            restored, nfe = method.apply(degraded, row.key, row.seed)
            seconds = time.perf_counter() - begun
            if restored.shape[2:] != truth.shape[:2]:
                found = f"{restored.shape[3]}x{restored.shape[2]}"
                told = f"the output is {found}, the truth {truth.shape[1]}x{truth.shape[0]}"
                raise UserError(told)
            name = png_name(row)
            write_output(self.options.out, name, restored)
            pixels, sha256 = read_output(self.options.out / name)
        except (UserError, RuntimeError, ValueError, MemoryError) as error:
            return dataclasses.replace(row, error=reason_of(error))
        metrics, blanks = scores(self.protocol, pixels, truth, self.meters)
        return dataclasses.replace(
            row, metrics=metrics, blanks=blanks, png=name, sha256=sha256, nfe=nfe,
            seconds=seconds if method.timed else None,
        )  # fmt: skip


def _identity(
    options: RestorationRun,
    protocol: Protocol,
    record: Record | None,
    items: Sequence[Item],
    partners: Mapping[str, Item],
    methods: Sequence[Restoring],
    meters: Meters,
) -> Identity:
    parts: dict[str, object] = {
        "protocol": protocol.identity(),
        "degradation": None if record is None else dict(record),
        "methods": {method.name: method.identity for method in methods},
        "missing": sorted(meters.missing),
        "seeds": list(options.seeds),
        "dtype": "float32",
        "flags": {"device": options.device, "background": options.background},
        "versions": versions(),
    }
    data = digests(items)
    data |= {f"{key} (degraded)": partner.digest() for key, partner in partners.items()}
    return Identity(parts=parts, data=data)
