/* AVX2: byte products saturate, so activations are int16, and weights are widened to int16. */
#pragma once

#include "bits256.h"

namespace avx2 {

static bool supported() { return __builtin_cpu_supports("avx2"); }

typedef int16_t Encoded;
constexpr int kEncoding = 0, kDepth = 2, kSums = 6;
constexpr bool kChangeFirst = true;

static inline Sums dot(Sums acc, const Encoded* x, const int8_t* w) {
  const __m256i two = _mm256_set1_epi32(load<int32_t>(x));
  return acc + each([&](int i) { return _mm256_madd_epi16(sixteen(w + 16 * i), two); });
}

static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  for (int i = 0; i < 2; ++i) {
    asm volatile("" : "+x"(x.half[i]));
    const __m256i pairs = _mm256_maddubs_epi16(x.half[i], w.half[i]);
    acc.half[i] = _mm256_add_epi32(acc.half[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
}

}  // namespace avx2
