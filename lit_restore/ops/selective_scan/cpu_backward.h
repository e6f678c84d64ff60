// The selective scan on the CPU, backwards from the states kept between chunks.
#pragma once
#include "cpu_common.h"

namespace {

// What the backward keeps of a chunk, and of the channels of a slab.
template <class T> struct Room {
  typedef Vec<T> V;
  struct Step { V u, delta, slope, gy, gate, y, gb, ga; };
  V *sumB, *sumC, *decays, *before, *carry, *dA, *dD, *dbias, *decay;
  Step *steps;
  static int64_t size(int64_t states, int64_t chunk, int64_t blocks) {
    return (2 * chunk + 3 * blocks) * states + (2 * chunk + 1) * kAtOnce + 2 * blocks +
           chunk * int64_t(sizeof(Step) / sizeof(V));
  }
  Room(V *from, int64_t states, int64_t chunk, int64_t blocks) {
    auto next = [&from](int64_t count) { V *at = from; from += count; return at; };
    sumB = next(chunk * states), sumC = next(chunk * states);
    decays = next(chunk * kAtOnce), before = next((chunk + 1) * kAtOnce);
    carry = next(blocks * states), dA = next(blocks * states), decay = next(blocks * states);
    dD = next(blocks), dbias = next(blocks);
    steps = reinterpret_cast<Step *>(from);
  }
};

// P states from `first` on: forwards again, then back.
template <class T, int P>
void backward_states(const Chunk<T> &c, const Back &o, const Room<T> &r, int first) {
  typedef Vec<T> V;
  const Block<T> &x = c.x;
  const Scan &s = x.s;
  const int64_t states = s.states, chunks = (s.length + s.chunk - 1) / s.chunk;
  const int64_t of = c.block * states + first;
  V h[P], decay[P];
  for (int n = 0; n < P; ++n) {
    h[n] = load<T>(x.state(const_cast<void *>(o.kept), chunks, c.start / s.chunk, first + n), x.count);
    r.before[n] = h[n];
    decay[n] = r.decay[of + n];
  }
  for (int64_t t = c.start; t < c.stop; ++t) {
    const int64_t k = t - c.start, at = x.where(t);
    const T *B = row<T>(s.B, x.b, at, x.g) + first, *C = row<T>(s.C, x.b, at, x.g) + first;
    auto &step = r.steps[k];
    const V d = step.delta, du = d * step.u;
    V *a = r.decays + k * P, *later = r.before + (k + 1) * P, y = step.y;
    if (first == 0) c.fetch(o, t);
    each<P>([&](int n) {
      const V decayed = power(d * decay[n]);
      h[n] = decayed * h[n] + du * B[n];
      a[n] = decayed;
      later[n] = h[n];
      y += h[n] * C[n];
    });
    step.y = y;
  }
  V carry[P], dA[P];
  for (int n = 0; n < P; ++n) carry[n] = r.carry[of + n], dA[n] = r.dA[of + n];
  for (int64_t t = c.stop; t-- > c.start;) {
    const int64_t k = t - c.start, at = x.where(t);
    const T *B = row<T>(s.B, x.b, at, x.g) + first, *C = row<T>(s.C, x.b, at, x.g) + first;
    auto &step = r.steps[k];
    const V *a = r.decays + k * P, *h = r.before + k * P;
    V *sumB = r.sumB + k * states + first, *sumC = r.sumC + k * states + first;
    const V d = step.delta, gy = step.gy, du = d * step.u;
    V gb = step.gb, ga = step.ga;
    each<P>([&](int n) {
      const V G = carry[n] + gy * C[n];
      gb += G * B[n];
      sumC[n] += gy * h[n + P];
      sumB[n] += du * G;
      carry[n] = a[n] * G;
      const V w = carry[n] * h[n];
      ga += w * decay[n];
      dA[n] += w * d;
    });
    step.gb = gb, step.ga = ga;
  }
  for (int n = 0; n < P; ++n) r.carry[of + n] = carry[n], r.dA[of + n] = dA[n];
}

template <class T> void backward_block(const Chunk<T> &c, const Back &o, const Room<T> &r) {
  typedef Vec<T> V;
  const Block<T> &x = c.x;
  const Scan &s = x.s;
  V dD = r.dD[c.block], dbias = r.dbias[c.block];
  for (int64_t t = c.start; t < c.stop; ++t) {
    const int64_t at = x.where(t);
    const V u = x.take(s.u, at), raw = x.raw(at), one = splat(T(1));
    const V grad = load(static_cast<const T *>(o.grad) + x.out(at), x.count);
    V gy = grad, gate{}, slope = one;
    if (s.z.data) {
      const V z = x.take(s.z, at), open = sigmoid<T>(z);
      gy *= z * open;
      gate = grad * open * (one + z * (one - open));
    }
    if (s.softplus) slope = raw > T(20) ? one : sigmoid<T>(raw);
    dD += gy * u;
    r.steps[t - c.start] = {u, x.delta(raw), slope, gy, gate, x.skip * u, V{}, V{}};
  }
  int first = 0;
  for (; first + kAtOnce <= s.states; first += kAtOnce) backward_states<T, kAtOnce>(c, o, r, first);
  for (; first < s.states; ++first) backward_states<T, 1>(c, o, r, first);
  for (int64_t t = c.start; t < c.stop; ++t) {
    const auto &step = r.steps[t - c.start];
    const int64_t at = x.out(x.where(t));
    const V ddt = (step.gb * step.u + step.ga * (T(1) / kLog<T>)) * step.slope;
    dbias += ddt;
    store<T>(static_cast<T *>(o.du) + at, step.gb * step.delta + x.skip * step.gy, x.count);
    store<T>(static_cast<T *>(o.ddt) + at, ddt, x.count);
    if (s.z.data) store<T>(static_cast<T *>(o.dz) + at, step.gate * step.y, x.count);
  }
  r.dD[c.block] = dD, r.dbias[c.block] = dbias;
}

template <class T>
void backward_slab(const Scan &s, const Back &o, int64_t b, int64_t g, int64_t slab, Vec<T> *room) {
  const int64_t begin = slab * o.slab, end = begin + o.slab < s.channels ? begin + o.slab : s.channels;
  const int64_t blocks = (end - begin + kLanes<T> - 1) / kLanes<T>, states = s.states;
  const Room<T> r(room, states, s.chunk, blocks);
  for (int64_t k = 0; k < blocks * states; ++k) r.carry[k] = r.dA[k] = Vec<T>{};
  for (int64_t k = 0; k < blocks; ++k) r.dD[k] = r.dbias[k] = Vec<T>{};
  for (int64_t k = 0; k < blocks; ++k) Block<T>(s, b, g, begin + k * kLanes<T>, r.decay + k * states);
  for (int64_t start = (s.length - 1) / s.chunk * s.chunk; start >= 0; start -= s.chunk) {
    const int64_t stop = start + s.chunk < s.length ? start + s.chunk : s.length;
    for (int64_t k = 0; k < s.chunk * states; ++k) r.sumB[k] = r.sumC[k] = Vec<T>{};
    for (int64_t k = 0; k < blocks; ++k) {
      const bool last = k + 1 == blocks;
      const int64_t first = begin + k * kLanes<T>, then = last ? begin : first + kLanes<T>;
      const Block<T> x(s, b, g, first, nullptr);
      backward_block<T>({x, start, stop, k, last ? -s.chunk : 0, then}, o, r);
    }
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

template <class T> void backward(const Scan &s, const Back &o) {
  const int64_t slabs = (s.channels + o.slab - 1) / o.slab;
  const int64_t blocks = (o.slab + kLanes<T> - 1) / kLanes<T>;
  const Scratch<T> room(s.workers, Room<T>::size(s.states, s.chunk, blocks));
  share(s.batch * s.groups * slabs, s.workers, [&](int64_t task, int worker) {
    const int64_t of = task / slabs;
    backward_slab<T>(s, o, of / s.groups, of % s.groups, task % slabs, room.of(worker));
  });
}

}  // namespace
