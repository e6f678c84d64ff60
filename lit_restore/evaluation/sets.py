"""`evaluate.py sets`: how far sets of pictures are from a real one.

A number is about pictures as 8 bits, a feature network, both counts and the draw: all of them stand
in the table, and in `sets.json` with the sha256 of what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lit_restore.data.packing_progress import Progress
from lit_restore.errors import UserError, require_at_least
from lit_restore.evaluation.distribution import SET_METRICS, DistributionScore, SetMetric
from lit_restore.evaluation.features import FeatureNetwork, open_features
from lit_restore.evaluation.given import check_background, check_out
from lit_restore.evaluation.identity import Identity, versions
from lit_restore.evaluation.methods import pick_device
from lit_restore.evaluation.set_pictures import PictureSet, open_set
from lit_restore.evaluation.set_reader import Measured, SetReader, listed_sizes
from lit_restore.evaluation.set_table import (
    SetLine,
    SetTable,
    comma_separated,
    make_table,
    markdown,
)
from lit_restore.io import fs
from lit_restore.io.redact import redact

RESULT = "sets.json"
_TABLES = ("table.md", "table.csv")
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SetsOptions:
    """What `evaluate.py sets` is asked for."""

    real: str
    fakes: tuple[str, ...]
    """``PATH`` or ``NAME=PATH``, each a row of the table."""
    features: str
    metrics: tuple[str, ...] = ("fd", "kid", "precision", "recall")
    count: int | None = None
    """Pictures drawn from each set; None for all."""
    seed: int = 0
    max_bad: int = 0
    """Damaged pictures, in all sets together, that may be left out."""
    background: str | None = None
    device: str = "auto"
    out: Path | None = None
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class SetsOutcome:
    """What was found."""

    table: SetTable
    failed: dict[str, str]
    """Picture → why it was left out."""


def compare_sets(options: SetsOptions) -> SetsOutcome:
    """Read the sets, compare each of the fakes with the real one, and write the results.

    Raises:
        UserError: an option is wrong, a set is not there, more pictures are damaged than allowed,
            or their sizes differ where the network does not resize.
        OSError: the results cannot be written.
    """
    _check(options)
    network = open_features(options.features)
    score = DistributionScore(network, _metrics(options.metrics), seed=options.seed)
    device = pick_device(options.device)
    real = open_set(options.real, option="--real", background=options.background)
    fakes = [open_set(t, option="--fake", background=options.background) for t in options.fakes]
    _check_names(fakes)
    chosen = {id(s): s.draw(options.count, options.seed) for s in (real, *fakes)}
    if options.out is not None:
        fs.check_writable(options.out)
    total = sum(len(indices) for indices in chosen.values())
    lines: list[SetLine] = []
    measured: list[Measured] = []
    with Progress(total, enabled=True) as progress:
        reader = SetReader(network, device, options.max_bad, progress)
        base = reader.read(real, chosen[id(real)])
        for fake in fakes:
            found = reader.read(fake, chosen[id(fake)])
            reader.say(f"{fake.name}: comparing")
            lines.append(_line(score, base, found))
            measured.append(replace(found, features=found.features[:0].clone()))
    identity = _identity(options, score, device, base, measured)
    table = make_table(
        network,
        score.metrics,
        lines,
        notes=_notes(network, options, base, measured, reader.failed),
        footer=[*_words(score, options, base), f"run {identity.run_id}", redact(options.command)],
    )
    if options.out is not None:
        _write(options.out, table, identity, [base, *measured], lines, options)
    return SetsOutcome(table=table, failed=reader.failed)


def _check(options: SetsOptions) -> None:
    require_at_least(1, **{"--count": options.count})
    require_at_least(0, **{"--seed": options.seed, "--max_bad": options.max_bad})
    check_background(options.background)
    if options.out is None:
        return
    check_out(options.out)
    held = [path.name for path in fs.list_dir(options.out)] if fs.exists(options.out) else []
    held = [name for name in held if not name.startswith(fs.TEMPORARY)]
    if RESULT in held:
        raise UserError("exists; choose another --out", where=options.out)
    if not set(held) <= set(_TABLES):
        raise UserError("holds other things; choose another --out", where=options.out)


def _metrics(names: Sequence[str]) -> list[SetMetric]:
    """The metrics, each once; `DistributionScore` knows them too, but not the option."""
    known: dict[str, SetMetric] = {metric: metric for metric in SET_METRICS}
    for name in names:
        if name not in known:
            told = f"no such metric of sets; there are {', '.join(SET_METRICS)}"
            raise UserError(told, where=f"--metrics {name}".rstrip())
    if not names:
        raise UserError(f"is empty; there are {', '.join(SET_METRICS)}", where="--metrics")
    return [known[name] for name in dict.fromkeys(names)]


def _check_names(fakes: Sequence[PictureSet]) -> None:
    names = [fake.name for fake in fakes]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two are called {name}; name them: NAME=PATH", where="--fake")


def _line(score: DistributionScore, real: Measured, fake: Measured) -> SetLine:
    score.merge([{**_state("real", real), **_state("fake", fake)}])
    found = score.compute()
    suffix = f"_{score.network.kind}"
    assert found["n_real"] == real.count, (found["n_real"], real.count)
    assert found["n_fake"] == fake.count, (found["n_fake"], fake.count)
    return SetLine(
        name=fake.pictures.name,
        real=real.count,
        of_real=real.pictures.size,
        fake=fake.count,
        of_fake=fake.pictures.size,
        values={k.removesuffix(suffix): v for k, v in found.items() if k.endswith(suffix)},
        blanks=dict(score.blanks),
    )


def _state(side: str, found: Measured) -> dict[str, Tensor]:
    """As `DistributionScore.state` names it."""
    return {
        f"{side}_features": found.features,
        f"{side}_positions": torch.arange(len(found.features)),
    }


# What is said, and what is kept -------------------------------------------------------------------


def _notes(
    network: FeatureNetwork,
    options: SetsOptions,
    real: Measured,
    fakes: Sequence[Measured],
    failed: dict[str, str],
) -> list[str]:
    notes = [remark for side in (real, *fakes) for remark in side.pictures.remarks]
    sides = {side.pictures.name: side.sizes for side in fakes if side.sizes != real.sizes}
    for name, sizes in sides.items():
        told = f"pictures of {name} are {listed_sizes(sizes)}, real ones {listed_sizes(real.sizes)}"
        notes.append(f"{told}: the features resize both, and the distance sees the difference")
    counts = [side.count for side in (real, *fakes)]
    if "fd" in options.metrics and min(counts) <= network.dimension:
        told = f"{min(counts)} pictures are no more than the {network.dimension} features"
        notes.append(f"{told}: covariances are singular and FD far too high; take more")
    if len({fake.count for fake in fakes}) > 1:
        notes.append("rows differ in N: FD falls as N grows, so --count one number for all")
    return notes + [f"left out: {where}: {why}" for where, why in failed.items()]


def _words(score: DistributionScore, options: SetsOptions, real: Measured) -> list[str]:
    network = score.network
    drawn = "" if options.count is None else f", drawn at random with seed {options.seed}"
    words = [
        f"sets v{_VERSION}: pictures as 8 bits, resized by the features; the number of pictures "
        "is part of a distance, compare rows of equal N only",
        f"features: {network.identity}; {network.dimension} numbers a picture",
        f"real: {real.pictures.name}, {real.count} of {real.pictures.size} pictures{drawn}",
    ]
    if "kid" in score.metrics:
        words.append(
            f"KID: times 1000, mean ± sd of {score.kid_subsets} random subsets of 1000; all at "
            "once where both sets are of one size and no larger"
        )
    return words


def _identity(
    options: SetsOptions,
    score: DistributionScore,
    device: torch.device,
    real: Measured,
    fakes: Sequence[Measured],
) -> Identity:
    network = score.network
    parts: dict[str, object] = {
        "protocol": {
            "name": "sets",
            "version": _VERSION,
            "metrics": list(score.metrics),
            "features": {
                "kind": network.kind,
                "name": network.name,
                "digest": network.digest,
                "dimension": network.dimension,
            },
            "kid_subsets": score.kid_subsets,
            "count": options.count,
            "seed": options.seed,
        },
        "flags": {"device": device.type, "background": options.background},
        "versions": versions(),
    }
    data = {f"fake/{fake.pictures.name}": fake.sha256 for fake in fakes}
    return Identity(parts=parts, data={"real": real.sha256, **data})


def _write(
    out: Path,
    table: SetTable,
    identity: Identity,
    sides: Sequence[Measured],
    lines: Sequence[SetLine],
    options: SetsOptions,
) -> None:
    """`sets.json` last: it says that the folder is complete."""
    about = {
        "run_id": identity.run_id,
        "command": redact(options.command),
        **identity.document(),
        "real": _described(sides[0]),
        "fakes": [_described(side) for side in sides[1:]],
        "results": [{**asdict(line), "titles": table.titles(line)} for line in lines],
        "notes": table.notes,
    }
    text = json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    fs.make_dir(out)
    fs.write_atomic(out / "table.md", markdown(table))
    fs.write_atomic(out / "table.csv", comma_separated(table))
    fs.write_atomic(out / RESULT, text)


def _described(side: Measured) -> dict[str, object]:
    pictures = side.pictures
    return {
        "name": pictures.name,
        "given": pictures.given,
        "kind": pictures.kind,
        "n": side.count,
        "of": pictures.size,
        "sizes": listed_sizes(side.sizes),
        "sha256": side.sha256,
    }
