"""What a folder of samples knows of itself: `samples.json`, and while it grows `made.jsonl`.

An image is published by one rename, then its line is appended; an image without a line is made
again, and comes out the same. The lines go into `samples.json` at the end.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.lock import NAME as LOCK
from lit_restore.io.wording import shown
from lit_restore.networks.base import JSONValue
from lit_restore.sampling.settings import Settings

RECORD, MADE, IMAGES, GRID, ARRAY = (
    "samples.json", "made.jsonl", "images", "grid.png", "samples.npz",
)  # fmt: skip

_FORMAT = 1
_LIMIT = 4 << 30
_NAMES_ONLY = ("checkpoint", "samples_seen")
_GIVE = "give another --out, or remove this one"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A sample that lies in the folder."""

    index: int
    nfe: int
    """Evaluations of the velocity; a guided one counts once."""
    finished: bool
    """False where an adaptive solver gave up on it: the image is as far as it came."""


def read_folder(out: Path, settings: Settings) -> dict[int, Made]:
    """The samples that a folder holds already.

    Raises:
        UserError: it holds samples of other settings, or something else.
    """
    if not fs.is_dir(out):
        return {}
    if not fs.exists(out / RECORD):
        _refuse_strangers(out)
        return {}
    content = _read_record(out / RECORD)
    _refuse_others(out, content, settings)
    made = {m.index: m for m in _rows(content["samples"], out / RECORD)}
    made |= {m.index: m for m in _lines(out / MADE)}
    here = {path.name for path in fs.list_dir(out / IMAGES)} if fs.is_dir(out / IMAGES) else set()
    return {index: m for index, m in made.items() if settings.file(index) in here}


def write_record(
    out: Path, settings: Settings, made: Mapping[int, Made], *, devices: Sequence[str], count: int
) -> None:
    """Replace `samples.json`; `complete` where all `count` samples are there.

    Raises:
        OSError: the disk refused.
    """
    head = {
        "format": _FORMAT,
        "settings": settings.described(),
        "made_by": {
            "lit-restore": importlib.metadata.version("lit-restore"),
            "torch": importlib.metadata.version("torch"),
            "devices": list(devices),
        },
        "complete": len(made) == count,
    }
    rows = [
        {
            "index": index,
            "file": f"{IMAGES}/{settings.file(index)}",
            "class": settings.label(index),
            "nfe": made[index].nfe,
            "finished": made[index].finished,
        }
        for index in sorted(made)
    ]
    body = ",\n".join("  " + json.dumps(row) for row in rows)
    text = json.dumps({**head, "samples": []}, indent=1, ensure_ascii=False)
    # One line a sample: there may be fifty thousand.
    fs.write_atomic(out / RECORD, text.removesuffix("[]\n}") + f"[\n{body}\n ]\n}}\n")


def append_made(out: Path, made: Iterable[Made]) -> None:
    """Note samples that were published.

    Raises:
        OSError: the disk refused.
    """
    fs.append(out / MADE, "".join(json.dumps(asdict(m)) + "\n" for m in made).encode())


def sweep(out: Path) -> None:
    """Remove what processes that were ended had begun; for the holder of the folder's lock."""
    for folder in (out, out / IMAGES):
        for path in fs.list_dir(folder) if fs.is_dir(folder) else ():
            if path.name.startswith(fs.TEMPORARY):
                fs.remove_file(path)


def _refuse_strangers(out: Path) -> None:
    """Without a record nothing was made here: a lock, drafts and an empty folder are ours."""
    here = [path.name for path in fs.list_dir(out)]
    if IMAGES in here and fs.is_dir(out / IMAGES):
        here.remove(IMAGES)
        here += [f"{IMAGES}/{path.name}" for path in fs.list_dir(out / IMAGES)]
    drafts = (fs.TEMPORARY, f"{IMAGES}/{fs.TEMPORARY}")
    strangers = (name for name in here if name != LOCK and not name.startswith(drafts))
    other = next(strangers, None)
    if other is not None:
        raise UserError(f"holds other things ({other}); --out takes a new folder", where=out)


def _read_record(path: Path) -> dict[str, JSONValue]:
    damaged = f"is not the record of a folder of samples; {_GIVE}"
    try:
        content = json.loads(fs.read_text(path, limit=_LIMIT))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(damaged, where=path) from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(damaged, where=path)
    if not isinstance(content.get("settings"), dict) or "samples" not in content:
        raise UserError(damaged, where=path)
    return content


def _refuse_others(out: Path, content: Mapping[str, JSONValue], settings: Settings) -> None:
    held, wanted = content["settings"], settings.described()
    assert isinstance(held, dict)
    if held.get("sha256") != wanted["sha256"]:
        raise UserError(
            f"was made with another checkpoint, {held.get('checkpoint')}; {_GIVE}", where=out
        )
    for name in {**wanted, **held}:
        theirs, ours = held.get(name), wanted.get(name)
        if name not in _NAMES_ONLY and theirs != ours:
            raise UserError(
                f"was made with {name} {_said(theirs)}, not {_said(ours)}; {_GIVE}", where=out
            )


def _said(value: JSONValue) -> str:
    return "none" if value is None else shown(json.dumps(value))


def _rows(rows: Any, path: Path) -> list[Made]:
    try:
        return [_made(row) for row in rows]
    except (TypeError, KeyError, ValueError):
        raise UserError(f"is not the record of a folder of samples; {_GIVE}", where=path) from None


def _lines(path: Path) -> list[Made]:
    """Samples noted so far; a line that a kill cut short counts as none."""
    if not fs.exists(path):
        return []
    found = []
    for line in fs.read_bytes(path, limit=_LIMIT).split(b"\n"):
        try:
            found.append(_made(json.loads(line)))
        except (TypeError, KeyError, ValueError):
            continue
    return found


def _made(row: Any) -> Made:
    index, nfe, finished = row["index"], row["nfe"], row["finished"]
    if type(index) is not int or type(nfe) is not int or type(finished) is not bool:
        raise ValueError(row)
    return Made(index=index, nfe=nfe, finished=finished)
