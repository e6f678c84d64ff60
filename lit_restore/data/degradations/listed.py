"""The degradations there are; rebuilding one from its record, and comparing two records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from lit_restore.data.degradations.base import KEY, Degradation
from lit_restore.data.degradations.blur import DefocusBlur, GaussianBlur
from lit_restore.data.degradations.chain import Chain
from lit_restore.data.degradations.haze import Haze
from lit_restore.data.degradations.motion import MotionBlur
from lit_restore.data.degradations.noise import GaussianNoise, JpegArtifacts
from lit_restore.data.degradations.scale import Downscale
from lit_restore.errors import UserError
from lit_restore.io.wording import shown

DEGRADATIONS: dict[str, type[Degradation]] = {
    "GaussianNoise": GaussianNoise,
    "JpegArtifacts": JpegArtifacts,
    "Downscale": Downscale,
    "GaussianBlur": GaussianBlur,
    "DefocusBlur": DefocusBlur,
    "MotionBlur": MotionBlur,
    "Haze": Haze,
    "Chain": Chain,
}
"""Short name → class."""

Record = Mapping[str, object]
"""``{"name": short name, "options": {…}}``, as `describe` makes it."""


def build_degradation(record: Record) -> Degradation:
    """The degradation of a record.

    Args:
        record: of `describe`, perhaps from an older version, whose options were fewer.

    Raises:
        UserError: the name is not in `DEGRADATIONS`, or the options do not fit it.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{shown(str(record))} is not a name and its options", where=KEY)
    name, options = record.get("name"), record.get("options")
    if not isinstance(name, str) or name not in DEGRADATIONS:
        known = ", ".join(DEGRADATIONS)
        raise UserError(f"{shown(str(name))} is not one of {known}", where=KEY)
    given = dict(options) if isinstance(options, Mapping) else {}
    steps = given.get("steps")
    if isinstance(steps, list):
        given["steps"] = [build_degradation(step) for step in steps]
    try:
        return DEGRADATIONS[name](**given)
    except UserError:
        raise
    except Exception:
        # Records come from files; whatever their options break is the file's fault.
        raise UserError(f"its options are not those of {name}", where=KEY) from None


def same_degradation(recorded: Record | None, given: Record | None) -> str | None:
    """What differs between the degradation of a training and the one in use.

    Args:
        recorded: as the checkpoint holds it; None where the training had none (pairs from shards).
        given: of the data at hand; likewise.

    Returns:
        None where they agree, else one line: "trained with Downscale.scale 4, given 2". Options
        that one record lacks have their defaults; whole numbers equal floats of their value.
    """
    if recorded is None or given is None:
        if recorded is given:
            return None
        return f"trained with {_name(recorded)}, given {_name(given)}"
    if recorded.get("name") != given.get("name"):
        return f"trained with {_name(recorded)}, given {_name(given)}"
    differences = _differences(_name(given), _options(recorded), _options(given))
    return next(differences, None)


def _name(record: Record | None) -> str:
    return "no degradation" if record is None else shown(str(record.get("name")))


def _options(record: Record) -> Mapping[str, object]:
    """All options, defaults included; as recorded where this version does not know them."""
    try:
        return build_degradation(record).options
    except UserError:
        options = record.get("options")
        return options if isinstance(options, Mapping) else {}


def _differences(where: str, one: object, other: object) -> Iterator[str]:
    """One line for each value that differs, at its dotted place."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from _differences(f"{where}.{shown(str(key))}", one.get(key), other.get(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{where}.{index}", a, b)
    elif not _equal(one, other):
        yield f"trained with {where} {shown(_text(one))}, given {shown(_text(other))}"


def _equal(one: object, other: object) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
    if numbers:
        assert isinstance(one, int | float)
        assert isinstance(other, int | float)
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def _text(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} steps"
    return f"{value:g}" if isinstance(value, float) else str(value)
