"""One check for every option that is one of a few names."""

from __future__ import annotations

from collections.abc import Iterable

from lit_restore.errors import UserError


def require_choice(value: str, choices: Iterable[str], *, where: str) -> str:
    """`value`, if it is one of `choices`.

    Args:
        value: what the user gave.
        choices: the names there are.
        where: the option's name.

    Raises:
        UserError: it is none of them; the line lists them.
    """
    known = list(choices)
    if value not in known:
        raise UserError(f"{value!r} is not one of {', '.join(known)}", where=where)
    return value
