"""What is looked at only on request, as looking makes a GPU wait: NaN, and a GPU's index."""

from __future__ import annotations

import os

import torch
from torch._C import _functorch as functorch

from lit_restore.errors import UserError
from lit_restore.ops.selective_scan.arguments import Scan
from lit_restore.ops.selective_scan.shapes import check_permutation

VARIABLE = "LIT_RESTORE_SCAN_CHECK"


def check_values(s: Scan) -> None:
    """Refuse an index that is no permutation and, with ``$LIT_RESTORE_SCAN_CHECK``, NaN.

    An index on a GPU is looked at with the variable set only; without it, one out of range reads
    and writes where it points.

    Raises:
        UserError: names the argument, and for NaN the first place.
    """
    asked = bool(os.environ.get(VARIABLE))
    check_permutation(s.index, anywhere=asked)
    if not asked or torch.compiler.is_compiling():
        return
    names = {"u": s.u, "dt": s.dt, "A": s.A, "B": s.B, "C": s.C, "D": s.D, "z": s.z}
    for name, t in {**names, "dt_bias": s.dt_bias}.items():
        if t is None or functorch.is_batchedtensor(t) or not t.isnan().any():
            continue
        place = tuple(t.isnan().nonzero()[0].tolist())
        raise UserError(f"is NaN at {place} of {tuple(t.shape)}", where=name)
