/* Vectors for whichever instruction set this file is compiled: sixteen int32 lanes, and `kLanes` int16 or int8 lanes.
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

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define INTLM_AVX512 1
#else
#define INTLM_AVX512 0
#endif

typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

/* Lanes of a pass over int16 or int8 values, and how many vectors of sixteen int32 sums make as many. */
constexpr int kLanes = INTLM_AVX512 ? 32 : 16, kParts = kLanes / 16;
typedef int16_t Wide __attribute__((vector_size(2 * kLanes)));
typedef int8_t Narrow __attribute__((vector_size(kLanes)));

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
#if INTLM_AVX512
static inline Wide widen(Narrow v) { return __builtin_convertvector(v, Wide); }
#endif
static inline i32x16 widen(i16x16 v) { return __builtin_convertvector(v, i32x16); }

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

/* The sums over sixteen rows of what step(row, 64 bytes, mask) adds to a row's lanes: eight rows side by side, so that
 * one waits for none; rows from `rows` on are not read. Transposed as they are summed. */
template <class Step>
static inline i32x16 sum_rows(int count, int rows, const Step& step) {
  __m512i r[8];
  const int whole = count & ~63;
  const __mmask64 mask = ((__mmask64)1 << (count & 63)) - 1;
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const int first = 8 * half;
    __m512i acc[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) acc[j] = _mm512_setzero_si512();
    if (first < rows) {
      int row[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) row[j] = first + j < rows ? first + j : first + j % 2;
      for (int k = 0; k < whole; k += 64)
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) acc[j] = step(acc[j], row[j], k, ~(__mmask64)0);
      if (mask)
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) acc[j] = step(acc[j], row[j], whole, mask);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2)
      r[4 * half + j / 2] = _mm512_add_epi32(_mm512_unpacklo_epi32(acc[j], acc[j + 1]), _mm512_unpackhi_epi32(acc[j], acc[j + 1]));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2) r[j] = _mm512_add_epi32(_mm512_unpacklo_epi64(r[j], r[j + 1]), _mm512_unpackhi_epi64(r[j], r[j + 1]));
#pragma GCC unroll 2
  for (int j = 0; j < 8; j += 4)
    r[j] = _mm512_add_epi32(_mm512_shuffle_i32x4(r[j], r[j + 2], 0x88), _mm512_shuffle_i32x4(r[j], r[j + 2], 0xDD));
  return (i32x16)_mm512_add_epi32(_mm512_shuffle_i32x4(r[0], r[4], 0x88), _mm512_shuffle_i32x4(r[0], r[4], 0xDD));
}

/* sums[j] = sum over k < count of x[j * x_stride + k] * b[j / 2 * b_stride + k], encoded x, for sixteen rows j, of which
 * those from `rows` on (an even number) are not read. */
static inline i32x16 dot_rows(const uint8_t* x, int64_t x_stride, const int8_t* b, int64_t b_stride, int count, int rows) {
  return sum_rows(count, rows, [=](__m512i acc, int row, int k, __mmask64 mask) {
    const __m512i from = _mm512_maskz_loadu_epi8(mask, x + row * x_stride + k);
    return _mm512_dpbusd_epi32(acc, from, _mm512_loadu_si512(b + row / 2 * b_stride + k));
  });
}

/* sums[j] = sum over k < count of |x[j * stride + k]|, for sixteen rows, of which those from `rows` on are not read. */
static inline i32x16 magnitudes(const int8_t* x, int64_t stride, int count, int rows) {
  const __m512i ones = _mm512_set1_epi8(1);
  return sum_rows(count, rows, [=](__m512i acc, int row, int k, __mmask64 mask) {
    return _mm512_dpbusd_epi32(acc, _mm512_abs_epi8(_mm512_maskz_loadu_epi8(mask, x + row * stride + k)), ones);
  });
}

/* sum of int8 values. */
static inline int32_t sum_row(const int8_t* x, int count) {
  __m512i acc = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  int k = 0;
  for (; k + 64 <= count; k += 64) acc = _mm512_dpbusd_epi32(acc, ones, _mm512_loadu_si512(x + k));
  if (k < count) acc = _mm512_dpbusd_epi32(acc, ones, _mm512_maskz_loadu_epi8(~(__mmask64)0 >> (64 - (count - k)), x + k));
  return _mm512_reduce_add_epi32(acc);
}

/* Two rows of int8 values as int16 pairs in int32 lanes, in the order of the sums' lanes; ones in place of no second. */
static inline void pair_up(const int8_t* first, const int8_t* second, i32x16 out[kParts]) {
  const __m512i a = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)first));
  const __m512i b = second ? _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)second)) : _mm512_set1_epi16(1);
  out[0] = (i32x16)_mm512_unpacklo_epi16(a, b);
  out[1] = (i32x16)_mm512_unpackhi_epi16(a, b);
}

/* Each lane's pair times the pair t, summed. */
static inline i32x16 dot2(i32x16 pairs, int32_t t) { return (i32x16)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi32(t)); }
static inline i32x16 dot2_add(i32x16 acc, i32x16 pairs, int32_t t) {
  return (i32x16)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)pairs, _mm512_set1_epi32(t));
}

static inline Wide mulhrs(Wide a, Wide b) { return (Wide)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b); }
/* Saturates at -32768: with an odd multiplier below 2^14 the rescaled value is that of -32767. The instruction takes
 * four lanes of one operand and four of the other in turn; `column` says where that puts a lane. */
