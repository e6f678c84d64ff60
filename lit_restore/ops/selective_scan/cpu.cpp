// The selective scan on the CPU: a vector of channels at a time, their states in registers.
// The formulas are those of reference.py; the layouts those of arguments.py. cpu.py calls it.
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

// f(n) for every state: written out where their number N is known.
template <int N, class F> __attribute__((always_inline)) inline void each(int states, F f) {
  if constexpr (N > 0) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) f(n);
  } else {
    for (int n = 0; n < states; ++n) f(n);
  }
}

template <class T> const T *row(const Tokens &x, int64_t b, int64_t t, int64_t g) {
  return static_cast<const T *>(x.data) + b * x.batch + t * x.step + g * x.group;
}

// One vector of channels of one group: where it is, and its parameters. N = 0: any number.
template <class T, int N> struct Block {
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
    const T *A = static_cast<const T *>(s.A) + at * states();
    for (int n = 0; decay && n < states(); ++n) {
      decay[n] = V{};
      for (int k = 0; k < count; ++k) decay[n][k] = A[k * states() + n] * kLog<T>;
    }
  }

  int states() const { return N ? N : int(s.states); }
  int64_t where(int64_t t) const { return s.index ? s.index[g * s.length + t] : t; }
  V take(const Tokens &x, int64_t at) const { return load(row<T>(x, b, at, g) + first, count); }
  int64_t out(int64_t at) const {  // in a contiguous (batch, L, G, D)
    return ((b * s.length + at) * s.groups + g) * s.channels + first;
  }
  T *state(void *kept, int64_t chunks, int64_t k, int n) const {
    return static_cast<T *>(kept) +
           (((b * chunks + k) * s.groups + g) * states() + n) * s.channels + first;
  }
  void fetch(const Out &o, int64_t at, int64_t channel) const {
    __builtin_prefetch(row<T>(s.u, b, at, g) + channel);
    __builtin_prefetch(row<T>(s.dt, b, at, g) + channel);
    if (s.z.data) __builtin_prefetch(row<T>(s.z, b, at, g) + channel);
    __builtin_prefetch(static_cast<T *>(o.y) + out(at) - first + channel, 1);
  }
  V raw(int64_t at) const { return take(s.dt, at) + bias; }
  V delta(V raw) const { return s.softplus ? softplus<T>(raw) : raw; }
};

// Steps start … stop-1 of one vector of channels, whose states lie in `kept` between chunks. What
// is read after them is fetched meanwhile: along an index no processor foresees it.
template <class T, int N>
void forward_block(const Block<T, N> &x, const Out &o, Vec<T> *kept, const Vec<T> *decay,
                   int64_t start, int64_t stop, int64_t steps_on, int64_t then) {
  typedef Vec<T> V;
  const Scan &s = x.s;
  V here[N ? N : 1];  // in registers, where there are enough
  V *const h = N ? here : kept;
  const int states = x.states();
  if (N) for (int n = 0; n < N; ++n) here[n] = kept[n];
  if (o.kept)
    for (int n = 0; n < states; ++n)
      store<T>(x.state(o.kept, (s.length + s.chunk - 1) / s.chunk, start / s.chunk, n), h[n], x.count);
  for (int64_t t = start; t < stop; ++t) {
    const int64_t at = x.where(t);
    const T *B = row<T>(s.B, x.b, at, x.g), *C = row<T>(s.C, x.b, at, x.g);
    const V u = x.take(s.u, at), d = x.delta(x.raw(at)), du = d * u;
    if (t + steps_on < s.length) x.fetch(o, x.where(t + steps_on), then);
    V sum[4] = {x.skip * u, V{}, V{}, V{}};
    each<N>(states, [&](int n) {
      h[n] = power(d * decay[n]) * h[n] + du * B[n];
      sum[n % 4] += h[n] * C[n];
    });
    V y = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    if (s.z.data) {
      const V z = x.take(s.z, at);
      y *= z * sigmoid<T>(z);
    }
    store<T>(static_cast<T *>(o.y) + x.out(at), y, x.count);
  }
  if (N) for (int n = 0; n < N; ++n) kept[n] = here[n];
}

// All vectors of a slab go through a chunk before the next: the rows of its tokens, which lie far
// apart, are then read once.
template <class T, int N>
void forward_slab(const Scan &s, const Out &o, int64_t b, int64_t g, int64_t begin, int64_t end,
                  Vec<T> *room) {
  typedef Vec<T> V;
  const int64_t states = s.states, blocks = (end - begin + kLanes<T> - 1) / kLanes<T>;
  V *const h = room, *const decay = room + blocks * states;
  for (int64_t k = 0; k < blocks * states; ++k) h[k] = V{};
  for (int64_t k = 0; k < blocks; ++k) Block<T, N>(s, b, g, begin + k * kLanes<T>, decay + k * states);
  for (int64_t start = 0; start < s.length; start += s.chunk) {
    const int64_t stop = start + s.chunk < s.length ? start + s.chunk : s.length;
    for (int64_t k = 0; k < blocks; ++k) {
      const bool last = k + 1 == blocks;
      const int64_t first = begin + k * kLanes<T>, then = last ? begin : first + kLanes<T>;
      const Block<T, N> x(s, b, g, first, nullptr);
      forward_block<T, N>(x, o, h + k * states, decay + k * states, start, stop, last ? s.chunk : 0, then);
    }
  }
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t first = begin + k * kLanes<T>;
    const int count = end - first < kLanes<T> ? int(end - first) : kLanes<T>;
    T *last = static_cast<T *>(o.last) + ((b * s.groups + g) * s.channels + first) * states;
    for (int64_t n = 0; n < states; ++n)
      for (int lane = 0; lane < count; ++lane) last[lane * states + n] = h[k * states + n][lane];
  }
}

