"""Where pictures come from: a folder, a tar archive, or the photographs of scikit-image.

A picture's key is its path below the data without the extension, in Unicode's NFC and with `/`, so
that the same pictures have the same keys (and the same noise) in a folder and in an archive.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from lit_restore.errors import UserError
from lit_restore.evaluation.given import with_mend
from lit_restore.io import archive, fs, images
from lit_restore.io.wording import shown

PHOTOGRAPHS = ("skimage", "photographs")
"""What `--data` may name besides a path; the second is their name in training configs."""

_NAMES = ("astronaut", "coffee", "chelsea")
_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture, not read yet."""

    key: str
    where: str
    """The file or member, for error lines."""
    read: Callable[[], images.Picture | bytes]
    """Bytes of a file, or the picture itself where there is no file."""

    def picture(self, background: str | None = None) -> images.Picture:
        """Decode it.

        Args:
            background: a colour to lay transparent pictures on.

        Raises:
            UserError: it cannot be read (`images.read_picture` has the cases).
        """
        found = self.read()
        if isinstance(found, bytes):
            return images.read_picture(found, name=self.where, background=background)
        return found

    def digest(self) -> str:
        """sha256 of the bytes (of the pixels, where there is no file); "unreadable" for none."""
        try:
            found = self.read()
        except UserError:
            return "unreadable"
        data = found if isinstance(found, bytes) else found.pixels.tobytes()
        return hashlib.sha256(data).hexdigest()


def open_source(
    data: str,
    *,
    prefix: str = "",
    keys: Iterable[str] | None = None,
    option: str = "--data",
    part: str | None = None,
) -> list[Item]:
    """The pictures of a data set, sorted by key (code points).

    Args:
        data: a folder (searched to the bottom; hidden files and links to folders are left out), a
            tar archive, a folder of tar archives, or ``skimage`` for its three photographs.
        prefix: only what is below this folder inside the data; keys start after it.
        keys: only these, each the key or its last part.
        option: named in error lines.
        part: degraded or restored: of shards, these pictures of each sample; of what holds none,
            its pictures as they are.

    Raises:
        UserError: nothing there, two pictures of one key, or a key that is missing or ambiguous.
    """
    where = f"{option} {data}"
    if data in PHOTOGRAPHS:
        items = _photographs()
    else:
        path = Path(data).expanduser()
        items = _parts(path, part) if part is not None else []
        items = items or _of_path(path, option)
    if prefix:
        items = _below(items, prefix.strip("/") + "/", where)
    _check_keys(items, where)
    items.sort(key=lambda item: item.key)
    return items if keys is None else _chosen(items, keys, where)


