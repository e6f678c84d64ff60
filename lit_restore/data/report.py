"""What could not be read: counted, named, and too many of them an error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from lit_restore.errors import UserError

_log = logging.getLogger(__name__)


class BadSamples:
    """The distinct samples that could not be read so far.

    Args:
        allowed: how many may be replaced before the run ends.
        shards: shard → why it was left out.
    """

    def __init__(self, allowed: int, shards: Mapping[str, str] | None = None) -> None:
        self.allowed = allowed
        self.shards = dict(shards or {})
        """Shard → why it was left out."""
        self.samples: dict[str, str] = {}
        """Sample → why it cannot be read."""

    @property
    def reasons(self) -> dict[str, str]:
        """Shard or sample → why it was left out or replaced."""
        return {**self.shards, **self.samples}

    def add(self, bad: Iterable[tuple[str, str]]) -> None:
        """Note unreadable samples; each is told once.

        Raises:
            UserError: more than `allowed` distinct samples cannot be read.
        """
        for name, reason in bad:
            if name in self.samples:
                continue
            self.samples[name] = reason
            _log.warning("%s: %s; replaced by the next sample", name, reason)
            if len(self.samples) > self.allowed:
                raise UserError(
                    f"{reason}; more than {self.allowed} samples cannot be read: repair them "
                    "(lit-restore shards verify --decode lists all) or raise data.max_bad",
                    where=name,
                )
