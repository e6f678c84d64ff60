"""Folders that are published whole or not at all, and checked before they are trusted.

```
tmp-<name>-<nonce>/     a draft, beside the folder it will be
1 files are written, hashed as they stream, and flushed (by any number of processes)
2 their names, sizes and sha256 are gathered
3 manifest.json and COMPLETE (the manifest's own sha256, as `sha256sum -c` reads it) are flushed
4 the draft's names are flushed     5 it gets its final name     6 that name is flushed
```
After 6 the folder is acknowledged: no crash takes it away. A folder is dropped by a rename to
`trash-<name>-<nonce>`, whose name is flushed before the files go. Source: reliability §3.

Readers believe nothing but COMPLETE and the manifest: neither a folder's name nor its time. Names
that are not of the two forms above are never removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_restore.errors import UserError
from lit_restore.io import failpoints, fs
from lit_restore.io.fs import HashingFile
from lit_restore.io.wording import shown

MANIFEST = "manifest.json"
COMPLETE = "COMPLETE"
TRASH = "trash-"
FORMAT = 1

_LEFT_BEHIND = re.compile(rf"(?:{fs.TEMPORARY}|{TRASH})(?P<name>.+)-[0-9a-f]{{8}}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_MANIFEST = 16 << 20

Content = Callable[[HashingFile], object] | fs.Bytes | str


@dataclass(frozen=True)
class FileEntry:
    """One file of a folder, as it was written."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""


@dataclass(frozen=True)
class Manifest:
    """What a published folder holds, sorted by name."""

    files: tuple[FileEntry, ...]


class Draft:
    """A folder that is being written, under a temporary name beside its target.

    One process calls `begin`; others of the same save construct `Draft(target, folder)` with the
    folder it made, write files of their own, and send it their entries for `publish`.

    Args:
        target: the name that `publish` gives.
        folder: the draft itself, made by `begin`.
    """

    def __init__(self, target: fs.StrPath, folder: fs.StrPath) -> None:
        self.target = Path(target)
        self.folder = Path(folder)
        self.entries: list[FileEntry] = []
        """What this process has written."""

    @classmethod
    def begin(cls, target: fs.StrPath) -> Draft:
        """Make the draft, and the folders above it."""
        draft = cls(target, fs.temporary(target))
        fs.make_dir(draft.folder)
        return draft

    def write(self, name: str, content: Content) -> FileEntry:
        """Write one file and flush it.

        Args:
            name: a plain file name (letters, digits and ``._+=@-``).
            content: the bytes, the text (as UTF-8), or a function that writes them to the file.

        Raises:
            OSError: the draft is worth nothing now; `abandon` it.
        """
        assert _FILE_NAME.fullmatch(name), f"{name!r} is no name for a file of a manifest"
        assert name not in (MANIFEST, COMPLETE)
        failpoints.hit("ckpt.write")
        with HashingFile(self.folder / name) as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            failpoints.hit("ckpt.fsync")
        self.entries.append(FileEntry(name, file.size, file.sha256))
        return self.entries[-1]

    def publish(self, entries: Iterable[FileEntry] | None = None) -> Manifest:
        """Complete the draft and give it its name; acknowledged when this returns.

        A folder that has the name already is left alone if it is intact and holds the same; else
        it is put aside first. Between these two renames nothing has the name: `sweep` gives it to
        the draft if the process ends there.

        Args:
            entries: the files of all processes; this one's by default.

        Raises:
            OSError: not saved. If only the last flush failed the folder has its name, without a
                promise. `abandon` the draft.
        """
        files = tuple(sorted(self.entries if entries is None else entries, key=lambda e: e.name))
        manifest = Manifest(files)
        self._check(manifest)
        failpoints.hit("ckpt.manifest")
        sealed = self._seal(MANIFEST, _manifest_text(manifest))
        failpoints.hit("ckpt.complete")
        self._seal(COMPLETE, f"{sealed}  {MANIFEST}\n")
        failpoints.hit("ckpt.draft")
        fs.fsync_dir(self.folder)
        if _holds(self.target, manifest):
            fs.fsync_dir(self.target.parent)
            self.abandon()
            return manifest
        replaced = self._take_name()
        failpoints.hit("ckpt.parent")
        fs.fsync_dir(self.target.parent)
        if replaced is not None:
            with contextlib.suppress(OSError):  # the save itself is done; `sweep` finds the rest
                fs.remove_tree(replaced)
        return manifest

    def abandon(self) -> None:
        """Remove the draft as far as the disk lets us; `sweep` does the rest. Never raises."""
        with contextlib.suppress(OSError, UserError):
            if not _only_copy(self.folder, self.target.name):
                fs.remove_tree(self.folder)

    def _check(self, manifest: Manifest) -> None:
        """All files are here: not so if a rank's disk is not the one we see."""
        assert len({entry.name for entry in manifest.files}) == len(manifest.files)
        try:
            _compare(self.folder, manifest, hashes=False)
        except UserError as error:
            raise OSError(errno.EIO, error.message, str(self.folder)) from None

    def _seal(self, name: str, text: str) -> str:
        with HashingFile(self.folder / name) as file:
            file.write(text.encode())
        return file.sha256

    def _take_name(self) -> Path | None:
        """Rename the draft to its target; returns where what had that name is now."""
        aside = _trash_name(self.target) if fs.exists(self.target) else None
        if aside is not None:
            _move(self.target, aside)
        try:
            failpoints.hit("ckpt.rename")
            _move(self.folder, self.target)
        except BaseException:
            if aside is not None:
                _move(aside, self.target)
            raise
        return aside


