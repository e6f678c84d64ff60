"""`evaluate.py compare`: pictures that exist already, against their truths."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lit_restore.errors import UserError
from lit_restore.evaluation.given import check_background, check_pictures
from lit_restore.evaluation.identity import (
    Identity,
    check_run_folder,
    digests,
    open_run,
    versions,
)
from lit_restore.evaluation.methods import Method, check_names, split_name
from lit_restore.evaluation.perceptual.meters import Meters, open_meters
from lit_restore.evaluation.perceptual.weights import WeightFolders
from lit_restore.evaluation.protocols import Protocol, find_protocol
from lit_restore.evaluation.report import Outcome, Report
from lit_restore.evaluation.rows import Row, RowWriter, read_rows
from lit_restore.evaluation.scoring import for_the_eye, scores, truth_of
from lit_restore.evaluation.sources import Item, listed, open_source
from lit_restore.io.images import Picture
from lit_restore.io.quantise import Pixels
from lit_restore.io.wording import shown

Side = Mapping[str, Item]
"""Key after `strip_suffix` → picture."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What `evaluate.py compare` is asked for."""

    preds: tuple[str, ...]
    """``DIR`` or ``NAME=DIR``, each a row of the table."""
    target: str
    protocol: str
    out: Path
    strip_suffix: str | None = None
    """Regular expression for what the ends of keys may hold more on one side."""
    allow_missing: bool = False
    background: str | None = None
    pictures: int = 24
    weights_dir: Path | None = None
    """Searched for the weights of metrics before $LIT_RESTORE_WEIGHTS and torch hub's cache."""
    require: tuple[str, ...] = ()
    """Perceptual metrics that must have a value: without their weights nothing is measured."""
    command: str = ""


def compare(options: CompareOptions) -> tuple[Outcome, list[str]]:
    """Pair, check all sizes, measure.

    Returns:
        What was found, and remarks for the user (colour profiles that differ).

    Raises:
        UserError: an option is wrong, pictures lack a partner, a pair's sizes differ, or weights
            are another's or required and missing.
        OSError: the run folder cannot be written.
    """
    protocol = _protocol(options.protocol)
    check_background(options.background)
    check_pictures(options.pictures)
    check_run_folder(options.out, resume=None)
    meters = open_meters(
        (column.metric for column in protocol.columns),
        WeightFolders.of(options.weights_dir),
        require=options.require,
    )
    named = [split_name(text, option="--pred") for text in options.preds]
    methods = [Method(name=name, restore=_given) for name, _ in named]
    check_names(methods, "--pred")
    target = _side(options.target, "--target", options.strip_suffix)
    preds = {n: _side(str(path), "--pred", options.strip_suffix) for n, path in named}
    keys = _paired(target, preds, allow_missing=options.allow_missing)
    remarks = _check_pairs(keys, target, preds, options.background)
    identity = _identity(options, protocol, keys, target, preds, meters)
    with open_run(options.out, identity, command=options.command, resume=None):
        with RowWriter(options.out) as writer:
            for key in keys:
                for name, side in preds.items():
                    row = Row(key=key, method=name, sigma=_sigma(protocol))
                    writer.add(_scored(row, protocol, side[key], target[key], options, meters))
        report = Report(
            out=options.out,
            protocol=protocol,
            methods=methods,
            seeds=(0,),
            total=len(keys),
            of=len(target),
            run_id=identity.run_id,
            command=options.command,
            pictures=options.pictures,
            clean=lambda key: for_the_eye(target[key], options.background),
            output=lambda row: _shown_output(preds[row.method][row.key], options.background),
        )
        return report.write(read_rows(options.out)), remarks


def _given(noisy: Tensor, sigma: float) -> Tensor:
    raise AssertionError("compare runs no method")


def _protocol(name: str) -> Protocol:
    protocol = find_protocol(name)
    if protocol.data is not None:
        raise UserError(
            f"{name} makes its own pictures; use it with run, or compare by pixels",
            where=f"--protocol {name}",
        )
    if len(protocol.sigmas) > 1:
        levels = ", ".join(f"{name}-{sigma:g}" for sigma in protocol.sigmas)
        raise UserError(
            f"has several noise levels; compare one of them: {levels}", where=f"--protocol {name}"
        )
    return protocol


