// As much of CUDA C++ as the kernels use, for a C++17 compiler, to run them where there is no GPU.
// The blocks of a grid run one after another; each thread of a block is a fiber of its own, and
// runs until it comes to a barrier. A shuffle is a barrier of its warp with a value. No two threads
// run at once, so a race shows only where a thread reads what one after it writes: therefore warps
// run alone as far as they can, and threads from the first to the last and from the last to the
// first in turns. A thread that returns while others wait is found always.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static dim3 threadIdx, blockIdx, blockDim, gridDim;

// ---- fibers

namespace cuda_on_cpu {

enum State { kRuns, kDone, kBlockBarrier, kWarpBarrier, kShuffle };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(128 << 10);
  State state;
  int shuffles;         // so far
  unsigned long long values[2];   // given to the last two shuffles: a warp is never further apart
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static void (*body)(const void *);
static const void *argument;
static unsigned current;

static void wait(State state) {
  fibers[current].state = state;
  swapcontext(&fibers[current].context, &scheduler);
}

static void start() {
  body(argument);
  fibers[current].state = kDone;  // uc_link leads back to the scheduler
}

// Whether threads from ... to all wait for the same; they then go on.
static bool released(unsigned from, unsigned to, bool block) {
  const State state = fibers[from].state;
  if (block ? state != kBlockBarrier : state != kWarpBarrier && state != kShuffle) return false;
  for (unsigned k = from; k < to; ++k)
    if (fibers[k].state != state) return false;
  for (unsigned k = from; k < to; ++k) fibers[k].state = kRuns;
  return true;
}

// A warp runs to the next barrier of the block, or as far as it comes.
static void run_warp(unsigned first, bool backwards) {
  do {
    for (unsigned k = 0; k < 32; ++k) {
      current = first + (backwards ? 31 - k : k);
      threadIdx.x = current;
      if (fibers[current].state == kRuns) swapcontext(&scheduler, &fibers[current].context);
    }
  } while (released(first, first + 32, false));
}

// 0, or 1 when threads wait for some that never come.
static int run_block(unsigned threads) {
  for (unsigned k = 0; k < threads; ++k) {
    Fiber &fiber = fibers[k];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    fiber.state = kRuns;
    fiber.shuffles = 0;
    makecontext(&fiber.context, start, 0);
  }
  unsigned turn = blockIdx.x;
  do {
    const bool backwards = turn++ % 2;
    for (unsigned k = 0; k < threads; k += 32)
      run_warp(backwards ? threads - 32 - k : k, backwards);
  } while (released(0, threads, true));
  for (unsigned k = 0; k < threads; ++k)
    if (fibers[k].state != kDone) return 1;
  return 0;
}

// Runs a kernel: blocks and threads along one axis, whole warps. 0, or 1 for a barrier that not all
// of its threads come to.
static int launch(unsigned blocks, unsigned threads, void (*kernel)(const void *),
                  const void *given) {
  if (threads % 32) return 1;
  if (fibers.size() < threads) fibers.resize(threads);
  body = kernel, argument = given;
  gridDim.x = blocks, blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    if (run_block(threads)) return 1;
  return 0;
}

template <class T> T shuffled(T value, unsigned from) {
  static_assert(sizeof(T) <= 8, "one word");
  const unsigned self = current, slot = fibers[self].shuffles++ % 2;
  std::memcpy(&fibers[self].values[slot], &value, sizeof value);
  wait(kShuffle);
  T found;
  std::memcpy(&found, &fibers[self / 32 * 32 + from % 32].values[slot], sizeof found);
  return found;
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::kBlockBarrier); }
inline void __syncwarp(unsigned = ~0u) { cuda_on_cpu::wait(cuda_on_cpu::kWarpBarrier); }
template <class T> T __shfl_sync(unsigned, T x, int lane) { return cuda_on_cpu::shuffled(x, lane); }
template <class T> T __shfl_xor_sync(unsigned, T x, int mask) {
  return cuda_on_cpu::shuffled(x, (threadIdx.x % 32) ^ mask);
}
template <class T> T __shfl_down_sync(unsigned, T x, int far) {
  const unsigned lane = threadIdx.x % 32;
  return cuda_on_cpu::shuffled(x, lane + far < 32 ? lane + far : lane);
}

// ---- numbers

inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// What the kernels say in the machine's instructions.
inline float exp2_of(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.f : y;  // which flush denormal numbers; NaN stays
}
inline float reciprocal(float x) { return 1.f / x; }
inline long long kept_as_is(long long x) { return x; }

#if KIND == 1
inline unsigned short narrow(float x) {  // to nearest, ties to even
  const unsigned bits = __float_as_uint(x);
  return std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#elif KIND == 2
inline float wide(unsigned short x) {
  const int exponent = x >> 10 & 31, digits = x & 1023;
  const float size = exponent == 31 ? (digits ? NAN : INFINITY)
                     : exponent     ? std::ldexp(1024.f + digits, exponent - 25)
                                    : std::ldexp(float(digits), -24);
  return x >> 15 ? -size : size;
}
inline unsigned short narrow(float x) {
  const unsigned short sign = __float_as_uint(x) >> 31 << 15;
  const float size = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  // Rounding up to the next power of two carries into the exponent, as it should.
  const int digits = int(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return sign | (((exponent + 14) << 10) + digits);
}
#endif
