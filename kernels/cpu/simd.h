/* Vectors for whichever instruction set this file is compiled: sixteen int32 lanes, and `kLanes` int16 or int8 lanes.
 *
 * Arithmetic on them is the compiler's own (GCC and clang vector extensions), so that the engine is written once;
 * what a compiler does not find by itself (byte dot products, rounding multiplies, saturating narrowing, byte
 * tables) is here, once for each instruction set, and in plain C++ for any other.
 *
 * Activations are handed to `dot` encoded: as x + 128 where the instruction wants an unsigned operand, with the
 * products' constant part 128 * sum(w) taken away beforehand; as int16 for AVX2, whose byte products saturate; as they
 * are elsewhere.
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
#if defined(__AVX2__) && !defined(__AVXVNNI__) && !INTLM_AVX512
#define INTLM_AVX2 1
#else
#define INTLM_AVX2 0
#endif

typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
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

/* An encoded activation, what is added to it, and how many of them `dot` takes. */
#if INTLM_AVX512 || defined(__AVXVNNI__)
typedef uint8_t Encoded;
constexpr int kEncoding = 128, kDepth = 4;
#elif INTLM_AVX2
typedef int16_t Encoded;
constexpr int kEncoding = 0, kDepth = 2;
#else
typedef int8_t Encoded;
constexpr int kEncoding = 0, kDepth = 4;
#endif

#if INTLM_AVX512

/* Sixteen int32 sums, as `dot` holds them, and as what follows does. */
typedef i32x16 Sums, Lanes;

/* acc[o] += sum over j < kDepth of x[j] * w[o][j]; x: encoded activations; w: 16 * kDepth bytes. */
static inline i32x16 dot(i32x16 acc, const Encoded* x, const int8_t* w) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(four), _mm512_loadu_si512(w));
}

/* acc[o] += sum over j < 4 of x[o][j] * w[o][j] in the fastest exact way, all in registers: bytes, those of x from 0 to
 * 127. x comes back as it was, but a compiler does not know, so that no product serves twice. */
static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  acc = (Sums)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
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
static inline i32x16 dot_rows(const Encoded* x, int64_t x_stride, const int8_t* b, int64_t b_stride, int count, int rows) {
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
typedef Sums Lanes;

/* By halves: a copy of the whole goes through memory in quarters. */
template <>
inline Sums load<Sums>(const void* p) {
  return {{_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)}};
}

static inline void store(void* p, Sums v) {
  _mm256_storeu_si256((__m256i*)p, v.half[0]), _mm256_storeu_si256((__m256i*)p + 1, v.half[1]);
}

static inline Sums broadcast(int32_t v) { return {{_mm256_set1_epi32(v), _mm256_set1_epi32(v)}}; }
template <class Each>
static inline Sums each(const Each& f) {
  return {{f(0), f(1)}};
}
static inline Sums operator+(Sums a, Sums b) {
  return each([&](int i) { return _mm256_add_epi32(a.half[i], b.half[i]); });
}
static inline Sums operator-(Sums a, Sums b) {
  return each([&](int i) { return _mm256_sub_epi32(a.half[i], b.half[i]); });
}
static inline Sums operator*(Sums a, Sums b) {
  return each([&](int i) { return _mm256_mullo_epi32(a.half[i], b.half[i]); });
}
static inline Sums operator>>(Sums a, int shift) {
  return each([&](int i) { return _mm256_srai_epi32(a.half[i], shift); });
}
/* Clamped to [-limit, limit]. */
static inline Sums clamp(Sums a, int32_t limit) {
  const __m256i most = _mm256_set1_epi32(limit), least = _mm256_set1_epi32(-limit);
  return each([&](int i) { return _mm256_max_epi32(least, _mm256_min_epi32(most, a.half[i])); });
}
/* The low halves of a's lanes below those of b's. */
static inline Sums join(Sums a, Sums b) {
  return each([&](int i) { return _mm256_blend_epi16(a.half[i], _mm256_slli_epi32(b.half[i], 16), 0xAA); });
}

static inline Sums dot(Sums acc, const Encoded* x, const int8_t* w) {
  int32_t taken;
  std::memcpy(&taken, x, 4);
  const __m256i value = _mm256_set1_epi32(taken);
#if INTLM_AVX2
  for (int i = 0; i < 2; ++i) {
    const __m256i row = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + 16 * i)));
    acc.half[i] = _mm256_add_epi32(acc.half[i], _mm256_madd_epi16(row, value));
  }
#else
  for (int i = 0; i < 2; ++i)
    acc.half[i] = _mm256_dpbusd_avx_epi32(acc.half[i], value, _mm256_loadu_si256((const __m256i*)(w + 32 * i)));
#endif
  return acc;
}

