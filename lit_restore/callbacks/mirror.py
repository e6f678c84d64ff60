"""The W&B mirror of a run's records: never waited for, offline where there is no account."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any, Literal

from lit_restore.io import fs

_log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "off"]

_INIT_SECONDS = 20
_FINISH_SECONDS = 30


class WandbMirror:
    """Scalars and pictures to a W&B run whose id is kept in the run folder.

    A resumed run has the same id; offline, each part is a segment of its own.

    Args:
        run_dir: the run folder; W&B writes below it.
        project: the W&B project.
        mode: "online", "offline", or "auto": online where an API key is configured.
        config: the resolved configuration, redacted.
    """

    def __init__(self, run_dir: Path, *, project: str, mode: Mode, config: dict[str, Any]) -> None:
        self._run_dir, self._project, self._mode, self._config = run_dir, project, mode, config
        self._run: Any = None

    def start(self) -> None:
        """Begin the segment, once it is clear that the run itself begins."""
        self._within(_INIT_SECONDS, "start", self._init)

    def _init(self) -> None:
        import wandb

        online = self._mode == "online" or (self._mode == "auto" and _has_key())
        self._run = wandb.init(
            project=self._project,
            dir=str(self._run_dir),
            id=run_id(self._run_dir),
            name=self._run_dir.name,
            resume="allow",
            mode="online" if online else "offline",
            config=self._config,
            settings=wandb.Settings(console="off", silent=True, init_timeout=_INIT_SECONDS),
        )
        self._run.define_metric("samples_seen")
        self._run.define_metric("*", step_metric="samples_seen")

    def metrics(self, samples_seen: int, values: dict[str, float]) -> None:
        """Log scalars over samples_seen."""
        if self._run is not None:
            self._run.log({"samples_seen": samples_seen, **values})

    def picture(self, samples_seen: int, name: str, path: Path) -> None:
        """Log a picture that is on disk."""
        if self._run is not None:
            import wandb

            self._run.log({"samples_seen": samples_seen, name: wandb.Image(str(path))})

    def close(self) -> None:
        """Finish the segment, waiting a bounded time."""
        if self._run is not None:
            self._within(_FINISH_SECONDS, "finish", self._run.finish)
            self._run = None

    def _within(self, seconds: float, what: str, action: Any) -> None:
        """Run `action` in a thread; go on without W&B where it fails or takes too long."""
        failures: list[BaseException] = []

        def attempt() -> None:
            try:
                action()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=attempt, daemon=True, name=f"wandb-{what}")
        thread.start()
        thread.join(seconds)
        if thread.is_alive() or failures:
            reason = f"{failures[0]}".split("\n")[0] if failures else f"no answer in {seconds} s"
            _log.warning("W&B is off: it did not %s (%s); metrics.jsonl has all", what, reason)
            self._run = None


def run_id(run_dir: Path) -> str:
    """The W&B id of the run in `run_dir`; drawn once and kept in its file `wandb_id`."""
    path = run_dir / "wandb_id"
    if not fs.exists(path):
        fs.write_atomic(path, os.urandom(6).hex() + "\n")
    return fs.read_text(path).strip()


def _has_key() -> bool:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.login(prompt=False, verify=False))
