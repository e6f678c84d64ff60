// Vectors, a few functions of them, and a team of threads, for the C++ kernels of `ops`.
// Plain C++17 with the vector extension of GCC and Clang: any CPU, and no intrinsics but in `exp2_of`.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <new>
#include <thread>
#include <vector>
#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T> struct Lanes;
template <> struct Lanes<float> {
  typedef float V __attribute__((vector_size(kBytes)));
  typedef int32_t I __attribute__((vector_size(kBytes)));
};
template <> struct Lanes<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef int64_t I __attribute__((vector_size(kBytes)));
};
template <class T> using Vec = typename Lanes<T>::V;
template <class T> constexpr int kLanes = kBytes / sizeof(T);

template <class T> inline Vec<T> splat(T x) { return Vec<T>{} + x; }

// `count` lanes from memory, the rest zero; `count` back to memory. Ragged ends are rare: they are
// calls, which keeps the rest small and quick to compile.
template <class T> __attribute__((noinline, cold)) Vec<T> load_some(const T *from, int count) {
  Vec<T> x{};
  for (int k = 0; k < count; ++k) x[k] = from[k];
  return x;
}
template <class T> __attribute__((noinline, cold)) void store_some(T *to, Vec<T> x, int count) {
  for (int k = 0; k < count; ++k) to[k] = x[k];
}
template <class T> inline Vec<T> load(const T *from, int count) {
  if (count != kLanes<T>) return load_some(from, count);
  Vec<T> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
template <class T> inline void store(T *to, Vec<T> x, int count) {
  if (count != kLanes<T>) return store_some(to, x, count);
  __builtin_memcpy(to, &x, sizeof x);
}

// The sum of the lanes, always in the same order: halves onto halves.
template <class T, int Bytes = kBytes> inline T total(const T *lanes) {
  constexpr int kHalf = Bytes / 2 / sizeof(T);
  typedef T Half __attribute__((vector_size(Bytes / 2)));
  Half low, high;
  __builtin_memcpy(&low, lanes, sizeof low);
  __builtin_memcpy(&high, lanes + kHalf, sizeof high);
  low += high;
  if constexpr (kHalf == 1) return low[0];
  else return total<T, Bytes / 2>(reinterpret_cast<const T *>(&low));
}
template <class T> inline T total(Vec<T> x) { return total<T>(reinterpret_cast<const T *>(&x)); }

// 2^r for |r| <= 1/2: minimax of relative error with constant term 1 (9.1e-8).
inline Vec<float> exp2_near_zero(Vec<float> r) {
  Vec<float> p = splat(1.326472725e-03f);
  p = p * r + 9.671512688e-03f;
  p = p * r + 5.550733744e-02f;
  p = p * r + 2.402224208e-01f;
  p = p * r + 6.931469776e-01f;
  return p * r + 1.f;
}

// 2^x for x = k + r with |r| <= 1/2. Zero below -126.5 or gradually, infinity from 127.5 or 128 on;
// NaN stays NaN.
inline Vec<float> exp2_of(Vec<float> x) {
#ifdef __AVX512DQ__
  // Three instructions of this set alone halve it: x - k (0 for an infinite x), k, and p 2^k.
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 k = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_near_zero(r), k);
#else
  // Rounding by the addition of 1.5 * 2^23, whose low bits are then k, its own vanishing in the
  // shift. A comparison with NaN is false.
  typedef Lanes<float>::I I;
  const Vec<float> low = splat(-127.f), high = splat(128.f), magic = splat(12582912.f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec<float> rounded = x + magic;
  return exp2_near_zero(x - (rounded - magic)) * (Vec<float>)(((I)rounded + 127) << 23);
#endif
}

// exp in base 2 for float, base e for double: what A is to be multiplied by to get there.
template <class T> constexpr T kLog = 1;
template <> constexpr float kLog<float> = 1.44269504088896f;
inline Vec<float> power(Vec<float> x) { return exp2_of(x); }
[[maybe_unused]] __attribute__((noinline)) static Vec<double> power(Vec<double> x) {
  for (int k = 0; k < kLanes<double>; ++k) x[k] = std::exp(x[k]);
  return x;
}

template <class T> inline Vec<T> sigmoid(Vec<T> x) { return T(1) / (T(1) + power(-x * kLog<T>)); }

// log(1 + v) for 0 <= v <= 1, to the last bits also of a small v: 2 artanh(v / (2 + v)), whose
// series in s^2 <= 1/9 is cut by a minimax fit (4.5e-9).
inline Vec<float> log1p_of(Vec<float> v) {
  const Vec<float> s = v / (v + 2.f), q = s * s;
  Vec<float> p = splat(1.400599426e-01f);
  p = p * q + 1.400090248e-01f;
  p = p * q + 2.001076363e-01f;
  p = p * q + 3.333320814e-01f;
  return 2.f * (s + s * (p * q));
}
[[maybe_unused]] __attribute__((noinline)) static Vec<double> log1p_of(Vec<double> v) {
  for (int k = 0; k < kLanes<double>; ++k) v[k] = std::log1p(v[k]);
  return v;
}

// log(1 + e^x); x itself above 20, as PyTorch has it.
template <class T> inline Vec<T> softplus(Vec<T> x) {
  const Vec<T> zero{};
  const Vec<T> top = x > zero ? x : zero;
  const Vec<T> soft = top + log1p_of(power((x > zero ? -x : x) * kLog<T>));
  return x > T(20) ? x : soft;
}

// f(task, worker) for every task, by up to `workers` threads. They are made for the call and end
// with it: a pool would not survive a fork, and DataLoaders fork.
template <class F> void share(int64_t tasks, int workers, F f) {
  std::atomic<int64_t> next{0};
  auto work = [&](int worker) {
    for (int64_t task; (task = next++) < tasks;) f(task, worker);
  };
  std::vector<std::thread> team;
  try {
    team.reserve(workers);
    for (int k = 1; k < workers && k < tasks; ++k) team.emplace_back(work, k);
  } catch (const std::exception &) {  // as many as there are: no more threads, or no memory
  }
  work(0);
  for (auto &thread : team) thread.join();
}

// What each worker works in: `size` vectors each, aligned.
template <class T> class Scratch {
 public:
  Scratch(int workers, int64_t size)
      : size_(size), all_(static_cast<Vec<T> *>(
            operator new(sizeof(Vec<T>) * size * workers, std::align_val_t(kBytes)))) {}
  ~Scratch() { operator delete(all_, std::align_val_t(kBytes)); }
  Scratch(const Scratch &) = delete;
  Vec<T> *of(int worker) const { return all_ + worker * size_; }

 private:
  int64_t size_;
  Vec<T> *all_;
};

// 0, or 1 where memory is short.
template <class F> int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc &) {
    return 1;
  }
}
