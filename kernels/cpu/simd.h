/* Vectors of sixteen lanes, for whichever instruction set this file is compiled.
 *
 * Arithmetic on them is the compiler's own (GCC and clang vector extensions), so that the engine is written once;
 * what a compiler does not find by itself (byte dot products, rounding multiplies, saturating narrowing, byte
 * tables) is here, once for each instruction set, and in plain C++ for any other.
 *
 * Activations are handed to `dot4` encoded: as x + 128 where the instruction wants an unsigned operand, with the
 * products' constant part 128 * sum(w) taken away beforehand; as they are elsewhere.
 */
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../fixed_point.h"
#include "../tables.h"

namespace INTLM_NAMESPACE {

typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

template <class V>
static inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
static inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

static inline i16x16 widen(i8x16 v) { return __builtin_convertvector(v, i16x16); }
static inline i32x16 widen(i16x16 v) { return __builtin_convertvector(v, i32x16); }

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define INTLM_AVX512 1
#else
#define INTLM_AVX512 0
#endif

#if INTLM_AVX512 || defined(__AVXVNNI__)
constexpr int kEncoding = 128;  // what is added to an activation
static inline int32_t encoded(uint8_t x) { return x; }
#else
constexpr int kEncoding = 0;
static inline int32_t encoded(uint8_t x) { return (int8_t)x; }
#endif

#if INTLM_AVX512

/* Sixteen int32 sums, as the instruction set holds them. */
typedef i32x16 Sums;

/* acc[o] += sum over j < 4 of x[j] * w[o][j]; x: four encoded activations; w: 64 bytes. */
static inline i32x16 dot4(i32x16 acc, const uint8_t* x, const int8_t* w) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(four), _mm512_loadu_si512(w));
}

/* sum over k < count of x[k] * b[k], encoded x; count a multiple of 8; b is padded to 64 with zeros. */
static inline int32_t dot_row(const uint8_t* x, const int8_t* b, int count) {
  __m512i acc = _mm512_setzero_si512();
  int k = 0;
  for (; k + 64 <= count; k += 64) acc = _mm512_dpbusd_epi32(acc, _mm512_loadu_si512(x + k), _mm512_loadu_si512(b + k));
  if (k < count) {
    __mmask64 mask = ~(__mmask64)0 >> (64 - (count - k));
    acc = _mm512_dpbusd_epi32(acc, _mm512_maskz_loadu_epi8(mask, x + k), _mm512_loadu_si512(b + k));
  }
  return _mm512_reduce_add_epi32(acc);
}

/* sum of |x[k]| over plain int8 values; count a multiple of 16. */
static inline int32_t sum_magnitudes(const int8_t* x, int count) {
  __m512i acc = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  int k = 0;
  for (; k + 64 <= count; k += 64) acc = _mm512_dpbusd_epi32(acc, _mm512_abs_epi8(_mm512_loadu_si512(x + k)), ones);
  if (k < count) {
    __mmask64 mask = ~(__mmask64)0 >> (64 - (count - k));
    acc = _mm512_dpbusd_epi32(acc, _mm512_abs_epi8(_mm512_maskz_loadu_epi8(mask, x + k)), ones);
  }
  return _mm512_reduce_add_epi32(acc);
}

/* sum over j < 2 of a[2 i + j] * t[j]: a is 32 int16 values, t two. */
static inline i32x16 dot2(const int16_t* a, int32_t t) {
  return (i32x16)_mm512_madd_epi16(_mm512_loadu_si512(a), _mm512_set1_epi32(t));
}

static inline i32x16 dot2_add(i32x16 acc, const int16_t* a, int32_t t) {
  return (i32x16)_mm512_dpwssd_epi32((__m512i)acc, _mm512_loadu_si512(a), _mm512_set1_epi32(t));
}

static inline i16x16 mulhrs(i16x16 a, i16x16 b) { return (i16x16)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b); }
/* Saturates at -32768: with an odd multiplier below 2^14 the rescaled value is that of -32767. */
static inline i16x16 narrow(i32x16 v) { return (i16x16)_mm512_cvtsepi32_epi16((__m512i)v); }
static inline i8x16 narrow8(i16x16 v) {
  return (i8x16)_mm_max_epi8(_mm256_cvtsepi16_epi8((__m256i)v), _mm_set1_epi8(-127));
}

#elif defined(__AVX2__)

struct Sums {
  __m256i half[2];
};

static inline Sums dot4(Sums acc, const uint8_t* x, const int8_t* w) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const __m256i value = _mm256_set1_epi32(four);
#if defined(__AVXVNNI__)
  for (int i = 0; i < 2; ++i)
    acc.half[i] = _mm256_dpbusd_avx_epi32(acc.half[i], value, _mm256_loadu_si256((const __m256i*)(w + 32 * i)));
