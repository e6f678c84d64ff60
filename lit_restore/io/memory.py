"""How a process that decodes pictures keeps its memory."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST_HEAP_BLOCK = 32 << 20
_KEPT = 256 << 20


def keep_freed() -> None:
    """Let this process keep up to 256 MB that it has freed, instead of handing them back at once.

    glibc gives every large block back to the system when it is freed, and gets it back page by page
    for the next picture: up to 1.5 ms a picture of 512 x 512, more than decoding it takes. Nothing
    happens where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
        mallopt(_TRIM_THRESHOLD, _KEPT)
