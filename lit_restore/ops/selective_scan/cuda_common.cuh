// What the scan's two CUDA kernels share: arguments, types, a few functions. It includes nothing,
// so that NVRTC needs no folder of headers. Defined from outside, all of them numbers:
//   N       states of a channel                      CHUNK    steps between two kept states
//   PER     neighbouring channels of a lane, 1 or 2  KIND     0 float, 1 bfloat16, 2 float16
//   PAIRS   two channels lie in one aligned word     SOFTPLUS, HAS_D, HAS_Z, HAS_BIAS, HAS_INDEX
#pragma once

struct Tokens {  // (batch, L, G, .): distances in bytes; neighbours on the last axis are adjacent
  const char *data;
  long long batch, group;
  int step;
};

struct Scan {
  Tokens u, dt, B, C, z;
  const float *A, *D, *bias;  // (G, D, N), (G, D), (G, D)
  const int *index;           // (G, L)
  int batch, length, groups, channels;
  int blocks;  // that share the channels of a scan
};

struct Forward {
  Scan s;
  char *y;      // (batch, L, G, D)
  float *last;  // (batch, G, D, N)
  float *kept;  // (batch, chunks, G, N, D)
};

struct Backward {
  Scan s;
  const char *grad;                // (batch, L, G, D), as du, ddt and dz
  const float *kept;               // (batch, chunks, G, N, D)
  char *du, *ddt, *dz;
  float *dB, *dC;                  // (blocks, batch, L, G, N)
  float *dA, *dD, *dbias;          // (batch, G, D, N), (batch, G, D), (batch, G, D)
};

constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;

#ifdef __CUDA_ARCH__
// One instruction each; the functions of the language would look after denormal numbers as well.
__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Hides how a number came about, or the compiler computes it again in every turn of a loop.
__device__ __forceinline__ long long kept_as_is(long long x) {
  asm("" : "+l"(x));
  return x;
}
#endif

__device__ __forceinline__ float sigmoid(float x) {
  return reciprocal(1.f + exp2_of(x * -kLog2E));
}

// log(1 + e^x) = max(x, 0) + log(1 + v) with v = e^-|x|; log(1 + v) = 2 artanh(v / (2 + v)), whose
// series in q = s^2 <= 1/9 is cut by a minimax fit: small steps keep their relative precision.
// Above 20 the sum rounds to x itself. NaN: the second term is.
__device__ __forceinline__ float softplus(float x) {
  const float v = exp2_of(fabsf(x) * -kLog2E);
  const float s = v * reciprocal(v + 2.f), q = s * s;
  float p = 1.400599426e-01f;
  p = p * q + 1.400090248e-01f;
  p = p * q + 2.001076363e-01f;
  p = p * q + 3.333320814e-01f;
  return fmaxf(x, 0.f) + 2.f * (s + s * (p * q));
}

__device__ __forceinline__ float delta_of(float raw) { return SOFTPLUS ? softplus(raw) : raw; }

// ---- numbers in memory

