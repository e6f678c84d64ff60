"""Which classes a config may name: the gate in front of every import that a file asks for.

The argument parser imports whatever a ``class_path`` names before it looks at the type, so naming
a module in a YAML would run it. `close_gate` limits the parser to the list below;
`check_class_paths` refuses the same in a config's tree, earlier and with a line of its own.
Packages are allowed only where everything in them is a layer, an optimiser or ours; of Lightning,
single classes, because `LambdaCallback` runs any callable and can be reached by several names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping

from jsonargparse import set_parsing_settings

from lit_restore.errors import UserError
from lit_restore.io import trust

PACKAGES = (
    "lit_restore.callbacks",
    "lit_restore.data",
    "lit_restore.diffusion",
    "lit_restore.evaluation",
    "lit_restore.inverse",
    "lit_restore.networks",
    "lit_restore.parallel",
    "lit_restore.training",
    "torch.nn",
    "torch.optim",
)
"""Packages whose classes may be named; of ours, all that build no files or commands."""

_LIGHTNING = {
    "callbacks.device_stats_monitor": ("DeviceStatsMonitor",),
    "callbacks.early_stopping": ("EarlyStopping",),
    "callbacks.lr_monitor": ("LearningRateMonitor",),
    "callbacks.model_summary": ("ModelSummary",),
    "callbacks.progress.rich_progress": ("RichProgressBar",),
    "callbacks.progress.tqdm_progress": ("TQDMProgressBar",),
    "callbacks.rich_model_summary": ("RichModelSummary",),
    "callbacks.spike": ("SpikeDetection",),
    "callbacks.throughput_monitor": ("ThroughputMonitor",),
    "callbacks.timer": ("Timer",),
    "loggers.csv_logs": ("CSVLogger",),
    "loggers.tensorboard": ("TensorBoardLogger",),
    "profilers.advanced": ("AdvancedProfiler",),
    "profilers.base": ("PassThroughProfiler",),
    "profilers.pytorch": ("PyTorchProfiler",),
    "profilers.simple": ("SimpleProfiler",),
    "strategies.ddp": ("DDPStrategy",),
    "strategies.fsdp": ("FSDPStrategy",),
    "strategies.model_parallel": ("ModelParallelStrategy",),
    "strategies.single_device": ("SingleDeviceStrategy",),
}


def lightning_classes() -> Iterator[str]:
    """The classes of `lightning.pytorch` that may be named, as exported and as defined."""
    for module, names in _LIGHTNING.items():
        for name in names:
            yield f"lightning.pytorch.{module.split('.')[0]}.{name}"
            yield f"lightning.pytorch.{module}.{name}"


_CLASSES = frozenset(lightning_classes())
_IN_PACKAGE = re.compile(
    "(?:" + "|".join(re.escape(name) for name in PACKAGES) + r")(?:\.[a-z][a-z0-9_]*)*\.[A-Z]\w*"
)
_SHORT = re.compile(r"[A-Za-z_]\w*")


def close_gate() -> None:
    """Let the argument parser import nothing but what is listed here.

    Call it before any parser exists; a second call changes nothing.
    """
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[*PACKAGES, *sorted(_CLASSES)]
    )


def open_gate() -> None:
    """Say that the gate stays open: configs may import and run anything.

    For ``--trust_config`` on the command line; no config and no environment may ask for it.
    """
    trust.give()
    print("warning: --trust_config: configs may import and run anything", file=sys.stderr)


def is_allowed(class_path: str) -> bool:
    """Whether a config may name this class.

    A name without dots passes: the parser looks it up among the subclasses it already knows, and
    checks the full path it finds.
    """
    return (
        class_path in _CLASSES
        or _IN_PACKAGE.fullmatch(class_path) is not None
        or _SHORT.fullmatch(class_path) is not None
    )


def check_class_paths(tree: object, where: str, *, from_checkpoint: bool = False) -> None:
    """Refuse a config that names a class outside the list, before anything is imported.

    Args:
        tree: nested mappings and lists, as read from YAML or JSON.
        where: the file, named in the error line.
        from_checkpoint: the config lies inside a checkpoint; changes the line only.

    Raises:
        UserError: naming the first such class.
    """
    for class_path in _class_paths(tree):
        if not isinstance(class_path, str):
            raise UserError(f"class_path expects a name, got {class_path!r}", where=where)
        if is_allowed(class_path):
            continue
        if from_checkpoint:
            raise UserError(f"config names {class_path}, not allowed", where=where)
        raise UserError(
            f"class_path {class_path} is not allowed; --trust_config would run it", where=where
        )


def _class_paths(tree: object) -> Iterator[object]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(key, str) and key.rpartition(".")[2] == "class_path":
                yield value
            yield from _class_paths(value)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _class_paths(item)
