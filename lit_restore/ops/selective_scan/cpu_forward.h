// The selective scan on the CPU, forwards.
#pragma once
#include "cpu_common.h"

namespace {

template <class T> struct ForwardStep { Vec<T> u, delta, y; };

// P states from `first` on, which lie in `kept` between chunks.
template <class T, int P>
void forward_states(const Chunk<T> &c, const Out &o, ForwardStep<T> *steps, Vec<T> *kept,
                    const Vec<T> *decays, int first) {
  typedef Vec<T> V;
  const Block<T> &x = c.x;
  const Scan &s = x.s;
  V h[P], decay[P];
  for (int n = 0; n < P; ++n) {
    h[n] = kept[first + n], decay[n] = decays[first + n];
    if (o.kept)
      store<T>(x.state(o.kept, (s.length + s.chunk - 1) / s.chunk, c.start / s.chunk, first + n), h[n], x.count);
  }
  for (int64_t t = c.start; t < c.stop; ++t) {
    const int64_t at = x.where(t);
    const T *B = row<T>(s.B, x.b, at, x.g) + first, *C = row<T>(s.C, x.b, at, x.g) + first;
    auto &step = steps[t - c.start];
    const V d = step.delta, du = d * step.u;
    V y[2] = {step.y, V{}};
    if (first == 0) c.fetch(o, t);
    each<P>([&](int n) {
      h[n] = power(d * decay[n]) * h[n] + du * B[n];
      y[n % 2] += h[n] * C[n];
    });
    step.y = y[0] + y[1];
  }
  for (int n = 0; n < P; ++n) kept[first + n] = h[n];
}

template <class T>
void forward_block(const Chunk<T> &c, const Out &o, ForwardStep<T> *steps, Vec<T> *kept,
                   const Vec<T> *decays) {
  typedef Vec<T> V;
  const Block<T> &x = c.x;
  const Scan &s = x.s;
  for (int64_t t = c.start; t < c.stop; ++t) {
    const int64_t at = x.where(t);
    const V u = x.take(s.u, at);
    steps[t - c.start] = {u, x.delta(x.raw(at)), x.skip * u};
  }
  int first = 0;
  for (; first + kAtOnce <= s.states; first += kAtOnce)
    forward_states<T, kAtOnce>(c, o, steps, kept, decays, first);
  for (; first < s.states; ++first) forward_states<T, 1>(c, o, steps, kept, decays, first);
  for (int64_t t = c.start; t < c.stop; ++t) {
    const int64_t at = x.where(t);
    V y = steps[t - c.start].y;
    if (s.z.data) {
      const V z = x.take(s.z, at);
      y *= z * sigmoid<T>(z);
    }
    store<T>(static_cast<T *>(o.y) + x.out(at), y, x.count);
  }
}

// All vectors of a slab go through a chunk before the next: the rows of its tokens, which lie far
// apart, are then read once.
template <class T>
void forward_slab(const Scan &s, const Out &o, int64_t b, int64_t g, int64_t begin, int64_t end,
                  Vec<T> *room) {
  typedef Vec<T> V;
  const int64_t states = s.states, blocks = (end - begin + kLanes<T> - 1) / kLanes<T>;
  V *const h = room, *const decay = room + blocks * states;
  auto *const steps = reinterpret_cast<ForwardStep<T> *>(decay + blocks * states);
  for (int64_t k = 0; k < blocks * states; ++k) h[k] = V{};
  for (int64_t k = 0; k < blocks; ++k) Block<T>(s, b, g, begin + k * kLanes<T>, decay + k * states);
  for (int64_t start = 0; start < s.length; start += s.chunk) {
    const int64_t stop = start + s.chunk < s.length ? start + s.chunk : s.length;
    for (int64_t k = 0; k < blocks; ++k) {
      const bool last = k + 1 == blocks;
      const int64_t first = begin + k * kLanes<T>, then = last ? begin : first + kLanes<T>;
      const Block<T> x(s, b, g, first, nullptr);
      forward_block<T>({x, start, stop, k, last ? s.chunk : 0, then}, o, steps, h + k * states,
                       decay + k * states);
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

template <class T> void forward(const Scan &s, const Out &o) {
  const int64_t blocks = (s.channels + kLanes<T> - 1) / kLanes<T>, scans = s.batch * s.groups;
  int64_t parts = 1;  // of the channels: as few as keep the workers busy
  while (parts < blocks && (scans * parts < 2 * s.workers || blocks / parts > 32)) parts *= 2;
  const int64_t share_of = (blocks + parts - 1) / parts, slab = share_of * kLanes<T>;
  const int64_t slabs = (s.channels + slab - 1) / slab;
  const Scratch<T> room(s.workers, 2 * share_of * s.states + 3 * s.chunk);
  share(scans * slabs, s.workers, [&](int64_t task, int worker) {
    const int64_t of = task / slabs, begin = task % slabs * slab;
    const int64_t end = begin + slab < s.channels ? begin + slab : s.channels;
    forward_slab<T>(s, o, of / s.groups, of % s.groups, begin, end, room.of(worker));
  });
}

}  // namespace
