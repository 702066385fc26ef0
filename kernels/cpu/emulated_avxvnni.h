/* The one instruction of AVX-VNNI that the kernels use, made of plain C++: kernels/check.sh runs them with it on
 * processors that have AVX2 only, for want of an emulator of the real one. */
#pragma once

#include <immintrin.h>

#define __AVXVNNI__ 1

static inline __m256i emulated_dpbusd(__m256i acc, __m256i x, __m256i w) {
  alignas(32) int sums[8];
  alignas(32) unsigned char from[32];
  alignas(32) signed char by[32];
  _mm256_store_si256((__m256i*)sums, acc);
  _mm256_store_si256((__m256i*)from, x);
  _mm256_store_si256((__m256i*)by, w);
  for (int i = 0; i < 32; ++i) sums[i / 4] += from[i] * by[i];
  return _mm256_load_si256((const __m256i*)sums);
}
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd
#define INTLM_SUPPORTED __builtin_cpu_supports("avx2")
