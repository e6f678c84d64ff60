// The causal convolution on the CPU, a vector of channels at a time. The formulas are those of
// reference.py. cpu.py calls it.
#include "native.h"

struct Conv {
  const void *x;             // (batch, L, G, D), neighbours along D; the strides of the rest follow
  int64_t x_batch, x_step, x_group;
  const void *weight, *bias;  // (G, D, K) and (G, D), contiguous; bias or null
  const int64_t *index;       // (G, L) or null
  int64_t batch, length, groups, channels, taps;
  int32_t silu, workers;
};

struct Back {
  const void *grad;                // contiguous, as y
  void *dx, *dweight, *dbias;      // as y; (batch, G, D, K); (batch, G, D)
};

namespace {

// One vector of channels of one group and one batch row.
template <class T> struct Block {
  typedef Vec<T> V;
  const Conv &c;
  int64_t b, g, first;
  int count;
  const V *weight;  // tap j from the present
  V bias;

  Block(const Conv &c, int64_t task, int64_t blocks, V *room) : c(c), weight(room) {
    const int64_t of = task / blocks;
    b = of / c.groups, g = of % c.groups, first = task % blocks * kLanes<T>;
    const int64_t left = c.channels - first;
    count = left < kLanes<T> ? int(left) : kLanes<T>;
    const int64_t at = g * c.channels + first;
    bias = c.bias ? load(static_cast<const T *>(c.bias) + at, count) : V{};
    const T *w = static_cast<const T *>(c.weight) + at * c.taps;
    for (int64_t j = 0; j < c.taps; ++j) {
      room[j] = V{};
      for (int k = 0; k < count; ++k) room[j][k] = w[k * c.taps + c.taps - 1 - j];
    }
  }

  int64_t where(int64_t t) const { return c.index ? c.index[g * c.length + t] : t; }
  int64_t out(int64_t t) const {
    return ((b * c.length + where(t)) * c.groups + g) * c.channels + first;
  }
  V input(int64_t t) const {
    return load(static_cast<const T *>(c.x) + b * c.x_batch + where(t) * c.x_step + g * c.x_group + first, count);
  }
  V preactivation(int64_t t) const {
    V sum = bias;
    for (int64_t j = 0; j < c.taps && j <= t; ++j) sum += weight[j] * input(t - j);
    return sum;
  }
};

int64_t blocks_of(const Conv &c, int lanes) { return (c.channels + lanes - 1) / lanes; }

template <class T> void forward(const Conv &c, T *y) {
  const int64_t blocks = blocks_of(c, kLanes<T>);
  const Scratch<T> room(c.workers, c.taps);
  share(c.batch * c.groups * blocks, c.workers, [&](int64_t task, int worker) {
    const Block<T> x(c, task, blocks, room.of(worker));
    for (int64_t t = 0; t < c.length; ++t) {
      Vec<T> p = x.preactivation(t);
      if (c.silu) p *= sigmoid<T>(p);
      store<T>(y + x.out(t), p, x.count);
    }
  });
}

template <class T> void backward_block(const Block<T> &x, const Back &o, Vec<T> *room, int64_t task, int64_t blocks) {
  typedef Vec<T> V;
  const Conv &c = x.c;
  const int64_t taps = c.taps;
  V *const dweight = room, *const later = room + taps;  // later[t % taps]: gradient before the activation
  V dbias{};
  for (int64_t j = 0; j < taps; ++j) dweight[j] = later[j] = V{};
  // Step s of x is in the outputs of steps s … s + taps - 1: its gradient comes with the last.
  for (int64_t t = 0; t < c.length + taps - 1; ++t) {
    V g{};
    if (t < c.length) {
      g = load(static_cast<const T *>(o.grad) + x.out(t), x.count);
      if (c.silu) {
        const V p = x.preactivation(t), gate = sigmoid<T>(p);
        g *= gate * (T(1) + p * (T(1) - gate));
      }
      dbias += g;
      for (int64_t j = 0; j < taps && j <= t; ++j) dweight[j] += g * x.input(t - j);
    }
    later[t % taps] = g;
    const int64_t s = t - taps + 1;
    if (s < 0) continue;
    V dx{};
    for (int64_t j = 0; j < taps; ++j) dx += x.weight[j] * later[(s + j) % taps];
    store<T>(static_cast<T *>(o.dx) + x.out(s), dx, x.count);
  }
  const int64_t at = task / blocks * c.channels + x.first;
  store<T>(static_cast<T *>(o.dbias) + at, dbias, x.count);
  T *out = static_cast<T *>(o.dweight) + at * taps;
  for (int k = 0; k < x.count; ++k)
    for (int64_t j = 0; j < taps; ++j) out[k * taps + taps - 1 - j] = dweight[j][k];
}

template <class T> void backward(const Conv &c, const Back &o) {
  const int64_t blocks = blocks_of(c, kLanes<T>);
  const Scratch<T> room(c.workers, 3 * c.taps);
  share(c.batch * c.groups * blocks, c.workers, [&](int64_t task, int worker) {
    const Block<T> x(c, task, blocks, room.of(worker));
    backward_block<T>(x, o, room.of(worker) + c.taps, task, blocks);
  });
}

}  // namespace

extern "C" int conv_forward_float(const Conv *c, void *y) {
  return guarded([=] { forward<float>(*c, static_cast<float *>(y)); });
}
extern "C" int conv_forward_double(const Conv *c, void *y) {
  return guarded([=] { forward<double>(*c, static_cast<double *>(y)); });
}
extern "C" int conv_backward_float(const Conv *c, const Back *o) {
  return guarded([=] { backward<float>(*c, *o); });
}
extern "C" int conv_backward_double(const Conv *c, const Back *o) {
  return guarded([=] { backward<double>(*c, *o); });
}
