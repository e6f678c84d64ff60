"""A degradation as a recipe names it → as a record holds it."""

from __future__ import annotations

from collections.abc import Mapping

from lit_restore.data.degradations.chain import describe
from lit_restore.data.degradations.listed import Record, build_degradation
from lit_restore.errors import UserError


def record_of(tree: object, *, where: str) -> dict[str, object]:
    """The record of a recipe's entry ``{class_path: …, init_args: {…}}``.

    Args:
        tree: as a configuration holds it; the class by its short name or in full.
        where: named in the error line.

    Raises:
        UserError: it is no such entry, there is no such degradation, or its options do not fit.
    """
    name = tree.get("class_path") if isinstance(tree, Mapping) else None
    if not isinstance(tree, Mapping) or not isinstance(name, str):
        raise UserError("is no {class_path: NAME, init_args: {OPTION: VALUE}}", where=where)
    options = dict(tree.get("init_args") or {})
    if isinstance(options.get("steps"), list):
        options["steps"] = [record_of(step, where=where) for step in options["steps"]]
    record: dict[str, object] = {"name": name.rpartition(".")[2], "options": options}
    try:
        # With all defaults: what is left out and what is written out is the same.
        return describe(build_degradation(record))
    except UserError as error:
        raise UserError(error.message, where=where) from None


def as_record(told: object, *, where: str) -> Record | None:
    """What a checkpoint tells of its training's degradation, as a record.

    Args:
        told: a record, the entry of a recipe, or None.
        where: named in the error line.

    Raises:
        UserError: it is neither.
    """
    if told is None:
        return None
    if isinstance(told, Mapping) and "name" in told:
        return told
    return record_of(told, where=where)
