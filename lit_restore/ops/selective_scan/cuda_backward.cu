// The scan's backward, chunk by chunk from the last. A warp is 8 x PER channels by 4 lanes; a lane
// has a quarter of the states of PER neighbouring channels. A chunk's states are computed again
// from the one that the forward kept: once to keep every fourth, then four at a time, as many as
// the registers hold. With gy the gradient before the gate and a_t = exp(delta_t A):
//
//     G_t = C_t gy_t + a_{t+1} G_{t+1}
//     dC_t = sum_d gy_t h_t,   dB_t = sum_d G_t delta_t u_t,   dA = sum_t G_t delta_t a_t h_{t-1}
//     du_t = sum_n G_t B_t delta_t + D gy_t
//     ddelta_t = sum_n G_t (B_t u_t + A a_t h_{t-1})
//
// What there is to do once for a step and channel is divided among its four lanes: lane q does it
// for step q of the four. Sums over states come to that lane by shuffles, each with half the
// numbers of the one before; those over the channels of a block go through shared memory. From
// block to block and from row to row of the batch they are the caller's: no atomics, so the same
// bits every time.
//
// Also defined from outside: WARPS of a block, and RESIDENT blocks that share a multiprocessor.
#include "cuda_common.cuh"

constexpr int kQuads = (N + 15) / 16;  // times four states in a lane
constexpr int kStates = 4 * kQuads;    // of a lane; those from N on stay zero
constexpr int kPairs = 8;              // of channels, or single ones, in a warp
constexpr int kSpan = 4;               // steps whose states are in registers at once
constexpr unsigned kAll = 0xffffffffu;
static_assert(CHUNK == 4 * kSpan, "a lane has one step of each span");

struct alignas(8 * PER) Step {  // of the channels of a lane
  float d[PER], dx[PER];
};

struct Warp {
  Step steps[CHUNK][kPairs];
  float4 starts[CHUNK / kSpan - 1][PER * kQuads][32];  // states before each span
  float4 shares[kSpan][2][kQuads][32];                 // of dB and dC, before the sum over lanes
  float4 sums[CHUNK][2][4 * kQuads];                   // and after it
};

struct Room {
  float4 B[CHUNK][4 * kQuads], C[CHUNK][4 * kQuads];
  int order[CHUNK];
  Warp warps[WARPS];
};

typedef float States[PER][kStates];

// A quad of a lane q is every fourth of all.
__device__ __forceinline__ int first_state(int quad, int q) { return 4 * (4 * quad + q); }

// One step on, and the decays of that step.
__device__ __forceinline__ void advance(States &after, States &a, const States &before,
                                        const States &decay, const Step &step,
                                        const float4 *B, int q) {
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad) {
    const float4 row = B[4 * quad + q];
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int c = 0; c < PER; ++c) {
        const int n = 4 * quad + j;
        a[c][n] = exp2_of(step.d[c] * decay[c][n]);
        after[c][n] = a[c][n] * before[c][n] + step.dx[c] * part(row, j);
      }
  }
}

// The sum over the four lanes of a channel: that of x[k] in lane k.
__device__ __forceinline__ float gathered(const float (&x)[kSpan], int q) {
  const bool high = q & 2, odd = q & 1;
  const float first = (high ? x[2] : x[0]) + __shfl_xor_sync(kAll, high ? x[0] : x[2], 2);
  const float second = (high ? x[3] : x[1]) + __shfl_xor_sync(kAll, high ? x[1] : x[3], 2);
  return (odd ? second : first) + __shfl_xor_sync(kAll, odd ? first : second, 1);
}

