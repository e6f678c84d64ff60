"""Whether whoever started this process vouches for its configs: given by hand, by nothing else."""

from __future__ import annotations

_given = False


def give() -> None:
    """Trust the configs of this process; only the command line's ``--trust_config`` calls this."""
    global _given
    _given = True


def given() -> bool:
    """Whether a config may ask for what runs commands."""
    return _given
