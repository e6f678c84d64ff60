"""Files that a library writes to a path it is given, made as durable as our own."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

from lit_restore.io import fs
from lit_restore.io.disk import current


def write_by_path(target: Path, write: Callable[[str], None], *, drafts: Path) -> None:
    """Let `write` fill a draft, flush that to the medium and give it its name.

    Args:
        target: the file, in a folder that exists; replaced as a whole.
        write: writes the file whose path it is given.
        drafts: a folder on the same file system that is swept when its owner starts again.

    Raises:
        OSError: the draft could not be written; `target` is as it was.
    """
    draft = fs.temporary(drafts / target.name)
    try:
        write(str(draft))
        # Some exporters only log what went wrong.
        if not fs.exists(draft) or not fs.size(draft):
            raise OSError(errno.EIO, "nothing was written", str(target))
        fd = current().open_append(draft)
        try:
            current().fsync(fd)
        finally:
            current().close(fd)
        current().rename(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.remove_file(draft)
        raise
    current().fsync_dir(target.parent)
