"""Memory that is freed and asked for again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from lit_restore.io import memory
if sys.argv[1] == "keep":
    memory.keep_freed()
np.ones(1 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(1 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own option")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    # Every block above 64 KB is given back at once, which glibc does by itself now and then only.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", CODE, mode],
                env=env, capture_output=True, text=True, check=True,
            ).stdout
        )
        for mode in ("leave", "keep")
    }  # fmt: skip
    assert faults["leave"] > 5000, "the negative control"
    assert faults["keep"] < 500
