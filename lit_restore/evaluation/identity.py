"""Which evaluation a run folder belongs to: a hash over everything its numbers depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lit_restore.errors import UserError
from lit_restore.evaluation.given import check_out, with_mend
from lit_restore.evaluation.sources import Item, listed
from lit_restore.io import fs
from lit_restore.io.lock import NAME, RunLock

RUN, DATA = "run.json", "data.json"
_PACKAGES = ("lit-restore", "torch", "numpy", "scipy", "pillow", "scikit-image")
_TOLD = 3


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What an evaluation is."""

    parts: Mapping[str, object]
    """Protocol, methods (with the checkpoints' sha256), seeds, dtype, flags, versions: JSON."""
    data: Mapping[str, str]
    """Key → sha256 of each picture."""

    def document(self) -> dict[str, object]:
        """The parts with the data's hash in place of its list."""
        entries = sorted(self.data.items())
        return {
            **self.parts,
            "data": {"count": len(entries), "sha256": _hash([list(entry) for entry in entries])},
        }

    @property
    def run_id(self) -> str:
        """sha256 of the canonical JSON of `document`, 64 hexadecimal digits."""
        return _hash(self.document())


def versions() -> dict[str, str | None]:
    """Versions of what computes and decodes."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def digests(items: Sequence[Item]) -> dict[str, str]:
    """Key → sha256 of every picture's file."""
    return {item.key: item.digest() for item in items}


def write_identity(run: Path, identity: Identity, command: str) -> None:
    """Leave ``data.json`` and then ``run.json`` in the run folder."""
    fs.write_atomic(run / DATA, _pretty(dict(sorted(identity.data.items()))))
    about = {"run_id": identity.run_id, "command": command, **identity.document()}
    fs.write_atomic(run / RUN, _pretty(about))


@contextmanager
def open_run(out: Path, identity: Identity, *, command: str, resume: bool | None) -> Iterator[str]:
    """Hold a run folder, new or to go on with, while this process works in it.

    Args:
        out: the folder.
        identity: of this evaluation.
        command: written into a new folder.
        resume: go on with a folder that exists; a new one is made all the same where there is none.
            None: this kind of evaluation is never gone on with.

    Yields:
        The command that made the folder.

    Raises:
        UserError: the folder exists (without `resume`), is no run or another one's, or is in use.
        OSError: it cannot be made.
    """
    check_run_folder(out, resume=resume)
    fs.make_dir(out)
    with _locked(out):
        if fs.exists(out / RUN):
            made_by = check_identity(out, identity)
            sweep(out)
            yield made_by
            return
        write_identity(out, identity, command)
        yield command


def check_run_folder(out: Path, *, resume: bool | None) -> None:
    """Refuse a run folder that cannot be used, without touching it.

    Args:
        out: the folder.
        resume: as `open_run`.

    Raises:
        UserError: it is a file, exists (without `resume`), or is no run.
    """
    check_out(out)
    try:
        held = [path.name for path in fs.list_dir(out)] if fs.exists(out) else []
    except UserError as error:
        raise with_mend(error, "choose another --out") from None
    if not held:
        return
    ours = all(name in (DATA, NAME) or name.startswith(fs.TEMPORARY) for name in held)
    if RUN not in held and not ours:
        raise UserError(f"holds no {RUN}, so is no evaluation; choose another --out", where=out)
    if not resume:
        way = "choose another" if resume is None else "go on with --resume, or choose another"
        raise UserError(f"exists; {way} --out", where=out)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        lock = RunLock(out)
    except UserError as error:
        raise with_mend(error, "choose another --out") from None
    with lock:
        yield


def sweep(folder: Path) -> None:
    """Remove the drafts of a process that was killed."""
    for path in fs.list_dir(folder):
        if path.name.startswith(fs.TEMPORARY):
            fs.remove_tree(path)
        elif fs.is_dir(path):
            sweep(path)


def check_identity(run: Path, identity: Identity) -> str:
    """Compare with what the run folder was made by.

    Returns:
        The command that made it.

    Raises:
        UserError: not the same evaluation; names what differs.
    """
    saved = _read(run / RUN)
    command = str(saved.get("command", ""))
    if saved.get("run_id") == identity.run_id:
        return command
    document = {k: v for k, v in saved.items() if k not in ("run_id", "command", "data")}
    now = json.loads(json.dumps(dict(identity.parts)))
    found = _data_differences(_read(run / DATA), identity.data) + differences(document, now)
    more = f" (and {len(found) - _TOLD} more)" if len(found) > _TOLD else ""
    raise UserError(
        f"is another evaluation: {'; '.join(found[:_TOLD]) or 'its identity'}{more}; "
        "choose another --out",
        where=run,
    )


def differences(saved: object, now: object, path: str = "") -> list[str]:
    """Where two JSON values differ, each as ``protocol.version: 1, now 2``."""
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*now, *saved]))
        below = f"{path}." if path else ""
        return [d for k in keys for d in differences(saved.get(k), now.get(k), f"{below}{k}")]
    return [] if saved == now else [f"{path}: {_short(saved)}, now {_short(now)}"]


def _data_differences(saved: Mapping[str, object], now: Mapping[str, str]) -> list[str]:
    gone = [key for key in saved if key not in now]
    new = [key for key in now if key not in saved]
    changed = [key for key in now if key in saved and saved[key] != now[key]]
    kinds = (("no longer there", gone), ("new", new), ("changed", changed))
    return [f"data: {listed(sorted(keys))} {what}" for what, keys in kinds if keys]


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(fs.read_text(path))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError("is damaged; choose another --out", where=path)
    return found


def _hash(value: object) -> str:
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _pretty(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 70 else text[:69] + "…"
