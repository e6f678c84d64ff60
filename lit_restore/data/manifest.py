"""`manifest.json`: what a folder of shards holds, written last, so that it means "complete"."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.wording import human_size, shown

MANIFEST = "manifest.json"
PLAN = "plan.json"
"""There while shards are being made, and after that was interrupted."""

_FORMAT = 1
_LIMIT = 64 << 20
_BLOCK = 4 << 20
_NAME = re.compile(r"[^/\\\0.][^/\\\0]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard as the manifest describes it."""

    name: str
    """File name within the folder."""
    count: int
    """Samples."""
    size: int
    """Bytes."""
    sha256: str
    """Of the whole file, 64 hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds."""

    fields: tuple[str, ...]
    """What every sample has, of array, degraded, image, label, restored; sorted."""
    count: int
    """Samples in all shards."""
    classes: tuple[str, ...]
    """Names of the classes 0, 1, …; empty where samples have no label, or a number alone."""
    shards: tuple[Shard, ...]
    plan: str
    """Digest of what the shards were made of and how: the same plan gives the same bytes."""
    made_by: str
    """Name and version of the program that wrote them."""


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON: the same manifest, the same bytes."""
    return json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: Path, *, check_files: bool = True) -> Manifest:
    """The manifest of a folder of shards.

    Args:
        folder: what `--out` was given.
        check_files: also see that every shard is there and has its size.

    Raises:
        UserError: no manifest, a damaged one, an unfinished folder, or shards missing or cut.
    """
    path = folder / MANIFEST
    if not fs.exists(path):
        refuse_unfinished(folder)
        raise UserError(
            "no manifest.json here; make shards with: lit-restore shards make", where=folder
        )
    manifest = _parse(fs.read_text(path, limit=_LIMIT), path)
    if check_files:
        _check_files(folder, manifest)
    return manifest


def parse_manifest(text: str, *, where: str) -> Manifest:
    """A manifest's text from elsewhere; `UserError` naming `where` if it is damaged."""
    try:
        return _parse(text, Path(MANIFEST))
    except UserError as error:
        raise UserError(error.message, where=where) from None


def file_sha256(path: Path) -> str:
    """Hash of a whole file, 64 hexadecimal digits; `UserError` where it cannot be read."""
    state = hashlib.sha256()
    with fs.open_read(path) as file:
        size = fs.size(path)
        for offset in range(0, size, _BLOCK):
            state.update(fs.pread(file, min(_BLOCK, size - offset), offset))
    return state.hexdigest()


def refuse_unfinished(folder: Path) -> None:
    """`UserError` where the making of shards has begun in a folder and not ended."""
    if fs.exists(folder / PLAN) and not fs.exists(folder / MANIFEST):
        raise UserError(
            "the shards here are unfinished; run the same command again to go on", where=folder
        )


def _parse(text: str, path: Path) -> Manifest:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"not JSON{line}; make the shards anew", where=path) from None
    wanted = {"format", "fields", "count", "classes", "shards", "plan", "made_by"}
    if not isinstance(found, dict) or not wanted <= found.keys():
        raise UserError("not a manifest of shards", where=path)
    if found["format"] != _FORMAT:
        raise UserError(
            f"manifest format {shown(str(found['format']))}, this version reads {_FORMAT}; "
            "make the shards anew",
            where=path,
        )
    shards = found["shards"]
    if not isinstance(shards, list) or not shards:
        raise UserError("the manifest lists no shards", where=path)
    manifest = Manifest(
        fields=_strings(found, "fields", path),
        count=_natural(found, "count", path),
        classes=_strings(found, "classes", path),
        shards=tuple(_shard(shard, path) for shard in shards),
        plan=_string(found, "plan", path),
        made_by=_string(found, "made_by", path),
    )
    _check_sums(manifest, path)
    return manifest


def _shard(found: object, path: Path) -> Shard:
    if not isinstance(found, dict):
        raise UserError('an entry of "shards" is no object', where=path)
    name, sha256 = _string(found, "name", path), _string(found, "sha256", path)
    if not _NAME.fullmatch(name):
        raise UserError(f'shard "{shown(name)}" refused (name)', where=path)
    if not _SHA256.fullmatch(sha256):
        raise UserError(f"{shown(name)}: sha256 is not 64 hexadecimal digits", where=path)
    count, size = _natural(found, "count", path), _natural(found, "size", path)
    return Shard(name=name, count=count, size=size, sha256=sha256)


def _check_sums(manifest: Manifest, path: Path) -> None:
    total = sum(shard.count for shard in manifest.shards)
    if total != manifest.count:
        raise UserError(f"{total} samples in the shards, count says {manifest.count}", where=path)
    names = [shard.name for shard in manifest.shards]
    for name, following in zip(sorted(names), sorted(names)[1:], strict=False):
        if name == following:
            raise UserError(f"{shown(name)} is listed twice", where=path)


def _check_files(folder: Path, manifest: Manifest) -> None:
    missing = [shard.name for shard in manifest.shards if not fs.exists(folder / shard.name)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(manifest.shards)} shards missing, first {missing[0]}",
            where=folder,
        )
    for shard in manifest.shards:
        size = fs.size(folder / shard.name)
        if size != shard.size:
            raise UserError(
                f"has {human_size(size)} ({size}), manifest says {shard.size}; "
                "copy it again, or make the shards anew",
                where=folder / shard.name,
            )


def _string(found: dict[str, object], key: str, path: Path) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        raise UserError(f'"{key}" is not text', where=path)
    return value


def _strings(found: dict[str, object], key: str, path: Path) -> tuple[str, ...]:
    value = found.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f'"{key}" is not a list of texts', where=path)
    return tuple(value)


def _natural(found: dict[str, object], key: str, path: Path) -> int:
    value = found.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f'"{key}" is not a whole number', where=path)
    return value