#else
  const __m256i size = _mm256_abs_epi8(value), ones = _mm256_set1_epi16(1);
  for (int i = 0; i < 2; ++i) {
    __m256i row = _mm256_loadu_si256((const __m256i*)(w + 32 * i));
    __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(row, value));  // at most 2 * 127 * 127: no saturation
    acc.half[i] = _mm256_add_epi32(acc.half[i], _mm256_madd_epi16(pairs, ones));
  }
#endif
  return acc;
}

static inline i16x16 mulhrs(i16x16 a, i16x16 b) { return (i16x16)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b); }
static inline i16x16 narrow(i32x16 v) {
  __m256i half[2];
  std::memcpy(half, &v, 64);
  return (i16x16)_mm256_permute4x64_epi64(_mm256_packs_epi32(half[0], half[1]), 0xD8);
}
static inline i8x16 narrow8(i16x16 v) {
  __m128i half[2];
  std::memcpy(half, &v, 32);
  return (i8x16)_mm_max_epi8(_mm_packs_epi16(half[0], half[1]), _mm_set1_epi8(-127));
}

#else

#if defined(__ARM_FEATURE_DOTPROD)
struct Sums {
  int32x4_t quarter[4];
};

static inline Sums dot4(Sums acc, const uint8_t* x, const int8_t* w) {
  int8x16_t value = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)x));
  for (int i = 0; i < 4; ++i) acc.quarter[i] = vdotq_s32(acc.quarter[i], value, vld1q_s8(w + 16 * i));
  return acc;
}
#else
typedef i32x16 Sums;

static inline i32x16 dot4(i32x16 acc, const uint8_t* x, const int8_t* w) {
  for (int o = 0; o < 16; ++o)
    for (int j = 0; j < 4; ++j) acc[o] += encoded(x[j]) * w[4 * o + j];
  return acc;
}
#endif

static inline i16x16 mulhrs(i16x16 a, i16x16 b) {
  return __builtin_convertvector((widen(a) * widen(b) + (1 << 14)) >> 15, i16x16);
}
static inline i16x16 narrow(i32x16 v) {
  v = v > INTLM_MAX16 ? (i32x16){} + INTLM_MAX16 : v;
  v = v < -INTLM_MAX16 ? (i32x16){} - INTLM_MAX16 : v;
  return __builtin_convertvector(v, i16x16);
}
static inline i8x16 narrow8(i16x16 v) {
  v = v > INTLM_MAX8 ? (i16x16){} + INTLM_MAX8 : v;
  v = v < -INTLM_MAX8 ? (i16x16){} - INTLM_MAX8 : v;
  return __builtin_convertvector(v, i8x16);
}

#endif

#if !INTLM_AVX512
static inline int32_t dot_row(const uint8_t* x, const int8_t* b, int count) {
  int32_t sum = 0;
  for (int k = 0; k < count; ++k) sum += encoded(x[k]) * b[k];
  return sum;
}
static inline int32_t sum_magnitudes(const int8_t* x, int count) {
  int32_t sum = 0;
  for (int k = 0; k < count; ++k) sum += x[k] < 0 ? -x[k] : x[k];
  return sum;
}
static inline i32x16 dot2(const int16_t* a, int32_t t) {
  /* Two int16 values an int32 lane, little-endian: the low half is taken by shifting it up and down again. */
  i32x16 both = load<i32x16>(a);
  int32_t low = (int16_t)t, high = t >> 16;
  return ((both << 16) >> 16) * low + (both >> 16) * high;
}
static inline i32x16 dot2_add(i32x16 acc, const int16_t* a, int32_t t) { return acc + dot2(a, t); }
#endif

/* acc >> shift, rounded; no rounding term where it is in the sum already. */
static inline i32x16 rounding_shift(i32x16 v, int shift) { return shift ? (v + (1 << (shift - 1))) >> shift : v; }

/* out[i] = table[in[i] + 128], 16 at a time; count a multiple of 16. */
static inline i8x16 lookup(i8x16 v, const int8_t* table) {
#if INTLM_AVX512
  __m512i index = _mm512_xor_si512(_mm512_castsi128_si512((__m128i)v), _mm512_set1_epi8((char)0x80));
  __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), index, _mm512_loadu_si512(table + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), index, _mm512_loadu_si512(table + 192));
  return (i8x16)_mm512_castsi512_si128(_mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
#else
  i8x16 found;
  for (int i = 0; i < 16; ++i) found[i] = table[v[i] + 128];
  return found;
#endif
}

/* Gaussian noise: QUANTILE of each of 64 random bytes. */
static inline void quantile64(const uint8_t* bytes, int8_t* out) {
#if INTLM_AVX512
  __m512i b = _mm512_loadu_si512(bytes);
  __m512i size = _mm512_permutex2var_epi8(_mm512_loadu_si512(intlm_quantile), b, _mm512_loadu_si512(intlm_quantile + 64));
  _mm512_storeu_si512(out, _mm512_mask_sub_epi8(size, _mm512_movepi8_mask(b), _mm512_setzero_si512(), size));
#else
  for (int i = 0; i < 64; ++i) out[i] = intlm_quantile[bytes[i]];
#endif
}

}  // namespace INTLM_NAMESPACE
