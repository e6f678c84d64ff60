"""The ranks that Lightning starts as children of rank 0, where no launcher did."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lit_restore.io import procs
from lit_restore.io.launch import PARENT, name_parent

PATIENCE = 90.0
"""Seconds that children may take to leave by themselves."""


class Children(_SubprocessScriptLauncher):
    """Lightning's launcher without the thread that kills everything when one child leaves.

    It takes any code but 0 for a crash, also 75 (stopped by a signal, saved), and kills rank 0
    within five seconds of it, whatever that is still writing. Our ranks find out by themselves.
    """

    procs: list[subprocess.Popen[bytes]]

    @classmethod
    def instead_of(cls, launcher: Any) -> Any:
        """Ours in place of Lightning's; any other launcher, or none, as it is."""
        if type(launcher) is not _SubprocessScriptLauncher:
            return launcher
        return cls(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Start the children, then call the function."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            name_parent(procs.this_process())
            try:
                self._call_children_scripts()
            finally:
                os.environ.pop(PARENT, None)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        kwargs.pop("trainer", None)
        return function(*args, **kwargs)

    def failed(self) -> str | None:
        """Which child ended with an error, in words."""
        for number, child in enumerate(self.procs, start=1):
            if child.poll():
                return f"child {number} (pid {child.pid}) ended with code {child.returncode}"
        return None

    def end(self, patience: float = PATIENCE) -> None:
        """Wait for the children to leave; kill those that do not, stopped ones too."""
        deadline = time.monotonic() + patience
        for child in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        self.kill_all()

    def kill_all(self) -> None:
        """Kill the children that still run, at once."""
        for child in self.procs:
            if child.poll() is None:
                child.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(5)
