"""The convolution's backward in Triton: the same window, slid from the end of a segment.

With g the gradient before the activation and w_k the tap k steps back:

    dx_t = sum_k w_k g_{t+k},   dw_k = sum_t g_t x_{t-k},   dbias = sum_t g_t

A segment computes the g of the K - 1 steps after it again, and leaves its share of dw and dbias to
be summed by the caller: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lit_restore.ops.causal_conv.triton_forward import row_of, token_at
from lit_restore.ops.triton_maths import place, sigmoid


@triton.jit
def conv_backward(
    x, weight, bias, index, grad, dx, dweight, dbias,
    batch, length, groups, channels, x_batch, x_step, x_group,
    TAPS: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, SEGMENT: tl.constexpr,
    SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    """Grid (batch · groups, channels / WIDTH, L / SEGMENT)."""
    b, g, lane, real, of = place(groups, channels, WIDTH)
    token = groups * channels
    taps = [tl.load(weight + of * K + K - 1 - k, real, 0.0).to(tl.float32) for k in TAPS]
    shift = tl.zeros((WIDTH,), tl.float32)
    if HAS_BIAS:
        shift += tl.load(bias + of, real, 0.0).to(tl.float32)
    x += b * x_batch + g * x_group + lane
    at = b * length * token + of
    grad += at
    dx += at
    index += g * length
    start = tl.program_id(2) * SEGMENT
    # Of the steps after the segment only the K - 1 next matter, to the segment's dx.
    last = start + SEGMENT + K - 2
    window = [
        token_at(last + 1 - k, x, x_step, index, length, lane, channels, HAS_INDEX) for k in TAPS
    ]
    zero = tl.zeros((WIDTH,), tl.float32)
    ahead = [zero for k in TAPS]  # g of the present step and the K - 1 after it
    dw = [zero for k in TAPS]
    db = zero
    for back in range(SEGMENT + K - 1):
        t = last - back
        oldest = token_at(t - (K - 1), x, x_step, index, length, lane, channels, HAS_INDEX)
        window = [oldest if k == K - 1 else window[k + 1] for k in TAPS]
        g_now = token_at(t, grad, token, index, length, lane, channels, HAS_INDEX)
        if SILU:
            pre = shift
            for k in tl.static_range(K):
                pre += taps[k] * window[k]
            s = sigmoid(pre)
            g_now *= s * (1.0 + pre * (1.0 - s))
        ahead = [g_now if k == 0 else ahead[k - 1] for k in TAPS]
        row, there = row_of(t, index, length, HAS_INDEX)
        mine = there & (t < start + SEGMENT)
        own = tl.where(mine, g_now, 0.0)
        dw = [dw[k] + own * window[k] for k in TAPS]
        db += own
        out = zero
        for k in tl.static_range(K):
            out += taps[k] * ahead[k]
        here = lane < tl.where(mine, channels, 0)
        tl.store(dx + row * token, out.to(dx.dtype.element_ty), here)
    part = (tl.program_id(2) * batch + b) * token + of
    for k in tl.static_range(K):
        tl.store(dweight + part * K + K - 1 - k, dw[k], real)
    tl.store(dbias + part, db, real)