__device__ __forceinline__ void store_row(float *to, float4 x, int n) {
  if (N % 4 == 0) {
    if (n < N) *reinterpret_cast<float4 *>(to + n) = x;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (n + j < N) to[n + j] = part(x, j);
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT) scan_backward(const Backward a) {
  __shared__ Room room;
  const Scan &s = a.s;
  const int block = blockIdx.x % s.blocks, scan = blockIdx.x / s.blocks;
  const int b = scan / s.groups, g = scan % s.groups;
  const int lane = threadIdx.x % 32, pair = lane / 4, q = lane % 4, which = pair % 2;
  Warp &mine = room.warps[threadIdx.x / 32];
  const Spot here =
      spot_of(((block * WARPS + int(threadIdx.x) / 32) * kPairs + pair) * PER, s.channels);
  const int token = s.groups * s.channels, bytes = token * int(sizeof(Real));
  const long long of = static_cast<long long>(g) * s.channels + here.first;  // in (G, D)
  const long long at = static_cast<long long>(b) * token + of;               // in (batch, G, D)
  float skip[PER], shift[PER], dD[PER], dbias[PER];
  States decay, carry, dA;
#pragma unroll
  for (int c = 0; c < PER; ++c) {
    const long long channel = of + (c && here.bytes ? 1 : 0);
    skip[c] = HAS_D ? s.D[channel] : 0.f;
    shift[c] = HAS_BIAS ? s.bias[channel] : 0.f;
    dD[c] = dbias[c] = 0.f;
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      const int state = first_state(n / 4, q) + n % 4;
      decay[c][n] = state < N ? s.A[channel * N + state] * kLog2E : 0.f;
      carry[c][n] = dA[c][n] = 0.f;
    }
  }
  const long long u = place(s.u, b, g, here.first);
  const long long dt = place(s.dt, b, g, here.first);
  const long long z = place(s.z, b, g, here.first);
  const long long start_of = (static_cast<long long>(b) * s.length * token + of) * sizeof(Real);
  const int chunks = (s.length + CHUNK - 1) / CHUNK;

  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    const int first = chunk * CHUNK;
    __syncthreads();  // all have done with the chunk before
    stage<CHUNK, 4 * kQuads, 32 * WARPS>(room.B, room.C, room.order, CHUNK, s, b, g, first);
    __syncthreads();
#pragma unroll
    for (int k = q; k < CHUNK; k += 4) {
      const int row = room.order[k];
      Step step;
      float x[PER], raw[PER];
      widen(x, fetch(moved(s.u.data + u, row, s.u.step), here));
      widen(raw, fetch(moved(s.dt.data + dt, row, s.dt.step), here));
#pragma unroll
      for (int c = 0; c < PER; ++c) {
        const bool real = here.real[c] && first + k < s.length;
        step.d[c] = real ? delta_of(HAS_BIAS ? raw[c] + shift[c] : raw[c]) : 0.f;
        step.dx[c] = real ? step.d[c] * x[c] : 0.f;
      }
      mine.steps[k][pair] = step;
    }
    __syncwarp();

    // The states before each span; those before the last one stay in registers.
    States h[kSpan + 1], decays[kSpan];
    const long long before = (static_cast<long long>(b) * chunks + chunk) * s.groups + g;
    const float *held = a.kept + before * N * s.channels + here.first;
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      const int state = first_state(n / 4, q) + n % 4;
      float both[PER];
      recall(both, held + static_cast<long long>(state < N ? state : 0) * s.channels, here);
#pragma unroll
      for (int c = 0; c < PER; ++c) h[0][c][n] = state < N ? both[c] : 0.f;
    }
#pragma unroll 1
    for (int span = 0; span < CHUNK / kSpan - 1; ++span) {
#pragma unroll
      for (int k = 0; k < PER * kQuads; ++k) {
        const float *from = &h[0][k / kQuads][k % kQuads * 4];
        mine.starts[span][k][lane] = make_float4(from[0], from[1], from[2], from[3]);
      }
#pragma unroll
      for (int k = 0; k < kSpan; ++k) {
        const int t = span * kSpan + k;
        advance(h[0], decays[0], h[0], decay, mine.steps[t][pair], room.B[t], q);
      }
    }

#pragma unroll 1
    for (int span = CHUNK / kSpan - 1; span >= 0; --span) {
      // This lane's own step: read early, needed late.
      const int own = span * kSpan + q, row = room.order[own];
      const long long there = start_of + static_cast<long long>(row) * bytes;
      const Raw raw_u = fetch(moved(s.u.data + u, row, s.u.step), here);
      const Raw raw_dt = fetch(moved(s.dt.data + dt, row, s.dt.step), here);
      const Raw raw_g = fetch(a.grad + there, here);
      Raw raw_z = raw_u;
      if (HAS_Z) raw_z = fetch(moved(s.z.data + z, row, s.z.step), here);

      float y[PER][kSpan], GB[PER][kSpan], GA[PER][kSpan];
#pragma unroll
      for (int k = 0; k < kSpan; ++k) {
        const int t = span * kSpan + k;
        advance(h[k + 1], decays[k], h[k], decay, mine.steps[t][pair], room.B[t], q);
#pragma unroll
        for (int c = 0; c < PER; ++c) y[c][k] = GB[c][k] = GA[c][k] = 0.f;
      }

      float x[PER], gy[PER], through_gate[PER];
      widen(x, raw_u);
      widen(gy, raw_g);
      if (HAS_Z) {
        float w[PER];
        widen(w, raw_z);
#pragma unroll
        for (int c = 0; c < PER; ++c) {
          const float gate = sigmoid(w[c]);
          through_gate[c] = gy[c] * gate * (1.f + w[c] * (1.f - gate));
          gy[c] *= w[c] * gate;
        }
      }
      // What a scan does not have takes no part, be it NaN where it is read instead.
      const bool inside = first + own < s.length;
#pragma unroll
      for (int c = 0; c < PER; ++c)
        if (!inside || !here.real[c]) gy[c] = 0.f;

#pragma unroll
      for (int k = kSpan - 1; k >= 0; --k) {
        const int t = span * kSpan + k;
        const Step step = mine.steps[t][pair];
        float g_now[PER];
#pragma unroll
        for (int c = 0; c < PER; ++c) g_now[c] = __shfl_sync(kAll, gy[c], (lane & ~3) + k);
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
          const float4 B = room.B[t][4 * quad + q], C = room.C[t][4 * quad + q];
          float4 dB = make_float4(0.f, 0.f, 0.f, 0.f), dC = dB;
#pragma unroll
          for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int c = 0; c < PER; ++c) {
              const int n = 4 * quad + j;
              const float G = carry[c][n] + g_now[c] * part(C, j);
              part(dB, j) += step.dx[c] * G;
              part(dC, j) += g_now[c] * h[k + 1][c][n];
              if (HAS_Z) y[c][k] += h[k + 1][c][n] * part(C, j);
              GB[c][k] += G * part(B, j);
              carry[c][n] = decays[k][c][n] * G;
              const float through = carry[c][n] * h[k][c][n];
              GA[c][k] += through * decay[c][n];
              dA[c][n] += through * step.d[c];
            }
          mine.shares[k][0][quad][lane] = dB;
          mine.shares[k][1][quad][lane] = dC;
        }
      }

      float du[PER], ddt[PER], dz[PER], raw[PER];
      widen(raw, raw_dt);
      const Step step = mine.steps[own][pair];