def verify(folder: fs.StrPath, *, hashes: bool = True) -> Manifest:
    """Check that a folder is what was published.

    Args:
        folder: a published folder.
        hashes: read every file and compare its sha256; else presence and sizes only.

    Returns:
        Its manifest. Files that the manifest does not list are not looked at.

    Raises:
        UserError: naming the folder and the file: "no COMPLETE: the save did not finish",
            "ema.safetensors: sha256 differs from the manifest", "optim.safetensors is missing" …
    """
    place = Path(folder)
    if not fs.is_dir(place):
        others = complete(place.parent, re.compile(r"[^.].*"))
        newest = f"; newest complete is {others[-1].name}" if others else ""
        raise UserError(f"no such checkpoint{newest}", where=place)
    if not fs.exists(place / COMPLETE):
        raise UserError("no COMPLETE: the save did not finish", where=place)
    seal = _read(place, COMPLETE).split()
    text = _read(place, MANIFEST)
    if not seal or hashlib.sha256(text).hexdigest().encode() != seal[0]:
        raise UserError(f"{MANIFEST}: sha256 differs from {COMPLETE}", where=place)
    manifest = _parse_manifest(text, place)
    _compare(place, manifest, hashes=hashes)
    return manifest


def complete(parent: fs.StrPath, pattern: re.Pattern[str]) -> list[Path]:
    """The published folders in `parent` whose whole name matches, sorted by name.

    Each has its COMPLETE, its manifest and all files in their sizes; hashes are not compared.
    """
    found = []
    for path in fs.list_dir(parent) if fs.is_dir(parent) else []:
        if not pattern.fullmatch(path.name) or _LEFT_BEHIND.fullmatch(path.name):
            continue
        with contextlib.suppress(UserError):
            if fs.is_dir(path):
                verify(path, hashes=False)
                found.append(path)
    return found


def discard(folder: fs.StrPath) -> None:
    """Remove a published folder, so that at no moment a part of it has its name.

    Raises:
        OSError: nothing else happened, or `sweep` will finish it.
    """
    place = Path(folder)
    trash = _trash_name(place)
    failpoints.hit("ckpt.drop")
    _move(place, trash)
    fs.fsync_dir(place.parent)
    failpoints.hit("ckpt.unlink")
    fs.remove_tree(trash)


