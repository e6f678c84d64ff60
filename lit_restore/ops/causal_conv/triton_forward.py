"""The convolution's forward in Triton: a window of K tokens slides along the order of the scan."""

from __future__ import annotations

import triton
import triton.language as tl

from lit_restore.ops.triton_maths import place, sigmoid


@triton.jit
def row_of(t, index, length, HAS_INDEX: tl.constexpr):
    """The row of step t and whether there is such a step."""
    time = tl.cast(t, tl.int64)
    there = (time >= 0) & (time < length)
    row = tl.load(index + time, there, 0).to(tl.int64) if HAS_INDEX else time
    return tl.where(there, row, 0), there


@triton.jit
def token_at(t, x, step, index, length, lane, channels, HAS_INDEX: tl.constexpr):
    """The channels of step t, zero before the first and after the last."""
    row, there = row_of(t, index, length, HAS_INDEX)
    return tl.load(x + row * step, lane < tl.where(there, channels, 0), 0.0).to(tl.float32)


@triton.jit
def conv_forward(
    x, weight, bias, index, y, length, groups, channels, x_batch, x_step, x_group,
    TAPS: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, SEGMENT: tl.constexpr,
    SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    """Grid (batch · groups, channels / WIDTH, L / SEGMENT)."""
    b, g, lane, real, of = place(groups, channels, WIDTH)
    taps = [tl.load(weight + of * K + K - 1 - k, real, 0.0).to(tl.float32) for k in TAPS]
    shift = tl.zeros((WIDTH,), tl.float32)
    if HAS_BIAS:
        shift += tl.load(bias + of, real, 0.0).to(tl.float32)
    x += b * x_batch + g * x_group + lane
    y += b * length * groups * channels + of
    index += g * length
    start = tl.program_id(2) * SEGMENT
    # window[k] is the token k steps before the present one.
    window = [
        token_at(start - 1 - k, x, x_step, index, length, lane, channels, HAS_INDEX) for k in TAPS
    ]
    for t in range(start, tl.minimum(start + SEGMENT, length)):
        row, _ = row_of(t, index, length, HAS_INDEX)
        now = tl.load(x + row * x_step, real, 0.0).to(tl.float32)
        window = [now if k == 0 else window[k - 1] for k in TAPS]
        pre = shift
        for k in tl.static_range(K):
            pre += taps[k] * window[k]
        if SILU:
            pre *= sigmoid(pre)
        tl.store(y + row * groups * channels, pre.to(y.dtype.element_ty), real)
