/* AVX-VNNI: AVX2 with a product of bytes. */
#pragma once

#include "bits256.h"

namespace avxvnni {

#ifdef INTLM_EMULATED
/* The instruction in plain C++: kernels/check.py runs it on processors that lack it, as no emulator has it. */
static bool supported() { return __builtin_cpu_supports("avx2"); }
static inline __m256i dpbusd(__m256i acc, __m256i x, __m256i w) {
  int32_t sums[8];
  uint8_t from[32];
  int8_t by[32];
  store(sums, acc), store(from, x), store(by, w);
  for (int i = 0; i < 32; ++i) sums[i / 4] += from[i] * by[i];
  return load<__m256i>(sums);
}
#else
static bool supported() { return __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("avx2"); }
static inline __m256i dpbusd(__m256i acc, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(acc, x, w); }
#endif

typedef uint8_t Encoded;
constexpr int kEncoding = 128, kDepth = 4, kSums = 4;
constexpr bool kChangeFirst = false;

static inline Sums dot(Sums acc, const Encoded* x, const int8_t* w) {
  const __m256i four = _mm256_set1_epi32(load<int32_t>(x));
  return each([&](int i) { return dpbusd(acc.half[i], four, load<__m256i>(w + 32 * i)); });
}

static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  acc = each([&](int i) { return dpbusd(acc.half[i], x.half[i], w.half[i]); });
}

}  // namespace avxvnni