def _side(data: str, option: str, strip_suffix: str | None) -> dict[str, Item]:
    items = open_source(data, option=option)
    if strip_suffix is None:
        return {item.key: item for item in items}
    try:
        suffix = re.compile(f"(?:{strip_suffix})$")
    except re.error as error:
        raise UserError(
            f"is no regular expression ({error}); put \\ before a plain dot or bracket",
            where=f"--strip-suffix {strip_suffix}",
        ) from None
    side: dict[str, Item] = {}
    for item in items:
        key = suffix.sub("", item.key)
        if key in side or not key:
            where = f"--strip-suffix {strip_suffix}"
            if not key:
                raise UserError(
                    f"leaves nothing of {shown(item.where, tail=True)}; cut less", where=where
                )
            raise UserError(
                f"leaves {shown(side[key].where)} and {shown(item.where)} with one key "
                f"{shown(key)!r}; cut less",
                where=where,
            )
        side[key] = item
    return side


def _paired(target: Side, preds: Mapping[str, Side], *, allow_missing: bool) -> list[str]:
    """Keys that every side has, sorted."""
    common = sorted(set(target).intersection(*preds.values()))
    problems = []
    for name, side in preds.items():
        without_truth = sorted(set(side) - set(target))
        without_pred = sorted(set(target) - set(side))
        if without_truth:
            problems.append(f"{len(without_truth)} only in {name}: {listed(without_truth)}")
        if without_pred:
            problems.append(f"{len(without_pred)} not in {name}: {listed(without_pred)}")
    if problems and (not allow_missing or not common):
        mend = "--allow-missing measures the rest" if common else "see --strip-suffix"
        raise UserError(f"unpaired pictures, {'; '.join(problems)}; {mend}", where="--target")
    return common


def _check_pairs(
    keys: Sequence[str], target: Side, preds: Mapping[str, Side], background: str | None
) -> list[str]:
    """Refuse pairs of different sizes; unreadable pictures are failed rows later."""
    remarks: list[str] = []
    for key in keys:
        truth = _picture(target[key], background)
        for side in preds.values():
            pred = _picture(side[key], background)
            if truth is None or pred is None:
                continue
            if pred.pixels.shape != truth.pixels.shape:
                raise UserError(
                    f"is {_size(pred)}, the truth is {_size(truth)}; make them alike, or take both "
                    "away",
                    where=side[key].where,
                )
            if pred.profile != truth.profile and not remarks:
                remarks.append(
                    f"{pred.name} and {truth.name} have different colour profiles; pixels are "
                    "compared as they are stored"
                )
    return remarks


def _picture(item: Item, background: str | None) -> Picture | None:
    try:
        return item.picture(background)
    except UserError:
        return None


def _size(picture: Picture) -> str:
    height, width, channels = picture.pixels.shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def _sigma(protocol: Protocol) -> float:
    return protocol.sigmas[0] if protocol.sigmas else 0.0


def _scored(
    row: Row,
    protocol: Protocol,
    pred: Item,
    target: Item,
    options: CompareOptions,
    meters: Meters,
) -> Row:
    try:
        estimate = pred.picture(options.background)
        truth = truth_of(target.picture(options.background))
    except UserError as error:
        return dataclasses.replace(row, error=str(error))
    metrics, blanks = scores(protocol, truth_of(estimate), truth, meters)
    return dataclasses.replace(
        row,
        width=truth.shape[1],
        height=truth.shape[0],
        metrics=metrics,
        blanks=blanks,
        sha256=pred.digest(),
    )


def _shown_output(item: Item, background: str | None) -> Pixels:
    pixels = for_the_eye(item, background)
    assert pixels is not None, item.where  # its row did not fail
    return pixels


def _identity(
    options: CompareOptions,
    protocol: Protocol,
    keys: Sequence[str],
    target: Side,
    preds: Mapping[str, Side],
    meters: Meters,
) -> Identity:
    parts: dict[str, object] = {
        "protocol": protocol.identity(),
        "methods": {name: _digest([side[key] for key in keys]) for name, side in preds.items()},
        "flags": {
            "strip_suffix": options.strip_suffix,
            "allow_missing": options.allow_missing,
            "background": options.background,
        },
        "versions": versions(),
    }
    if meters.functions or meters.missing:
        # The weights themselves are part of the metrics' definitions.
        parts["perceptual"] = {
            "measured": sorted(meters.functions),
            "missing": sorted(meters.missing),
        }
    chosen = [target[key] for key in keys]
    by_item = digests(chosen)
    return Identity(
        parts=parts, data={k: by_item[item.key] for k, item in zip(keys, chosen, strict=True)}
    )


def _digest(items: Sequence[Item]) -> str:
    return hashlib.sha256("\n".join(item.digest() for item in items).encode()).hexdigest()
