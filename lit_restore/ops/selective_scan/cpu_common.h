// What the selective scan on the CPU is given, and a vector of its channels.
#pragma once
#include "native.h"

struct Tokens {  // (batch, L, G, .) in elements, neighbours along the last axis
  const void *data;
  int64_t batch, step, group;
};

struct Scan {
  Tokens u, dt, B, C, z;
  const void *A, *D, *bias;  // contiguous
  const int64_t *index;      // (G, L) or null
  int64_t batch, length, groups, channels, states, chunk;
  int32_t softplus, workers;
};

struct Out {
  void *y, *last, *kept;  // kept: null or (batch, chunks, G, N, D)
};

struct Back {
  const void *grad, *kept;                          // grad contiguous
  void *du, *ddt, *dz;                              // as u
  void *dB, *dC;                                    // (slabs, batch, L, G, N)
  void *dA, *dD, *dbias;                            // (batch, G, D, N), (batch, G, D) twice
  int64_t slab;                                     // channels that share a part of dB and dC
};

namespace {

// As many states at once as leave the other numbers of a step their registers.
constexpr int kAtOnce = kBytes == 64 ? 8 : 4;

// f(n) for n = 0 … P - 1, written out.
template <int P, class F> __attribute__((always_inline)) inline void each(F f) {
#pragma GCC unroll 8
  for (int n = 0; n < P; ++n) f(n);
}

template <class T> const T *row(const Tokens &x, int64_t b, int64_t t, int64_t g) {
  return static_cast<const T *>(x.data) + b * x.batch + t * x.step + g * x.group;
}

// One vector of channels of one group: where it is, and its parameters.
template <class T> struct Block {
  typedef Vec<T> V;
  const Scan &s;
  int64_t b, g, first;
  int count;
  V skip, bias;

  Block(const Scan &s, int64_t b, int64_t g, int64_t first, V *decay) : s(s), b(b), g(g), first(first) {
    const int64_t left = s.channels - first;
    count = left < kLanes<T> ? int(left) : kLanes<T>;
    const int64_t at = g * s.channels + first;
    skip = s.D ? load(static_cast<const T *>(s.D) + at, count) : V{};
    bias = s.bias ? load(static_cast<const T *>(s.bias) + at, count) : V{};
    const T *A = static_cast<const T *>(s.A) + at * s.states;
    for (int n = 0; decay && n < s.states; ++n) {
      decay[n] = V{};
      for (int k = 0; k < count; ++k) decay[n][k] = A[k * s.states + n] * kLog<T>;
    }
  }

  int64_t where(int64_t t) const { return s.index ? s.index[g * s.length + t] : t; }
  V take(const Tokens &x, int64_t at) const { return load(row<T>(x, b, at, g) + first, count); }
  int64_t out(int64_t at) const {  // in a contiguous (batch, L, G, D)
    return ((b * s.length + at) * s.groups + g) * s.channels + first;
  }
  T *state(void *kept, int64_t chunks, int64_t k, int n) const {
    return static_cast<T *>(kept) +
           (((b * chunks + k) * s.groups + g) * s.states + n) * s.channels + first;
  }
  // Along an index no processor foresees what is read next. `at`: its token.
  void fetch(int64_t at, int64_t channel) const {
    __builtin_prefetch(row<T>(s.u, b, at, g) + channel);
    __builtin_prefetch(row<T>(s.dt, b, at, g) + channel);
    if (s.z.data) __builtin_prefetch(row<T>(s.z, b, at, g) + channel);
  }
  void fetch(const Out &o, int64_t at, int64_t channel) const {
    fetch(at, channel);
    __builtin_prefetch(static_cast<T *>(o.y) + out(at) - first + channel, 1);
  }
  void fetch(const Back &o, int64_t at, int64_t channel) const {
    fetch(at, channel);
    const int64_t place = out(at) - first + channel;
    __builtin_prefetch(static_cast<const T *>(o.grad) + place);
    __builtin_prefetch(static_cast<T *>(o.du) + place, 1);
    __builtin_prefetch(static_cast<T *>(o.ddt) + place, 1);
    if (s.z.data) __builtin_prefetch(static_cast<T *>(o.dz) + place, 1);
  }
  V raw(int64_t at) const { return take(s.dt, at) + bias; }
  V delta(V raw) const { return s.softplus ? softplus<T>(raw) : raw; }
};

// Steps start … stop-1 of one vector of channels.
template <class T> struct Chunk {
  const Block<T> &x;
  int64_t start, stop, block;
  // What is read next, to be fetched meanwhile: channel `then` of the tokens `ahead` steps on.
  int64_t ahead, then;

  template <class To> void fetch(const To &o, int64_t t) const {
    const int64_t next = t + ahead;
    if (next >= 0 && next < x.s.length) x.fetch(o, x.where(next), then);
  }
};

}  // namespace