#if KIND == 0
typedef float Real;
__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float narrow(float x) { return x; }
#else
typedef unsigned short Real;
#endif
#if KIND == 1
__device__ __forceinline__ float wide(Real x) { return __uint_as_float(unsigned(x) << 16); }
#ifdef __CUDA_ARCH__
__device__ __forceinline__ Real narrow(float x) {
  Real y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif
#elif KIND == 2 && defined(__CUDA_ARCH__)
__device__ __forceinline__ float wide(Real x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ __forceinline__ Real narrow(float x) {
  Real y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif

// The channels of a lane. `bytes` is from the first one to the second, 0 where there is no second:
// it is then read twice, and not written.
struct Spot {
  int first;        // channel, one that exists
  int bytes;
  bool real[PER];
};

__device__ __forceinline__ Spot spot_of(int channel, int channels) {
  Spot here;
  const int most = channels - (PAIRS ? PER : 1);
  here.first = channel < most ? channel : most;
  here.bytes = here.first + 1 < channels ? int(sizeof(Real)) : 0;
  for (int c = 0; c < PER; ++c) here.real[c] = channel + c < channels;
  return here;
}

#if PAIRS && KIND == 0
typedef float2 Raw;
#elif PAIRS
typedef unsigned Raw;
#else
struct Raw {
  Real at[PER];
};
#endif

__device__ __forceinline__ Raw fetch(const char *from, const Spot &here) {
#if PAIRS
  return *reinterpret_cast<const Raw *>(from);
#else
  Raw found;
#pragma unroll
  for (int c = 0; c < PER; ++c)
    found.at[c] = *reinterpret_cast<const Real *>(from + c * here.bytes);
  return found;
#endif
}

__device__ __forceinline__ void widen(float (&to)[PER], const Raw &from) {
#if PAIRS && KIND == 0
  to[0] = from.x, to[PER - 1] = from.y;
#elif PAIRS && KIND == 1
  to[0] = __uint_as_float(from << 16), to[PER - 1] = __uint_as_float(from & 0xffff0000u);
#elif PAIRS
  to[0] = wide(Real(from)), to[PER - 1] = wide(Real(from >> 16));
#else
#pragma unroll
  for (int c = 0; c < PER; ++c) to[c] = wide(from.at[c]);
#endif
}

__device__ __forceinline__ void put(char *to, const float (&x)[PER], const Spot &here) {
#if PAIRS && KIND == 0
  if (here.real[0]) *reinterpret_cast<Raw *>(to) = make_float2(x[0], x[PER - 1]);
#elif PAIRS
  if (here.real[0])
    *reinterpret_cast<Raw *>(to) = unsigned(narrow(x[0])) | unsigned(narrow(x[PER - 1])) << 16;
#else
#pragma unroll
  for (int c = 0; c < PER; ++c)
    if (here.real[c]) *reinterpret_cast<Real *>(to + c * here.bytes) = narrow(x[c]);
#endif
}

// The same for states, which are float whatever the rest is.
__device__ __forceinline__ void keep(float *to, const float (&x)[PER], const Spot &here) {
#if PAIRS
  if (here.real[0]) *reinterpret_cast<float2 *>(to) = make_float2(x[0], x[PER - 1]);
#else
#pragma unroll
  for (int c = 0; c < PER; ++c)
    if (here.real[c]) to[c] = x[c];
#endif
}

__device__ __forceinline__ void recall(float (&x)[PER], const float *from, const Spot &here) {
#if PAIRS
  const float2 both = *reinterpret_cast<const float2 *>(from);
  x[0] = both.x, x[PER - 1] = both.y;
#else
#pragma unroll
  for (int c = 0; c < PER; ++c) x[c] = from[c && here.bytes ? 1 : 0];
#endif
}

// ---- places

// Both are of 31 bits, and one instruction does it.
template <class T> __device__ __forceinline__ T *moved(T *from, int row, int step) {
  return from + static_cast<long long>(row) * step;
}

__device__ __forceinline__ const char *base(const Tokens &x, int b, int g) {
  return x.data + b * x.batch + g * x.group;
}

// Where the channels of a lane are in the first row.
__device__ __forceinline__ long long place(const Tokens &x, int b, int g, int channel) {
  return kept_as_is(b * x.batch + g * x.group + channel * static_cast<long long>(sizeof(Real)));
}

__device__ __forceinline__ const char *row_of(const char *from, const Tokens &x, int row) {
  return moved(from, row, x.step);
}

__device__ __forceinline__ float &part(float4 &x, int n) { return (&x.x)[n]; }
__device__ __forceinline__ float part(const float4 &x, int n) {
  return n == 0 ? x.x : n == 1 ? x.y : n == 2 ? x.z : x.w;
}

// Brings rows of B and C of STEPS steps into shared memory, with zeros from state N on and in steps
// that there are not, and which row of memory each is: 0 where there is none.
template <int STEPS, int QUADS, int THREADS_>
__device__ __forceinline__ void stage(float4 (&B)[STEPS][QUADS], float4 (&C)[STEPS][QUADS],
                                      int *order, int orders, const Scan &s, int b, int g,
                                      int start) {
  const int *index = s.index + static_cast<long long>(g) * s.length;
  const char *const from[] = {base(s.B, b, g), base(s.C, b, g)};
  constexpr int kAtOnce = 2 * STEPS * QUADS > THREADS_ ? 2 : 1;
#pragma unroll kAtOnce
  for (int k = threadIdx.x; k < 2 * STEPS * QUADS; k += THREADS_) {
    const bool second = k >= STEPS * QUADS;
    const int at = second ? k - STEPS * QUADS : k, n = 4 * (at % QUADS);
    const int t = start + at / QUADS;
    float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
    if (t < s.length) {
      const int row = HAS_INDEX ? index[t] : t;
      const Real *values = reinterpret_cast<const Real *>(
          moved(second ? from[1] : from[0], row, second ? s.C.step : s.B.step));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (n + j < N) part(x, j) = wide(values[n + j]);
    }
    (second ? C : B)[0][at] = x;
  }
  for (int k = threadIdx.x; k < orders; k += THREADS_) {
    const int t = start + k;
    order[k] = t < s.length ? HAS_INDEX ? index[t] : t : 0;
  }
}
