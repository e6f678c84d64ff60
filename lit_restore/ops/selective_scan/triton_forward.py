"""The scan's forward in Triton: channels are lanes, all states of a channel are in its registers.

A program takes WIDTH channels of one group of one batch row through all steps. The states are a
tuple of N vectors, so that no step needs another lane; B and C of a step are scalars. Two channels
a lane share those scalars, which is what makes a state update some eleven instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lit_restore.ops.triton_maths import delta_of, place, sigmoid


@triton.jit
def _row(at, STATES: tl.constexpr, WORDS: tl.constexpr):
    """The N numbers from `at` on; with WORDS they are bfloat16, read two at a time."""
    if WORDS:
        pairs = at.to(tl.pointer_type(tl.uint32))
        words = [tl.load(pairs + n // 2) for n in STATES if n % 2 == 0]
        found = [
            ((words[n // 2] << 16) if n % 2 == 0 else (words[n // 2] & 0xFFFF0000)).to(
                tl.float32, bitcast=True
            )
            for n in STATES
        ]
    else:
        found = [tl.load(at + n).to(tl.float32) for n in STATES]
    return found


@triton.jit
def scan_forward(
    u, dt, B, C, z, A, D, bias, index, y, last, kept,
    length, groups, channels, chunks,
    u_batch, u_step, u_group, dt_batch, dt_step, dt_group, B_batch, B_step, B_group,
    C_batch, C_step, C_group, z_batch, z_step, z_group,
    STATES: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_INDEX: tl.constexpr, SAVE: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Grid (batch · groups, channels / WIDTH). A is (G, N, D) and holds A log2(e)."""
    b, g, lane, real, of = place(groups, channels, WIDTH)
    decay = [tl.load(A + (g * N + n) * channels + lane, real, 0.0) for n in STATES]
    skip = tl.load(D + of, real, 0.0) if HAS_D else tl.zeros((WIDTH,), tl.float32)
    shift = tl.load(bias + of, real, 0.0) if HAS_BIAS else tl.zeros((WIDTH,), tl.float32)
    u += b * u_batch + g * u_group + lane
    dt += b * dt_batch + g * dt_group + lane
    B += b * B_batch + g * B_group
    C += b * C_batch + g * C_group
    z += b * z_batch + g * z_group + lane
    index += g * length
    y += b * length * groups * channels + of
    h = [tl.zeros((WIDTH,), tl.float32) for n in STATES]
    row = tl.load(index).to(tl.int64) if HAS_INDEX else b * 0
    u_next = tl.load(u + row * u_step, real, 0.0)
    dt_next = tl.load(dt + row * dt_step, real, 0.0)
    z_next = tl.load(z + row * z_step, real, 0.0) if HAS_Z else u_next
    for t in range(length):
        if SAVE:  # noqa: SIM102  (constant; the other is not)
            if t % CHUNK == 0:
                at = kept + ((b * chunks + t // CHUNK) * groups + g) * N * channels + lane
                for n in tl.static_range(N):
                    tl.store(at + n * channels, h[n], real)
        here, b_row, c_row = row, B + row * B_step, C + row * C_step
        b_now, c_now = _row(b_row, STATES, WORDS), _row(c_row, STATES, WORDS)
        x, raw, w = u_next.to(tl.float32), dt_next.to(tl.float32) + shift, z_next.to(tl.float32)
        # What the next step reads comes while this one computes.
        after = tl.minimum(t + 1, length - 1)
        row = (tl.load(index + after) if HAS_INDEX else after).to(tl.int64)
        u_next = tl.load(u + row * u_step, real, 0.0)
        dt_next = tl.load(dt + row * dt_step, real, 0.0)
        if HAS_Z:
            z_next = tl.load(z + row * z_step, real, 0.0)
        d = delta_of(raw, SOFTPLUS)
        dx = d * x
        h = [tl.exp2(d * decay[n]) * h[n] + dx * b_now[n] for n in STATES]
        out = skip * x
        for n in tl.static_range(N):
            out += h[n] * c_now[n]
        if HAS_Z:
            out *= w * sigmoid(w)
        tl.store(y + here * groups * channels, out.to(y.dtype.element_ty), real)
    at = last + ((b * groups + g) * channels + lane) * N
    for n in tl.static_range(N):
        tl.store(at + n, h[n], real)