static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  for (int i = 0; i < 2; ++i) {
#if INTLM_AVX2
    asm volatile("" : "+x"(x.half[i]));
    const __m256i pairs = _mm256_maddubs_epi16(x.half[i], w.half[i]);
    acc.half[i] = _mm256_add_epi32(acc.half[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    acc.half[i] = _mm256_dpbusd_avx_epi32(acc.half[i], x.half[i], w.half[i]);
#endif
  }
}

static inline Sums dot2(Sums pairs, int32_t t) {
  const __m256i by = _mm256_set1_epi32(t);
  return {{_mm256_madd_epi16(pairs.half[0], by), _mm256_madd_epi16(pairs.half[1], by)}};
}
static inline Sums dot2_add(Sums acc, Sums pairs, int32_t t) { return acc + dot2(pairs, t); }

/* Encoded activations, and int8 values, as int16. */
static inline __m256i sixteen(const int8_t* x) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)x)); }
static inline __m256i sixteen(const uint8_t* x) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)x)); }
static inline __m256i sixteen(const int16_t* x) { return _mm256_loadu_si256((const __m256i*)x); }

/* The sums over sixteen rows of what step(row, k) makes of a row's elements k .. k + 15, eight int32 lanes of it; of the
 * last eight if eight are left, in the lower half of the lanes. Rows from `rows` on are not read. */
template <class Step>
static inline Sums sum_rows(int count, int rows, const Step& step) {
  Sums sums = {};
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    if (8 * half >= rows) break;
    int row[8];
    __m256i acc[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) row[j] = 8 * half + j < rows ? 8 * half + j : 0, acc[j] = _mm256_setzero_si256();
    int k = 0;
    for (; k + 16 <= count; k += 16)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) acc[j] = _mm256_add_epi32(acc[j], step(row[j], k));
    if (k < count)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) acc[j] = _mm256_add_epi32(acc[j], _mm256_zextsi128_si256(_mm256_castsi256_si128(step(row[j], k))));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) acc[j] = _mm256_hadd_epi32(acc[2 * j], acc[2 * j + 1]);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) acc[j] = _mm256_hadd_epi32(acc[2 * j], acc[2 * j + 1]);
    sums.half[half] = _mm256_add_epi32(_mm256_permute2x128_si256(acc[0], acc[1], 0x20), _mm256_permute2x128_si256(acc[0], acc[1], 0x31));
  }
  return sums;
}

static inline Sums dot_rows(const Encoded* x, int64_t x_stride, const int8_t* b, int64_t b_stride, int count, int rows) {
  return sum_rows(count, rows, [=](int row, int k) {
    return _mm256_madd_epi16(sixteen(x + row * x_stride + k), sixteen(b + row / 2 * b_stride + k));
  });
}

static inline Sums magnitudes(const int8_t* x, int64_t stride, int count, int rows) {
  return sum_rows(count, rows, [=](int row, int k) {
    return _mm256_madd_epi16(_mm256_abs_epi16(sixteen(x + row * stride + k)), _mm256_set1_epi16(1));
  });
}

static inline void pair_up(const int8_t* first, const int8_t* second, Sums out[kParts]) {
  const __m256i a = sixteen(first), b = second ? sixteen(second) : _mm256_set1_epi16(1);
  out[0] = {{_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)}};
}

static inline Wide mulhrs(Wide a, Wide b) { return (Wide)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b); }
/* As for AVX-512: the instruction takes its operands' lanes by fours in turn. */
static inline Wide narrow(const Lanes v[kParts]) { return (Wide)_mm256_packs_epi32(v[0].half[0], v[0].half[1]); }
static inline int column(int, int lane) { return lane % 8 / 4 * 8 + lane / 8 * 4 + lane % 4; }
static inline Wide clamp8(Wide v) {
  return (Wide)_mm256_max_epi16(_mm256_min_epi16((__m256i)v, _mm256_set1_epi16(127)), _mm256_set1_epi16(-127));
}
/* Two rows of int8 values as int16 pairs, each times its own factor. */
static inline Lanes zip(const int8_t* first, int32_t f0, const int8_t* second, int32_t f1) {
  const __m256i a = _mm256_mullo_epi16(sixteen(first), _mm256_set1_epi16((int16_t)f0));
  const __m256i b = _mm256_mullo_epi16(sixteen(second), _mm256_set1_epi16((int16_t)f1));
  const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
  return {{_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)}};
}
static inline Narrow narrow8(Wide v) {
  __m128i half[2];
  std::memcpy(half, &v, 32);
  return (Narrow)_mm_max_epi8(_mm_packs_epi16(half[0], half[1]), _mm_set1_epi8(-127));
}

#else

typedef i32x16 Lanes;

#if defined(__ARM_FEATURE_DOTPROD)
struct Sums {
  int32x4_t quarter[4];
};

static inline Sums dot(Sums acc, const Encoded* x, const int8_t* w) {
  int8x16_t value = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)x));
  for (int i = 0; i < 4; ++i) acc.quarter[i] = vdotq_s32(acc.quarter[i], value, vld1q_s8(w + 16 * i));
  return acc;
}
static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  for (int i = 0; i < 4; ++i)
    acc.quarter[i] = vdotq_s32(acc.quarter[i], vreinterpretq_s8_s32(x.quarter[i]), vreinterpretq_s8_s32(w.quarter[i]));
}
#else
typedef i32x16 Sums;

