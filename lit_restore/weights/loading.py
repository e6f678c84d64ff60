"""A network from whatever a user points at: an exported file, a checkpoint, or a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from lit_restore.errors import UserError
from lit_restore.io import folder, fs
from lit_restore.networks import Network
from lit_restore.networks.base import JSONValue
from lit_restore.weights.checkpoint import STEP_FOLDER, read_state
from lit_restore.weights.exported import fill, load_exported, read_info, rebuild
from lit_restore.weights.stored import open_groups

RAW = "raw"
"""Profile name of the trained weights themselves, as opposed to an average of them."""


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network and what is known about its weights."""

    net: Network
    """On the CPU, in evaluation mode."""
    info: dict[str, JSONValue]
    """task, profile, samples_seen, network (name and options), config …"""
    source: Path
    """The file or checkpoint folder that was read."""

    @property
    def digest(self) -> str:
        """sha256 of the file, or of the manifest that holds the hashes of a checkpoint's files."""
        folder_ = fs.is_dir(self.source)
        return fs.sha256(self.source / "manifest.json" if folder_ else self.source)


def load_network(path: str | PathLike[str], *, profile: str | None = None) -> LoadedNetwork:
    """The network in an exported file, a checkpoint folder, or a run's newest checkpoint.

    Args:
        path: a file of `lit-restore export`, ``RUN/checkpoints/step-…``, ``RUN/checkpoints`` or
            ``RUN``.
        profile: which average of the weights to take, ``raw`` for the weights themselves; by
            default the first average, or the weights themselves where there is none.

    Raises:
        UserError: there is no such thing, it is damaged, or it does not hold that profile.
    """
    place = Path(path)
    if not fs.is_dir(place) and (fs.exists(place) or not _meant_as_folder(place)):
        return _from_file(place, profile)
    return _from_checkpoint(newest_checkpoint(place), profile)


def network_kind(path: str | PathLike[str]) -> str | None:
    """Short name of the network that a path holds, its weights unread.

    Args:
        path: as `load_network` takes it, or a foreign file.

    Returns:
        None where it is none of ours, or cannot be read, which whoever loads it will say.
    """
    place = Path(path)
    try:
        if fs.is_dir(place):
            told = read_state(newest_checkpoint(place)).get("network")
        else:
            told = read_info(place).get("network")
    except UserError:
        return None
    name = told.get("name") if isinstance(told, dict) else None
    return name if isinstance(name, str) else None


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint that a folder is or, of a run, the newest complete one in it.

    Raises:
        UserError: a run without a complete checkpoint.
    """
    for parent in (path / "checkpoints", path):
        found = folder.complete(parent, STEP_FOLDER)
        if found:
            return found[-1]
    if fs.is_dir(path / "checkpoints") or not (
        _meant_as_folder(path) or fs.exists(path / "state.json")
    ):
        raise UserError("holds no complete checkpoint", where=path)
    return path


def _meant_as_folder(path: Path) -> bool:
    return STEP_FOLDER.fullmatch(path.name) is not None


def _from_file(path: Path, profile: str | None) -> LoadedNetwork:
    info = read_info(path)
    held = info.get("profile")
    if profile is not None and profile != held:
        raise UserError(f"holds profile {held}, not {profile}", where=path)
    return LoadedNetwork(net=load_exported(path), info=info, source=path)


def _from_checkpoint(path: Path, profile: str | None) -> LoadedNetwork:
    folder.verify(path)
    state = read_state(path)
    profiles = [str(name) for name in state.get("profiles", [])]
    chosen = profile or (profiles or [RAW])[0]
    if chosen not in (*profiles, RAW):
        held = ", ".join((*profiles, RAW))
        raise UserError(f"holds no profile {chosen}; it has {held}", where=path)
    (group,) = open_groups(path, "network" if chosen == RAW else "ema")
    stored = group if chosen == RAW else group.below(f"{chosen}/")
    shapes = {name: stored.shape(name) for name in stored}
    net = rebuild(state.get("network"), shapes, where=path)
    fill(net, stored.whole(), where=path)
    return LoadedNetwork(net=net.eval(), info={**state, "profile": chosen}, source=path)
