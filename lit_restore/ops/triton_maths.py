"""Functions that the Triton kernels of the scan and of the convolution share."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def place(groups, channels, WIDTH: tl.constexpr):
    """What a program of a grid (batch · groups, channels / WIDTH, …) computes.

    Its row of the batch, its group, its channels, which of them there are, and where those lie in
    (groups, channels).
    """
    scan = tl.program_id(0).to(tl.int64)
    b, g = scan // groups, scan % groups
    lane = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    return b, g, lane, lane < channels, g * channels + lane


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def delta_of(raw, SOFTPLUS: tl.constexpr):
    """The step sizes: log(1 + e^raw), or raw itself."""
    if SOFTPLUS:
        e = tl.exp2(raw * LOG2_E)
        w = 1.0 + e
        soft = tl.log2(w) * LN_2
        # log(w) misses what w was rounded by; for w near 1 that is most of it.
        soft += tl.where(raw < 0.0, e - (w - 1.0), 0.0)
        found = tl.where(raw > 20.0, raw, soft)
    else:
        found = raw
    return found
