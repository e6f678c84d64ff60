"""The scan's backward in Triton: a tile of (channels, states), chunk by chunk from the last.

A chunk's states are computed again from the one that the forward kept: once to keep every fourth in
`room`, then four at a time, as many as the registers hold. With gy the gradient before the gate and
a_t = exp(delta_t A):

    G_t = C_t gy_t + a_{t+1} G_{t+1}
    dC_t = sum_d gy_t h_t,   dB_t = sum_d G_t delta_t u_t,   dA = sum_t G_t delta_t a_t h_{t-1}
    du_t = sum_n G_t B_t delta_t + D gy_t
    ddelta_t = sum_n G_t (B_t u_t + A a_t h_{t-1})

Sums over channels and batch rows are left to the caller, in parts: no atomics, and so the same bits
every time. Steps from `length` on are of size 0 and change nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lit_restore.ops.triton_maths import LN_2, delta_of, place, sigmoid


@triton.jit
def _inputs(
    t, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    time = tl.cast(t, tl.int64)
    inside = time < length
    row = tl.load(index + time, inside, 0).to(tl.int64) if HAS_INDEX else time
    # Masks of the lanes there are, in a step there is.
    real, state = lane < tl.where(inside, channels, 0), n < tl.where(inside, N, 0)
    x = tl.load(u + row * u_step, real, 0.0).to(tl.float32)
    raw = tl.load(dt + row * dt_step, real, 0.0).to(tl.float32) + shift
    d = tl.where(inside, delta_of(raw, SOFTPLUS), 0.0)
    b = tl.load(B + row * B_step + n, state, 0.0).to(tl.float32)
    return row, x, raw, d, b, real, state


@triton.jit
def _step(
    h, decay, t, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    """The state after step t."""
    _, x, _, d, b, _, _ = _inputs(
        t, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step, N,
        SOFTPLUS, HAS_INDEX,
    )  # fmt: skip
    return tl.exp2(d[:, None] * decay) * h + (d * x)[:, None] * b[None, :]


@triton.jit(do_not_specialize=["one"])
def scan_backward(
    u, dt, B, C, z, grad, kept, A, D, bias, index,
    du, ddt, dz, dB, dC, dA_parts, dD_parts, dbias_parts, room,
    batch, length, groups, channels, one,
    u_batch, u_step, u_group, dt_batch, dt_step, dt_group, B_batch, B_step, B_group,
    C_batch, C_step, C_group, z_batch, z_step, z_group,
    N: tl.constexpr, ROOM: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):  # fmt: skip
    """Grid (batch · groups, channels / WIDTH). A is (G, D, N) and holds A log2(e).

    `one` is 1 and must be unknown to the compiler: with it the tile of the kept states looks
    scattered, and all tiles get the layout of A, four states to a lane, which sums cheaply.
    """
    b, g, lane, real, of = place(groups, channels, WIDTH)
    n = tl.arange(0, ROOM)
    both = real[:, None] & (n < N)[None, :]
    decay = tl.load(A + of[:, None] * N + n[None, :], both, 0.0)
    skip = tl.load(D + of, real, 0.0) if HAS_D else tl.zeros((WIDTH,), tl.float32)
    shift = tl.load(bias + of, real, 0.0) if HAS_BIAS else tl.zeros((WIDTH,), tl.float32)
    u += b * u_batch + g * u_group + lane
    dt += b * dt_batch + g * dt_group + lane
    B += b * B_batch + g * B_group
    C += b * C_batch + g * C_group
    z += b * z_batch + g * z_group + lane
    index += g * length
    token, rank = groups * channels, groups * N
    at = b * length * token + of
    grad += at
    du += at
    ddt += at
    dz += at
    part = ((tl.program_id(1) * batch + b) * length * groups + g) * N
    dB += part
    dC += part
    tile = ((b * groups + g) * tl.num_programs(1) + tl.program_id(1)) * (CHUNK // 4)
    starts = room + tile * (WIDTH * ROOM) + tl.arange(0, WIDTH)[:, None] * ROOM + n[None, :]
    carry, dA = tl.zeros((WIDTH, ROOM), tl.float32), tl.zeros((WIDTH, ROOM), tl.float32)
    dD, dbias = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done
        held = ((b * chunks + chunk) * groups + g) * N
        tl.debug_barrier()
        first = tl.load(kept + (held + n)[None, :] * channels + (lane * one)[:, None], both, 0.0)
        tl.store(starts, first)
        for step in range(CHUNK - 4):
            first = _step(first, decay, chunk * CHUNK + step, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step, N, SOFTPLUS, HAS_INDEX)  # noqa: E501  # fmt: skip
            if step % 4 == 3:
                tl.store(starts + (step // 4 + 1) * (WIDTH * ROOM), first)
        tl.debug_barrier()  # what is read below was perhaps written by another lane
        for back in range(CHUNK // 4):
            quarter = CHUNK // 4 - 1 - back
            start = chunk * CHUNK + 4 * quarter
            h0 = tl.load(starts + quarter * (WIDTH * ROOM))
            h1 = _step(h0, decay, start, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step, N, SOFTPLUS, HAS_INDEX)  # noqa: E501  # fmt: skip
            h2 = _step(h1, decay, start + 1, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step, N, SOFTPLUS, HAS_INDEX)  # noqa: E501  # fmt: skip
            h3 = _step(h2, decay, start + 2, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step, N, SOFTPLUS, HAS_INDEX)  # noqa: E501  # fmt: skip
            h4 = _step(h3, decay, start + 3, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step, N, SOFTPLUS, HAS_INDEX)  # noqa: E501  # fmt: skip
            states = (h0, h1, h2, h3, h4)
            for k in tl.static_range(4):
                t = start + 3 - k
                h, before = states[4 - k], states[3 - k]
                row, x, raw, d, b_row, here, valid = _inputs(
                    t, u, dt, B, index, length, shift, lane, channels, n, u_step, dt_step, B_step,
                    N, SOFTPLUS, HAS_INDEX,
                )  # fmt: skip
                c_row = tl.load(C + row * C_step + n, valid, 0.0).to(tl.float32)
                gy = tl.load(grad + row * token, here, 0.0).to(tl.float32)
                if HAS_Z:
                    w = tl.load(z + row * z_step, here, 0.0).to(tl.float32)
                    s = sigmoid(w)
                    y = tl.sum(h * c_row[None, :], 1) + skip * x
                    through_gate = gy * y * s * (1.0 + w * (1.0 - s))
                    tl.store(dz + row * token, through_gate.to(dz.dtype.element_ty), here)
                    gy *= w * s
                G = carry + gy[:, None] * c_row[None, :]
                tl.store(dC + row * rank + n, tl.sum(gy[:, None] * h, 0), valid)
                tl.store(dB + row * rank + n, tl.sum((d * x)[:, None] * G, 0), valid)
                GB = tl.sum(G * b_row[None, :], 1)
                carry = tl.exp2(d[:, None] * decay) * G
                through = carry * before
                dd = GB * x + tl.sum(through * decay, 1) * LN_2
                if SOFTPLUS:
                    dd = tl.where(raw > 20.0, dd, dd * sigmoid(raw))
                tl.store(du + row * token, (GB * d + skip * gy).to(du.dtype.element_ty), here)
                tl.store(ddt + row * token, dd.to(ddt.dtype.element_ty), here)
                dA += through * d[:, None]
                dD += gy * x
                dbias += tl.where(here, dd, 0.0)
    at = (b * groups + g) * channels + lane
    tl.store(dA_parts + at[:, None] * N + n[None, :], dA, both)
    tl.store(dD_parts + at, dD, real)
    tl.store(dbias_parts + at, dbias, real)
