"""Members of a compressed source archive (.tar.gz), as package indexes carry them."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from os import PathLike

from lit_restore.errors import UserError
from lit_restore.io import fs
from lit_restore.io.wording import shown


def read_members(path: str | PathLike[str], names: Sequence[str], *, limit: int) -> list[bytes]:
    """The contents of files in an archive; nothing is extracted.

    Args:
        path: a gzipped tar whose hash was checked: what it inflates to is not bounded.
        names: the files, as the archive names them.
        limit: largest of them, bytes.

    Raises:
        UserError: it is damaged, or lacks one of them or holds a larger one.
    """
    found = []
    try:
        with fs.open_read(path) as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
            for name in names:
                member = tar.extractfile(name)
                data = b"" if member is None else member.read(limit + 1)
                if not data or len(data) > limit:
                    raise UserError(f"holds no {shown(name)} of 1 to {limit} bytes", where=path)
                found.append(data)
    except (tarfile.TarError, KeyError, EOFError):
        raise UserError("is no whole .tar.gz with the files that are wanted", where=path) from None
    return found