def read_keys(path: str | Path) -> list[str]:
    """The keys in a text file, one a line; empty lines and lines that start with # are remarks.

    Raises:
        UserError: unreadable, or holds no key.
    """
    lines = [line.strip() for line in fs.read_text(path, limit=1 << 26).splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError("holds no keys (one a line)", where=path)
    return list(dict.fromkeys(keys))


def listed(names: Sequence[str]) -> str:
    """The first ten of some names, for an error line."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(shown(name) for name in names[:_LISTED]) + more


def _photographs() -> list[Item]:
    return [Item(key=n, where=f"skimage.data.{n}", read=_Photograph(n)) for n in _NAMES]


@dataclass(frozen=True)
class _Photograph:
    name: str

    def __call__(self) -> images.Picture:
        import skimage.data

        pixels: npt.NDArray[np.uint8] = getattr(skimage.data, self.name)()[..., :3]
        return images.Picture(np.ascontiguousarray(pixels), None, f"skimage.data.{self.name}")


def _of_path(path: Path, option: str) -> list[Item]:
    if not fs.is_dir(path):
        if not fs.exists(path):
            fs.size(path)  # says what is missing, and suggests a name
        return _alone(path, option)
    found = list(_files(path))
    pictures = [file for file in found if file.suffix.lower() in _EXTENSIONS]
    if pictures:
        return [_file(file, path) for file in pictures]
    archives = [file for file in found if file.suffix == ".tar"]
    if not archives:
        raise UserError(
            f"holds no pictures ({', '.join(sorted(_EXTENSIONS))}) and no .tar", where=path
        )
    return [item for file in archives for item in _members(file, f"{file.stem}/")]


def _parts(path: Path, part: str) -> list[Item]:
    """The degraded or restored pictures in shards; none where there are no shards with such."""
    folder = fs.is_dir(path)
    if not folder and not (path.suffix == ".tar" and fs.exists(path)):
        return []
    archives = [f for f in _files(path) if f.suffix == ".tar"] if folder else [path]
    return [
        Item(
            key=(f"{file.stem}/" if folder else "") + key_of(name).removesuffix(f".{part}"),
            where=f"{file}: {shown(name)}",
            read=_Member(file, member),
        )
        for file in archives
        for member in archive.scan_tar(file, samples=False)
        if PurePosixPath(name := member.name).suffix.lower() in _EXTENSIONS
        and PurePosixPath(name).stem.endswith(f".{part}")
    ]


def _alone(path: Path, option: str) -> list[Item]:
    """The pictures of one tar archive; what is none is told what would be."""
    if path.suffix.lower() in _EXTENSIONS:
        raise UserError(f"is one picture; {option} takes its folder: {path.parent}", where=path)
    try:
        return _members(path)
    except UserError as error:
        if path.suffix == ".tar":
            raise
        raise with_mend(error, f"{option} takes a folder of pictures or a tar archive") from None


def _files(folder: Path) -> Iterable[Path]:
    for path in fs.list_dir(folder):
        if path.name.startswith("."):
            continue
        if fs.is_dir(path):
            if not path.is_symlink():
                yield from _files(path)
        else:
            yield path


def _file(path: Path, root: Path) -> Item:
    return Item(key=key_of(path.relative_to(root).as_posix()), where=str(path), read=_File(path))


@dataclass(frozen=True)
class _File:
    path: Path

    def __call__(self) -> bytes:
        return fs.read_bytes(self.path, limit=images.FILE_LIMIT)


def _members(path: Path, above: str = "") -> list[Item]:
    members = [m for m in archive.scan_tar(path, samples=False) if _is_picture(m.name)]
    if not members:
        raise UserError(f"holds no pictures ({', '.join(sorted(_EXTENSIONS))})", where=path)
    return [
        Item(key=key_of(above + m.name), where=f"{path}: {shown(m.name)}", read=_Member(path, m))
        for m in members
    ]


@dataclass(frozen=True)
class _Member:
    path: Path
    member: archive.Member

    def __call__(self) -> bytes:
        with fs.open_read(self.path) as file:
            return fs.pread(file, self.member.size, self.member.offset)


def _is_picture(name: str) -> bool:
    # In a shard of pairs `0001.degraded.png` is another picture of sample 0001.
    path = PurePosixPath(name)
    return path.suffix.lower() in _EXTENSIONS and not path.stem.endswith((".degraded", ".restored"))


def key_of(name: str) -> str:
    """The key of a file's path: NFC, without the extension, and without ``.image`` (a shard's)."""
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    return path.with_suffix("").as_posix().removesuffix(".image")


def _below(items: list[Item], prefix: str, where: str) -> list[Item]:
    found = [
        Item(key=item.key.removeprefix(prefix), where=item.where, read=item.read)
        for item in items
        if item.key.startswith(prefix)
    ]
    if not found:
        folders = sorted({item.key.rpartition("/")[0] for item in items} - {""})
        held = f"; it has {listed(folders)}" if folders else "; it has no folders, leave it out"
        raise UserError(f"nothing below --prefix {shown(prefix)}{held}", where=where)
    return found


def _check_keys(items: list[Item], where: str) -> None:
    """Each key is one picture's, and text: it names files and stands in tables."""
    first: dict[str, Item] = {}
    for item in items:
        if any("\ud800" <= c <= "\udfff" for c in item.key):  # bytes that were no UTF-8
            raise UserError("its name is not UTF-8; rename it", where=shown(item.where))
        other = first.setdefault(item.key, item)
        if other is not item:
            both = " and ".join(shown(one.where, tail=True) for one in (other, item))
            raise UserError(f"{both} have the same key {shown(item.key)}; rename one", where=where)


def _chosen(items: list[Item], keys: Iterable[str], where: str) -> list[Item]:
    by_name: dict[str, list[Item]] = {}
    for item in items:
        by_name.setdefault(item.key.rpartition("/")[2], []).append(item)
    whole = {item.key: item for item in items}
    wanted = [unicodedata.normalize("NFC", key) for key in keys]
    found = {key: [whole[key]] if key in whole else by_name.get(key, []) for key in wanted}
    missing = [key for key, hits in found.items() if not hits]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(found)} --keys are not there: {listed(missing)}; names there "
            f"are like {shown(items[0].key)}",
            where=where,
        )
    for key, hits in found.items():
        if len(hits) > 1:
            both = listed([item.key for item in hits])
            raise UserError(f"--keys: {shown(key)} is any of {both}; say which", where=where)
    chosen = {hits[0].key: hits[0] for hits in found.values()}
    return [chosen[key] for key in sorted(chosen)]
