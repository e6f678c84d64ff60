"""How sizes and names that strangers chose appear in error lines."""

from __future__ import annotations

_UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB", "EB")
_LONGEST = 80


def human_size(count: int) -> str:
    """`count` bytes in decimal units, two digits at least: ``24 bytes``, ``1.4 MB``, ``50 MB``."""
    if count == 1:
        return "1 byte"
    scaled, unit = float(min(count, 10**30)), 0
    while scaled >= 999.5 and unit < len(_UNITS) - 1:
        scaled, unit = scaled / 1000, unit + 1
    if unit == 0:
        return f"{count} bytes"
    return f"{scaled:.{1 if scaled < 9.95 else 0}f} {_UNITS[unit]}"


def shown(name: str, *, tail: bool = False) -> str:
    """`name` safe to print on one line of a terminal: control characters escaped, cut at 80.

    Args:
        name: what somebody chose.
        tail: cut at the front, as a path whose end matters.
    """
    short = name
    if len(name) > _LONGEST:
        short = "…" + name[1 - _LONGEST :] if tail else name[: _LONGEST - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)