// What the backward keeps of a chunk and of the channels of a slab.
template <class T> struct Room {
  typedef Vec<T> V;
  V *sumB, *sumC, *decays, *before, *u, *delta, *carry, *dA, *dD, *dbias, *decay;
  static int64_t size(int64_t states, int64_t chunk, int64_t blocks) {
    return (4 * chunk + 1 + 2 * blocks + 1) * states + 2 * chunk + 2 * blocks;
  }
  Room(V *from, int64_t states, int64_t chunk, int64_t blocks) {
    auto next = [&from](int64_t count) { V *at = from; from += count; return at; };
    sumB = next(chunk * states), sumC = next(chunk * states), decays = next(chunk * states);
    before = next((chunk + 1) * states), carry = next(blocks * states), dA = next(blocks * states);
    decay = next(states), u = next(chunk), delta = next(chunk);
    dD = next(blocks), dbias = next(blocks);
  }
};

// Steps start … stop-1 of one vector of channels: its states again, then back through them.
template <class T, int N>
void backward_block(const Block<T, N> &x, const Back &o, const Room<T> &r, int64_t start,
                    int64_t stop, int64_t block) {
  typedef Vec<T> V;
  const Scan &s = x.s;
  const int states = x.states();
  const int64_t chunks = (s.length + s.chunk - 1) / s.chunk;
  for (int n = 0; n < states; ++n)
    r.before[n] = load<T>(x.state(const_cast<void *>(o.kept), chunks, start / s.chunk, n), x.count);
  for (int64_t t = start; t < stop; ++t) {
    const int64_t k = t - start, at = x.where(t);
    const T *B = row<T>(s.B, x.b, at, x.g);
    const V u = r.u[k] = x.take(s.u, at), d = r.delta[k] = x.delta(x.raw(at)), du = d * u;
    V *a = r.decays + k * states, *h = r.before + k * states;
    each<N>(states, [&](int n) {
      a[n] = power(d * r.decay[n]);
      h[n + states] = a[n] * h[n] + du * B[n];
    });
  }
  V dD = r.dD[block], dbias = r.dbias[block];
  V carried[N ? N : 1];  // in registers, where there are enough
  V *const carry = N ? carried : r.carry + block * states, *const dA = r.dA + block * states;
  if (N) for (int n = 0; n < N; ++n) carried[n] = r.carry[block * N + n];
  for (int64_t t = stop; t-- > start;) {
    const int64_t k = t - start, at = x.where(t);
    const T *B = row<T>(s.B, x.b, at, x.g), *C = row<T>(s.C, x.b, at, x.g);
    const V u = r.u[k], d = r.delta[k], du = d * u;
    const V *a = r.decays + k * states, *h = r.before + k * states;
    V *sumB = r.sumB + k * states, *sumC = r.sumC + k * states;
    const V grad = load(static_cast<const T *>(o.grad) + x.out(at), x.count);
    V gy = grad, z{}, gate{};
    if (s.z.data) {
      z = x.take(s.z, at);
      gate = sigmoid<T>(z);
      gy = grad * z * gate;
    }
    V y[2] = {x.skip * u, V{}}, gb[2] = {V{}, V{}}, ga[2] = {V{}, V{}};
    each<N>(states, [&](int n) {
      const V G = carry[n] + gy * C[n], now = h[n + states];
      sumC[n] += gy * now;
      sumB[n] += du * G;
      y[n % 2] += now * C[n];
      gb[n % 2] += G * B[n];
      carry[n] = a[n] * G;
      const V w = carry[n] * h[n];
      ga[n % 2] += w * r.decay[n];
      dA[n] += w * d;
    });
    const V GB = gb[0] + gb[1];
    V ddt = GB * u + (ga[0] + ga[1]) * (T(1) / kLog<T>);
    if (s.softplus) {
      const V raw = x.raw(at);
      ddt = raw > T(20) ? ddt : ddt * sigmoid<T>(raw);
    }
    dD += gy * u;
    dbias += ddt;
    store<T>(static_cast<T *>(o.du) + x.out(at), GB * d + x.skip * gy, x.count);
    store<T>(static_cast<T *>(o.ddt) + x.out(at), ddt, x.count);
    if (s.z.data)
      store<T>(static_cast<T *>(o.dz) + x.out(at), grad * (y[0] + y[1]) * gate * (T(1) + z * (T(1) - gate)), x.count);
  }
  if (N) for (int n = 0; n < N; ++n) r.carry[block * N + n] = carried[n];
  r.dD[block] = dD, r.dbias[block] = dbias;
}

