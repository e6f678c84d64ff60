"""Libraries that chatter are told not to; their warnings that are ours to act on are acted on."""

from __future__ import annotations

import logging
import sys
import warnings

_SILENCED = (
    ".*does not have many workers.*",
    ".*you defined a `validation_step` but have no `val_dataloader`.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*Found .* module\\(s\\) in eval mode.*",
    ".*LeafSpec.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*intended to run from within Python like if it were from the command line.*",
)


def quieten() -> None:
    """Only warnings and errors reach the terminal, and none of the known empty ones."""
    ours = logging.getLogger("lit_restore")
    ours.handlers = [logging.StreamHandler(sys.stderr)]
    ours.propagate = False
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for pattern in _SILENCED:
        warnings.filterwarnings("ignore", pattern)
