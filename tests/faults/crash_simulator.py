"""What a disk may look like after a power cut, for every moment of a recorded save.

A recorder runs the real operations and keeps a model of the medium beside them: which names and
bytes are durable, and what is still on its way. After each operation it enumerates every legal
disk: any subset of the directory operations on their way (in any order across and within folders,
as POSIX allows) times {nothing, half, all, only the length} of each file's bytes on their way.
`verdict` puts such a disk on a real one and runs a reader over it. Source: reliability §3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lit_restore.io import fs

Tree = tuple[tuple[str, "Tree | bytes"], ...]
"""A folder: (name, content) sorted by name; bytes for a file, a tree for a folder."""


@dataclass
class FileNode:
    durable: bytes = b""
    pending: bytes = b""

    def variants(self) -> list[bytes]:
        if not self.pending:
            return [self.durable]
        half = self.pending[: len(self.pending) // 2]
        length_only = b"\0" * len(self.pending)
        return [self.durable + end for end in (b"", half, self.pending, length_only)]


@dataclass
class FolderNode:
    durable: dict[str, Node] = field(default_factory=dict)
    now: dict[str, Node] = field(default_factory=dict)


Node = FileNode | FolderNode
Edit = tuple[FolderNode, dict[str, Node | None]]
"""One directory operation, all of it or nothing: the names it sets (or removes) in a folder."""


class Recorder(fs.Disk):
    """Does what it is asked, models what of it is durable, and collects every legal disk.

    Args:
        root: a folder; what it holds now is durable.
        skips: (operation, path) → whether a flush is to do nothing: the defence to remove.
    """

    def __init__(
        self, root: Path, skips: Callable[[str, Path], bool] = lambda operation, path: False
    ) -> None:
        self.root, self.skips = root, skips
        self.tree = _scan(root)
        self.pending: list[Edit] = []
        self.files: dict[int, tuple[Path, FileNode]] = {}
        self.promised: frozenset[str] = frozenset()
        """Saves acknowledged and not given up: each must be readable on every disk."""
        self.disks: dict[tuple[Tree, frozenset[str]], None] = {}
        """Every legal disk so far, with what was promised then; insertion order."""
        self.log: list[str] = []

    def promise(self, *names: str) -> None:
        self.promised = frozenset(names)
        self._look()

    # --- the operations --------------------------------------------------------------------------

    def create(self, path: Path) -> int:
        fd = super().create(path)
        node = FileNode()
        self.files[fd] = (path, node)
        self._edit("create", path.parent, {path.name: node})
        return fd

    def write(self, fd: int, data: memoryview) -> None:
        super().write(fd, data)
        self.files[fd][1].pending += bytes(data)
        self._look("write", self.files[fd][0])

    def fsync(self, fd: int) -> None:
        path, node = self.files[fd]
        if not self.skips("fsync", path):
            node.durable, node.pending = node.durable + node.pending, b""
            self._look("fsync", path)

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        assert old.parent == new.parent
        node = self._folder(old.parent).now[old.name]
        self._edit("rename", old.parent, {old.name: None, new.name: node})

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._edit("unlink", path.parent, {path.name: None})

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self._edit("mkdir", path.parent, {path.name: FolderNode()})

    def rmdir(self, path: Path) -> None:
        super().rmdir(path)
        self._edit("rmdir", path.parent, {path.name: None})

    def fsync_dir(self, path: Path) -> None:
        if self.skips("fsync_dir", path):
            return
        folder = self._folder(path)
        for place, edit in self.pending:
            if place is folder:
                _apply(folder.durable, edit)
        self.pending = [edit for edit in self.pending if edit[0] is not folder]
        self._look("fsync_dir", path)

    # --- the model -------------------------------------------------------------------------------

    def _folder(self, path: Path) -> FolderNode:
        node: Node = self.tree
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, FolderNode)
            node = node.now[part]
        assert isinstance(node, FolderNode)
        return node

    def _edit(self, operation: str, parent: Path, edit: dict[str, Node | None]) -> None:
        folder = self._folder(parent)
        _apply(folder.now, edit)
        self.pending.append((folder, edit))
        self._look(operation, parent / next(iter(edit)))

    def _look(self, operation: str = "", path: Path | None = None) -> None:
        if path is not None:
            self.log.append(f"{operation} {path.relative_to(self.root)}")
        for size in range(len(self.pending) + 1):
            for chosen in itertools.combinations(self.pending, size):
                for tree in _trees(self.tree, chosen):
                    self.disks[tree, self.promised] = None


def _scan(path: Path) -> FolderNode:
    found: dict[str, Node] = {
        child.name: _scan(child) if child.is_dir() else FileNode(child.read_bytes())
        for child in path.iterdir()
    }
    return FolderNode(dict(found), dict(found))


def _apply(names: dict[str, Node], edit: dict[str, Node | None]) -> None:
    for name, node in edit.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _trees(folder: FolderNode, edits: tuple[Edit, ...]) -> Iterator[Tree]:
    """What `folder` may look like if of the pending operations just `edits` reached the medium."""
    names = dict(folder.durable)
    for place, edit in edits:
        if place is folder:
            _apply(names, edit)
    choices = [
        node.variants() if isinstance(node, FileNode) else list(_trees(node, edits))
        for _, node in sorted(names.items())
    ]
    for contents in itertools.product(*choices):
        yield tuple(zip(sorted(names), contents, strict=True))


def put(tree: Tree, path: Path) -> Path:
    """Make the (new) folder `path` look like `tree`."""
    path.mkdir()
    for name, content in tree:
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            put(content, path / name)
    return path


@dataclass
class Verdict:
    """How many of the legal disks were bad, by kind; all three 0 for a correct writer."""

    disks: int = 0
    all_lost: int = 0
    """No save was readable, though one had been acknowledged before the recording or in it."""
    garbage: int = 0
    """The reader took something for a save that is not what was written."""
    promise_broken: int = 0
    """An acknowledged save, not given up since, was not readable."""

    def red(self) -> set[str]:
        return {name for name in ("all_lost", "garbage", "promise_broken") if getattr(self, name)}


Reader = Callable[[Path], list[Path]]
Saves = dict[str, tuple[str, dict[str, bytes]]]
"""Name of a save → the folder it was published as, and its content (file → bytes)."""


def verdict(recorder: Recorder, reader: Reader, saves: Saves, scratch: Path) -> Verdict:
    """Run `reader` over every disk that was collected; they are made in the new `scratch`."""
    scratch.mkdir()
    result, accepted = Verdict(), dict[Tree, tuple[bool, frozenset[str]]]()
    for tree, promised in recorder.disks:
        if tree not in accepted:
            found = reader(put(tree, scratch / f"disk-{len(accepted)}"))
            known = [[name for name in saves if _is(path, *saves[name])] for path in found]
            accepted[tree] = ([] in known, frozenset(itertools.chain(*known)))
        garbage, good = accepted[tree]
        result.disks += 1
        result.garbage += garbage
        result.all_lost += not good
        result.promise_broken += not promised <= good
    return result


def _is(folder: Path, name: str, content: dict[str, bytes]) -> bool:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return folder.name == name and content.items() <= found.items()