template <class T, int N>
void backward_slab(const Scan &s, const Back &o, int64_t b, int64_t g, int64_t slab, Vec<T> *room) {
  const int64_t begin = slab * o.slab, end = begin + o.slab < s.channels ? begin + o.slab : s.channels;
  const int64_t blocks = (end - begin + kLanes<T> - 1) / kLanes<T>, states = s.states;
  const Room<T> r(room, states, s.chunk, blocks);
  for (int64_t k = 0; k < blocks * states; ++k) r.carry[k] = r.dA[k] = Vec<T>{};
  for (int64_t k = 0; k < blocks; ++k) r.dD[k] = r.dbias[k] = Vec<T>{};
  for (int64_t start = (s.length - 1) / s.chunk * s.chunk; start >= 0; start -= s.chunk) {
    const int64_t stop = start + s.chunk < s.length ? start + s.chunk : s.length;
    for (int64_t k = 0; k < s.chunk * states; ++k) r.sumB[k] = r.sumC[k] = Vec<T>{};
    for (int64_t k = 0; k < blocks; ++k)
      backward_block<T, N>(Block<T, N>(s, b, g, begin + k * kLanes<T>, r.decay), o, r, start, stop, k);
    for (int64_t t = start; t < stop; ++t) {
      const int64_t at = s.index ? s.index[g * s.length + t] : t;
      const int64_t out = (((slab * s.batch + b) * s.length + at) * s.groups + g) * states;
      for (int64_t n = 0; n < states; ++n) {
        static_cast<T *>(o.dB)[out + n] = total<T>(r.sumB[(t - start) * states + n]);
        static_cast<T *>(o.dC)[out + n] = total<T>(r.sumC[(t - start) * states + n]);
      }
    }
  }
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t first = begin + k * kLanes<T>, at = (b * s.groups + g) * s.channels + first;
    const int count = end - first < kLanes<T> ? int(end - first) : kLanes<T>;
    store<T>(static_cast<T *>(o.dD) + at, r.dD[k], count);
    store<T>(static_cast<T *>(o.dbias) + at, r.dbias[k], count);
    T *dA = static_cast<T *>(o.dA) + at * states;
    for (int lane = 0; lane < count; ++lane)
      for (int64_t n = 0; n < states; ++n) dA[lane * states + n] = r.dA[k * states + n][lane];
  }
}

template <class T, int N> void forward(const Scan &s, const Out &o) {
  const int64_t blocks = (s.channels + kLanes<T> - 1) / kLanes<T>, scans = s.batch * s.groups;
  int64_t parts = 1;  // of the channels: as few as keep the workers busy
  while (parts < blocks && (scans * parts < 2 * s.workers || blocks / parts > 32)) parts *= 2;
  const int64_t share_of = (blocks + parts - 1) / parts, slab = share_of * kLanes<T>;
  const int64_t slabs = (s.channels + slab - 1) / slab;
  const Scratch<T> room(s.workers, 2 * share_of * s.states);
  share(scans * slabs, s.workers, [&](int64_t task, int worker) {
    const int64_t of = task / slabs, begin = task % slabs * slab;
    const int64_t end = begin + slab < s.channels ? begin + slab : s.channels;
    forward_slab<T, N>(s, o, of / s.groups, of % s.groups, begin, end, room.of(worker));
  });
}

template <class T, int N> void backward(const Scan &s, const Back &o) {
  const int64_t slabs = (s.channels + o.slab - 1) / o.slab;
  const int64_t blocks = (o.slab + kLanes<T> - 1) / kLanes<T>;
  const Scratch<T> room(s.workers, Room<T>::size(s.states, s.chunk, blocks));
  share(s.batch * s.groups * slabs, s.workers, [&](int64_t task, int worker) {
    const int64_t of = task / slabs;
    backward_slab<T, N>(s, o, of / s.groups, of % s.groups, task % slabs, room.of(worker));
  });
}

template <class T> void any_forward(const Scan &s, const Out &o) {
  sizeof(T) == 4 && s.states == 16 ? forward<T, sizeof(T) == 4 ? 16 : 0>(s, o) : forward<T, 0>(s, o);
}
template <class T> void any_backward(const Scan &s, const Back &o) {
  sizeof(T) == 4 && s.states == 16 ? backward<T, sizeof(T) == 4 ? 16 : 0>(s, o) : backward<T, 0>(s, o);
}

}  // namespace

extern "C" int scan_forward_float(const Scan *s, const Out *o) {
  return guarded([=] { any_forward<float>(*s, *o); });
}
extern "C" int scan_forward_double(const Scan *s, const Out *o) {
  return guarded([=] { any_forward<double>(*s, *o); });
}
extern "C" int scan_backward_float(const Scan *s, const Back *o) {
  return guarded([=] { any_backward<float>(*s, *o); });
}
extern "C" int scan_backward_double(const Scan *s, const Back *o) {
  return guarded([=] { any_backward<double>(*s, *o); });
}
