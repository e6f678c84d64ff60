"""Whether an exception says that memory is short, on a GPU or on the processor."""

from __future__ import annotations

import torch


def memory_is_short(error: Exception) -> bool:
    """True for CUDA's and Python's errors of memory and that of PyTorch's allocator on the CPU.

    Args:
        error: what a computation raised; the allocator's is a plain `RuntimeError`.
    """
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
