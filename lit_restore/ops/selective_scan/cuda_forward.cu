// The scan's forward: a lane has PER neighbouring channels and all their states in registers, and
// takes them through all steps; no lane needs another's. B and C of TILE steps lie in shared memory
// as float, and are read by all lanes at once. Also defined from outside: THREADS of a block, TILE,
// SAVE, and RESIDENT blocks that share a multiprocessor, which bounds the registers.
#include "cuda_common.cuh"

constexpr int kQuads = (N + 3) / 4;

struct Rows {
  float4 B[TILE][kQuads], C[TILE][kQuads];
  int order[TILE + 1];  // which row of memory a step reads; one more, for what is fetched ahead
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) scan_forward(const Forward a) {
  __shared__ Rows rows;
  const Scan &s = a.s;
  const int scan = blockIdx.x / s.blocks, b = scan / s.groups, g = scan % s.groups;
  const Spot here = spot_of(((blockIdx.x % s.blocks) * THREADS + threadIdx.x) * PER, s.channels);
  const long long of = static_cast<long long>(g) * s.channels + here.first;  // in (G, D)
  float h[PER][N], decay[PER][N], skip[PER], shift[PER];
#pragma unroll
  for (int c = 0; c < PER; ++c) {
    const long long at = of + (c && here.bytes ? 1 : 0);
    skip[c] = HAS_D ? s.D[at] : 0.f;
    shift[c] = HAS_BIAS ? s.bias[at] : 0.f;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      h[c][n] = 0.f;
      decay[c][n] = s.A[at * N + n] * kLog2E;
    }
  }
  const char *const u = base(s.u, b, g) + here.first * sizeof(Real);
  const char *const dt = base(s.dt, b, g) + here.first * sizeof(Real);
  const char *const z = base(s.z, b, g) + here.first * sizeof(Real);
  const int token = s.groups * s.channels;
  char *const y = a.y + (static_cast<long long>(b) * s.length * token + of) * sizeof(Real);
  const long long chunks = (s.length + CHUNK - 1) / CHUNK;
  float *kept = a.kept + (b * chunks * s.groups + g) * N * s.channels + here.first;

  int row = HAS_INDEX ? s.index[static_cast<long long>(g) * s.length] : 0;
  Raw u_next = fetch(row_of(u, s.u, row), here), dt_next = fetch(row_of(dt, s.dt, row), here);
  Raw z_next = u_next;
  if (HAS_Z) z_next = fetch(row_of(z, s.z, row), here);

  for (int tile = 0; tile < s.length; tile += TILE) {
    __syncthreads();
    stage<TILE, kQuads, THREADS>(rows.B, rows.C, rows.order, TILE + 1, s, b, g, tile);
    __syncthreads();
    const int stop = s.length - tile < TILE ? s.length - tile : TILE;
#pragma unroll 1
    for (int start = 0; start < stop; start += CHUNK) {
      if (SAVE) {
        float *to = kept;
#pragma unroll
        for (int n = 0; n < N; ++n, to += s.channels) {
          float both[PER];
          for (int c = 0; c < PER; ++c) both[c] = h[c][n];
          keep(to, both, here);
        }
        kept += static_cast<long long>(s.groups) * N * s.channels;
      }
      const int end = stop - start < CHUNK ? stop : start + CHUNK;
#pragma unroll 1
      for (int k = start; k < end; ++k) {
        float x[PER], d[PER], w[PER], dx[PER], out[PER];
        widen(x, u_next);
        widen(d, dt_next);
        widen(w, z_next);
        const int now = row;
        // What the next step reads comes while this one computes.
        row = rows.order[k + 1];
        u_next = fetch(row_of(u, s.u, row), here);
        dt_next = fetch(row_of(dt, s.dt, row), here);
        if (HAS_Z) z_next = fetch(row_of(z, s.z, row), here);
#pragma unroll
        for (int c = 0; c < PER; ++c) {
          d[c] = delta_of(HAS_BIAS ? d[c] + shift[c] : d[c]);
          dx[c] = d[c] * x[c];
          out[c] = HAS_D ? skip[c] * x[c] : 0.f;
        }
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
          const float4 B = rows.B[k][quad], C = rows.C[k][quad];
#pragma unroll
          for (int j = 0; j < 4 && 4 * quad + j < N; ++j)
#pragma unroll
            for (int c = 0; c < PER; ++c) {
              float &state = h[c][4 * quad + j];
              state = exp2_of(d[c] * decay[c][4 * quad + j]) * state + dx[c] * part(B, j);
              out[c] += state * part(C, j);
            }
        }
#pragma unroll
        for (int c = 0; c < PER; ++c)
          if (HAS_Z) out[c] *= w[c] * sigmoid(w[c]);
        put(moved(y, now, token * int(sizeof(Real))), out, here);
      }
    }
  }
  float *last = a.last + (static_cast<long long>(b) * token + of) * N;
#pragma unroll
  for (int c = 0; c < PER; ++c)
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (here.real[c]) last[c * N + n] = h[c][n];
}