static inline Wide narrow(const i32x16 v[kParts]) { return (Wide)_mm512_packs_epi32((__m512i)v[0], (__m512i)v[1]); }
static inline int column(int part, int lane) { return lane / 4 * 8 + part * 4 + lane % 4; }
static inline Narrow narrow8(Wide v) {
  return (Narrow)_mm256_max_epi8(_mm512_cvtsepi16_epi8((__m512i)v), _mm256_set1_epi8(-127));
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

static inline i32x16 dot2(i32x16 pairs, int32_t t) {
  __m256i half[2];
  std::memcpy(half, &pairs, 64);
  for (__m256i& h : half) h = _mm256_madd_epi16(h, _mm256_set1_epi32(t));
  return load<i32x16>(half);
}
static inline i32x16 dot2_add(i32x16 acc, i32x16 pairs, int32_t t) { return acc + dot2(pairs, t); }

/* sum over k < count of x[k] * b[k], encoded x. */
static inline int32_t dot_row(const uint8_t* x, const int8_t* b, int count) {
  __m256i acc = _mm256_setzero_si256();
  int k = 0;
  for (; k + 16 <= count; k += 16) {
    const __m128i four = _mm_loadu_si128((const __m128i*)(x + k));
    const __m256i wide = kEncoding ? _mm256_cvtepu8_epi16(four) : _mm256_cvtepi8_epi16(four);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(wide, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(b + k)))));
  }
  __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(acc), _mm256_extracti128_si256(acc, 1));
  sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4E));
  int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xB1)));
  for (; k < count; ++k) sum += encoded(x[k]) * b[k];
  return sum;
}

static inline Wide mulhrs(Wide a, Wide b) { return (Wide)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b); }
static inline Wide narrow(const i32x16 v[kParts]) {
  __m256i half[2];
  std::memcpy(half, v, 64);
  return (Wide)_mm256_permute4x64_epi64(_mm256_packs_epi32(half[0], half[1]), 0xD8);
}
static inline Narrow narrow8(Wide v) {
  __m128i half[2];
  std::memcpy(half, &v, 32);
  return (Narrow)_mm_max_epi8(_mm_packs_epi16(half[0], half[1]), _mm_set1_epi8(-127));
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

static inline i32x16 dot2(i32x16 pairs, int32_t t) {
  /* Two int16 values an int32 lane, little-endian: the low half is taken by shifting it up and down again. */
  return ((pairs << 16) >> 16) * (int32_t)(int16_t)t + (pairs >> 16) * (t >> 16);
}
static inline i32x16 dot2_add(i32x16 acc, i32x16 pairs, int32_t t) { return acc + dot2(pairs, t); }

static inline int32_t dot_row(const uint8_t* x, const int8_t* b, int count) {
  int32_t sum = 0;
  for (int k = 0; k < count; ++k) sum += encoded(x[k]) * b[k];
  return sum;
}

static inline Wide mulhrs(Wide a, Wide b) {
  return __builtin_convertvector((widen(a) * widen(b) + (1 << 14)) >> 15, Wide);
}
static inline Wide narrow(const i32x16 v[kParts]) {
  i32x16 kept = v[0] > INTLM_MAX16 ? (i32x16){} + INTLM_MAX16 : v[0];
  kept = kept < -INTLM_MAX16 ? (i32x16){} - INTLM_MAX16 : kept;
  return __builtin_convertvector(kept, Wide);
}
static inline Narrow narrow8(Wide v) {
  v = v > INTLM_MAX8 ? (Wide){} + INTLM_MAX8 : v;
  v = v < -INTLM_MAX8 ? (Wide){} - INTLM_MAX8 : v;
  return __builtin_convertvector(v, Narrow);
}

#endif

#if !INTLM_AVX512
static inline int column(int, int lane) { return lane; }

static inline i32x16 dot_rows(const uint8_t* x, int64_t x_stride, const int8_t* b, int64_t b_stride, int count, int rows) {
  i32x16 sums = {};
  for (int j = 0; j < rows; ++j) sums[j] = dot_row(x + j * x_stride, b + j / 2 * b_stride, count);
  return sums;
}
static inline int32_t sum_row(const int8_t* x, int count) {
  int32_t sum = 0;
  for (int k = 0; k < count; ++k) sum += x[k];
  return sum;
}
static inline i32x16 magnitudes(const int8_t* x, int64_t stride, int count, int rows) {
  i32x16 sums = {};
  for (int j = 0; j < rows; ++j)
    for (int k = 0; k < count; ++k) sums[j] += x[j * stride + k] < 0 ? -x[j * stride + k] : x[j * stride + k];
  return sums;
}
static inline void pair_up(const int8_t* first, const int8_t* second, i32x16 out[kParts]) {
  const i32x16 a = widen(widen(load<i8x16>(first))), b = second ? widen(widen(load<i8x16>(second))) : (i32x16){} + 1;
  out[0] = (a & 0xFFFF) | (i32x16)((u32x16)b << 16);
}
#endif

/* v >> shift, rounded. */
static inline i32x16 rounding_shift(i32x16 v, int shift) { return shift ? (v + (1 << (shift - 1))) >> shift : v; }

/* table[v + 128], lane by lane. */
static inline Narrow lookup(Narrow v, const int8_t* table) {
#if INTLM_AVX512
  __m512i index = _mm512_xor_si512(_mm512_castsi256_si512((__m256i)v), _mm512_set1_epi8((char)0x80));
  __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), index, _mm512_loadu_si512(table + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), index, _mm512_loadu_si512(table + 192));
  return (Narrow)_mm512_castsi512_si256(_mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
#else
  Narrow found;
  for (int i = 0; i < kLanes; ++i) found[i] = table[v[i] + 128];
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
