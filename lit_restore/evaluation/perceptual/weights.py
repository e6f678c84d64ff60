"""Where the weights of a metric come from: files that the user has, known by their hashes.

Nothing is ever fetched. A file that is not there makes a blank; one with other contents than its
name promises is refused.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.wording import human_size

VARIABLE = "LIT_RESTORE_WEIGHTS"
"""Environment variable: folders to search, separated as in PATH."""


class MissingWeights(UserError):
    """A metric's file is nowhere; its column is blank, unless it was required."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One file that a metric needs."""

    file: str
    """Its name in the folders that are searched."""
    sha256: str
    """Hexadecimal digits, or the first of them."""
    bytes: int | None
    """Its size, for whoever wants to get it; None: not known to us."""
    licence: str
    how: str
    """How to come by it, half a sentence."""
    inside: tuple[tuple[str, str], ...] = ()
    """(package, path in it) of installed packages that carry it. They are not imported."""
    digest_of: Literal["file", "convolutions"] = "file"
    """What `sha256` is of. ``convolutions``: checked by whoever loads them."""

    def __str__(self) -> str:
        size = "" if self.bytes is None else f"{human_size(self.bytes)}, "
        what = "sha256" if self.digest_of == "file" else "convolutions"
        return f"{self.file} ({what} {self.sha256[:16]}, {size}{self.licence}; {self.how})"


@dataclass(frozen=True)
class WeightFolders:
    """The folders that are searched, in order; only read."""

    folders: tuple[Path, ...]

    @classmethod
    def of(
        cls, weights_dir: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> WeightFolders:
        """``--weights-dir``, then $LIT_RESTORE_WEIGHTS, then torch hub's cache.

        Args:
            weights_dir: the user's option.
            environment: instead of the process's own.

        Raises:
            UserError: `weights_dir` is no folder.
        """
        if weights_dir is not None and not fs.is_dir(weights_dir):
            raise UserError("no such folder", where=f"--weights-dir {weights_dir}")
        given = (os.environ if environment is None else environment).get(VARIABLE, "")
        named = [Path(word).expanduser() for word in given.split(os.pathsep) if word.strip()]
        first = [] if weights_dir is None else [weights_dir]
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        return cls(tuple(dict.fromkeys([*first, *named, cache])))

    def find(self, *needs: Requirement) -> tuple[Requirement, Path]:
        """The first of some files, each as good as the others, that is there.

        Raises:
            MissingWeights: none is.
            UserError: one is there with other contents.
        """
        for need in needs:
            for path in self._places(need):
                if fs.exists(path):
                    _check(path, need)
                    return need, path
        raise MissingWeights(f"needs {' or '.join(map(str, needs))}; looked in {self._searched()}")

    def _places(self, need: Requirement) -> Iterator[Path]:
        for folder in self.folders:
            yield folder / need.file
        for package, inner in need.inside:
            for folder in _package_folders(package):
                yield folder / inner

    def _searched(self) -> str:
        return ", ".join(_short(folder) for folder in self.folders)


def _package_folders(name: str) -> Sequence[Path]:
    """Where an installed package lies, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # imported by hand, without a spec
        return ()
    return () if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]


def _check(path: Path, need: Requirement) -> None:
    if need.digest_of != "file":
        return
    found = fs.sha256(path)
    if not found.startswith(need.sha256):
        digits = found[: max(8, min(len(need.sha256), 16))]
        raise UserError(
            f"is not the file of that name: its sha256 begins {digits}, not {need.sha256[:16]}; "
            "get it again, or take it away",
            where=path,
        )


def _short(folder: Path) -> str:
    """With ``~`` for the home: tables are passed on."""
    try:
        return f"~/{folder.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(folder)