static inline i32x16 dot(i32x16 acc, const Encoded* x, const int8_t* w) {
  for (int o = 0; o < 16; ++o)
    for (int j = 0; j < 4; ++j) acc[o] += x[j] * w[4 * o + j];
  return acc;
}
static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  typedef int16_t i16x32 __attribute__((vector_size(64)));
  asm volatile("" : "+m"(x));
  const i16x32 from = (i16x32)x, by = (i16x32)w;
  const i32x16 pairs = (i32x16)((from << 8 >> 8) * (by << 8 >> 8) + (from >> 8) * (by >> 8));
  acc += (pairs << 16 >> 16) + (pairs >> 16);
}
#endif

static inline i32x16 dot2(i32x16 pairs, int32_t t) {
  /* Two int16 values an int32 lane, little-endian: the low half is taken by shifting it up and down again. */
  return ((pairs << 16) >> 16) * (int32_t)(int16_t)t + (pairs >> 16) * (t >> 16);
}
static inline i32x16 dot2_add(i32x16 acc, i32x16 pairs, int32_t t) { return acc + dot2(pairs, t); }

static inline int32_t dot_row(const Encoded* x, const int8_t* b, int count) {
  int32_t sum = 0;
  for (int k = 0; k < count; ++k) sum += x[k] * b[k];
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

#if !defined(__AVX2__) && !INTLM_AVX512
static inline int column(int, int lane) { return lane; }

static inline i32x16 dot_rows(const Encoded* x, int64_t x_stride, const int8_t* b, int64_t b_stride, int count, int rows) {
  i32x16 sums = {};
  for (int j = 0; j < rows; ++j) sums[j] = dot_row(x + j * x_stride, b + j / 2 * b_stride, count);
  return sums;
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

#if !INTLM_AVX512
static inline int32_t sum_row(const int8_t* x, int count) {
  int32_t sum = 0;
  for (int k = 0; k < count; ++k) sum += x[k];
  return sum;
}
#endif
#if !defined(__AVX2__) || INTLM_AVX512
static inline Wide clamp8(Wide v) { return widen(narrow8(v)); }
static inline Lanes zip(const int8_t* first, int32_t f0, const int8_t* second, int32_t f1) {
  const i32x16 low = widen(widen(load<i8x16>(first))) * f0, high = widen(widen(load<i8x16>(second))) * f1;
  return (low & 0xFFFF) | (i32x16)((u32x16)high << 16);
}
#endif

#if !defined(__AVX2__) || INTLM_AVX512
static inline Lanes broadcast(int32_t v) { return (Lanes){} + v; }
static inline Lanes clamp(Lanes v, int32_t limit) {
  v = v > limit ? broadcast(limit) : v;
  return v < -limit ? broadcast(-limit) : v;
}
static inline Lanes join(Lanes low, Lanes high) { return (low & 0xFFFF) | (Lanes)((u32x16)high << 16); }
#endif

/* Encoded activations as int16, and what saturates to int8 as them. */
static inline Wide decode(const Encoded* at) {
#if INTLM_AVX2
  return load<Wide>(at);
#else
  return widen(load<Narrow>(at) ^ (int8_t)kEncoding);
#endif
}
static inline void encode(Encoded* at, Wide v) {
#if INTLM_AVX2
  store(at, clamp8(v));
#else
  store(at, narrow8(v) ^ (int8_t)kEncoding);
#endif
}

/* v >> shift, rounded. */
static inline Lanes rounding_shift(Lanes v, int shift) { return shift ? (v + broadcast(1 << (shift - 1))) >> shift : v; }

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
#elif defined(__AVX2__)
  /* Sixteen entries at a time: the shuffle gives those whose index is below 16, and zero where the index is negative. */
  for (int i = 0; i < 64; i += 32) {
    const __m256i b = _mm256_loadu_si256((const __m256i*)(bytes + i)), index = _mm256_and_si256(b, _mm256_set1_epi8(127));
    __m256i size = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int row = 0; row < 8; ++row) {
      const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(intlm_quantile + 16 * row)));
      const __m256i from = _mm256_sub_epi8(index, _mm256_set1_epi8((char)(16 * row)));
      const __m256i within = _mm256_cmpgt_epi8(_mm256_set1_epi8(16), from);  // true below the row too
      size = _mm256_or_si256(size, _mm256_and_si256(within, _mm256_shuffle_epi8(entries, from)));
    }
    _mm256_storeu_si256((__m256i*)(out + i), _mm256_sign_epi8(size, _mm256_or_si256(b, _mm256_set1_epi8(1))));
  }
#else
  for (int i = 0; i < 64; ++i) out[i] = intlm_quantile[bytes[i]];
#endif
}

}  // namespace INTLM_NAMESPACE