def sweep(parent: fs.StrPath) -> list[Path]:
    """Remove drafts and trash that a crash left in `parent`; for its only owner, at its start.

    If the crash fell between the two renames of a replacement, the draft, complete and durable by
    then, gets the name first.

    Returns:
        What was removed, sorted by name. Other names are never touched.

    Raises:
        OSError: the disk refused.
    """
    removed = []
    for path in fs.list_dir(parent) if fs.is_dir(parent) else []:
        left = _LEFT_BEHIND.fullmatch(path.name)
        if left and _only_copy(path, left["name"]):
            _move(path, path.with_name(left["name"]))
            fs.fsync_dir(parent)
        elif left:
            fs.remove_tree(path)
            removed.append(path)
    return removed


def _only_copy(draft: Path, name: str) -> bool:
    """Whether `draft` is intact, nothing has its `name`, and what had it lies in the trash."""
    if not draft.name.startswith(fs.TEMPORARY) or fs.exists(draft.with_name(name)):
        return False
    aside = re.compile(rf"{TRASH}{re.escape(name)}-[0-9a-f]{{8}}")
    if not any(aside.fullmatch(path.name) for path in fs.list_dir(draft.parent)):
        return False
    return _intact(draft) is not None


def _intact(folder: Path) -> Manifest | None:
    try:
        return verify(folder)
    except UserError:
        return None


def _holds(folder: Path, manifest: Manifest) -> bool:
    return fs.exists(folder) and _intact(folder) == manifest


def _trash_name(folder: Path) -> Path:
    return folder.with_name(f"{TRASH}{folder.name}-{os.urandom(4).hex()}")


def _move(old: Path, new: Path) -> None:
    try:
        fs.rename(old, new)
    except FileNotFoundError:
        # NFS repeats a rename whose reply was lost, and reports how the second one failed.
        if fs.exists(old) or not fs.exists(new):
            raise


def _read(folder: Path, name: str) -> bytes:
    try:
        return fs.read_bytes(folder / name, limit=_MAX_MANIFEST)
    except UserError as error:
        missing = not fs.exists(folder / name)
        text = f"{name} is missing" if missing else f"{name}: {error.message}"
        raise UserError(text, where=folder) from None


def _compare(folder: Path, manifest: Manifest, *, hashes: bool) -> None:
    for entry in manifest.files:
        path = folder / entry.name
        if not fs.exists(path):
            raise UserError(f"{entry.name} is missing", where=folder)
        size = fs.size(path)
        if size != entry.size:
            text = f"{entry.name}: {size} bytes, the manifest says {entry.size}"
            raise UserError(text, where=folder)
        if hashes and _sha256(folder, entry.name) != entry.sha256:
            raise UserError(f"{entry.name}: sha256 differs from the manifest", where=folder)


def _sha256(folder: Path, name: str) -> str:
    try:
        return fs.sha256(folder / name)
    except UserError as error:
        raise UserError(f"{name}: {error.message}", where=folder) from None


def _manifest_text(manifest: Manifest) -> str:
    content = {"format": FORMAT, "files": [asdict(entry) for entry in manifest.files]}
    return json.dumps(content, indent=1) + "\n"


def _parse_manifest(text: bytes, folder: Path) -> Manifest:
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r} is unknown")
        entries = tuple(_entry(**item) for item in content["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = shown(str(error)) or "wrong structure"
        raise UserError(f"{MANIFEST}: not a manifest ({problem})", where=folder) from None
    if len({entry.name for entry in entries}) != len(entries):
        raise UserError(f"{MANIFEST}: a file is listed twice", where=folder)
    return Manifest(entries)


def _entry(name: object, size: object, sha256: object) -> FileEntry:
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no file name")
    if type(size) is not int or size < 0:
        raise ValueError(f"{name} has no size")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"{name} has no sha256")
    return FileEntry(name, size, sha256)