#pragma unroll
      for (int c = 0; c < PER; ++c) {
        const float sumB = gathered(GB[c], q), sumA = gathered(GA[c], q) * kLn2;
        du[c] = sumB * step.d[c] + skip[c] * gy[c];
        ddt[c] = sumB * x[c] + sumA;
        // 1 in float32 where the threshold is.
        if (SOFTPLUS) ddt[c] *= sigmoid(HAS_BIAS ? raw[c] + shift[c] : raw[c]);
        if (HAS_D) dD[c] += gy[c] * x[c];
        if (HAS_BIAS && inside) dbias[c] += ddt[c];
        if (HAS_Z) dz[c] = through_gate[c] * (gathered(y[c], q) + skip[c] * x[c]);
      }
      if (inside) {
        put(a.du + there, du, here);
        put(a.ddt + there, ddt, here);
        if (HAS_Z) put(a.dz + there, dz, here);
      }

      // Eight lanes share a quad of states. Here a lane has one of dB or dC of a step and sums it;
      // for dC it begins with the second of the eight, so that eight lanes read from all banks.
      __syncwarp();
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        const float4 *from = &mine.shares[lane / 8][which][quad][4 * which + q];
        float4 sum = from[which ? -4 : 4 * (kPairs - 1)];
#pragma unroll
        for (int k = 0; k < kPairs - 1; ++k) {
          const float4 x = from[4 * k];
          sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
        }
        mine.sums[span * kSpan + lane / 8][which][4 * quad + q] = sum;
      }
      if (span > 0) {
#pragma unroll
        for (int k = 0; k < PER * kQuads; ++k) {
          const float4 from = mine.starts[span - 1][k][lane];
#pragma unroll
          for (int j = 0; j < 4; ++j) h[0][k / kQuads][k % kQuads * 4 + j] = part(from, j);
        }
      }
      __syncwarp();
    }

    __syncthreads();
    constexpr int kRow = 2 * 4 * kQuads;  // float4s of a step
#pragma unroll 1
    for (int k = threadIdx.x; k < CHUNK * kRow; k += 32 * WARPS) {
      const int t = k / kRow, quad = k % (kRow / 2);
      if (first + t >= s.length) continue;
      float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int warp = 0; warp < WARPS; ++warp) {
        const float4 x = (&room.warps[warp].sums[0][0][0])[k];
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
      }
      const long long row =
          (static_cast<long long>(block) * s.batch + b) * s.length + room.order[t];
      float *to = (k % kRow < kRow / 2 ? a.dB : a.dC) + (row * s.groups + g) * N;
      store_row(to, sum, 4 * quad);
    }
  }

#pragma unroll
  for (int c = 0; c < PER; ++c) {
    if (here.real[c])
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        const float *from = &dA[c][4 * quad];
        store_row(a.dA + (at + c) * N, make_float4(from[0], from[1], from[2], from[3]),
                  first_state(quad, q));
      }
#pragma unroll
    for (int far = 1; far < 4; far *= 2) {
      dD[c] += __shfl_xor_sync(kAll, dD[c], far);
      dbias[c] += __shfl_xor_sync(kAll, dbias[c], far);
    }
    if (here.real[c] && q == 0) {
      if (HAS_D) a.dD[at + c] = dD[c];
      if (HAS_BIAS) a.dbias[at + c] = dbias[c];
    }
  }
}
