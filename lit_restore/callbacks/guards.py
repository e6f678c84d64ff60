"""The options of what watches over a run."""

from __future__ import annotations

from typing import Literal

from lit_restore.errors import require_at_least


class Guards:
    """What watches over a run.

    Args:
        on_nonfinite: gradients that are not finite: "skip" (ten in a row end the run) or "stop"
            (the first one does).
        hang_timeout: seconds after which a step or a batch of validation counts as hung: the
            stacks are printed and the process ends; three times as many for the first step, for
            start-up and for saves; 0 for no limit.
        poll_every: steps between the ranks' agreements whether a signal came. Validation, grids
            and one process alone look at every batch.
    """

    def __init__(
        self,
        on_nonfinite: Literal["skip", "stop"] = "skip",
        hang_timeout: float = 600.0,
        poll_every: int = 1,
    ) -> None:
        require_at_least(0, guard__hang_timeout=hang_timeout)
        require_at_least(1, guard__poll_every=poll_every)
        self.on_nonfinite = on_nonfinite
        self.hang_timeout = hang_timeout
        self.poll_every = poll_every
