/* AVX-512 with VNNI and VBMI: 32 lanes. */
#pragma once

#include <immintrin.h>

namespace avx512 {

static bool supported() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi"); }

typedef i16x32 Wide;
typedef i8x32 Narrow;
typedef i32x16 Lanes, Sums;
typedef u32x16 Counters;
typedef uint8_t Encoded;
constexpr int kLanes = 32, kParts = 2, kEncoding = 128, kDepth = 4, kSums = 24, kUnits = 2, kTerms = 64;
constexpr bool kChangeFirst = false;

static inline Lanes broadcast(int32_t v) { return (Lanes){} + v; }

static inline i32x16 dot(i32x16 acc, const Encoded* x, const int8_t* w) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(four), _mm512_loadu_si512(w));
}

static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  acc = (Sums)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)x, (__m512i)w);
}

/* The sums over sixteen rows of what step(row, 64 bytes, mask) adds to a row's lanes: eight rows side by side, so that
 * none waits for another; rows from `rows` on are not read. The sums are transposed as they are made. */
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
      r[4 * half + j / 2] =
          _mm512_add_epi32(_mm512_unpacklo_epi32(acc[j], acc[j + 1]), _mm512_unpackhi_epi32(acc[j], acc[j + 1]));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2)
    r[j] = _mm512_add_epi32(_mm512_unpacklo_epi64(r[j], r[j + 1]), _mm512_unpackhi_epi64(r[j], r[j + 1]));
#pragma GCC unroll 2
  for (int j = 0; j < 8; j += 4)
    r[j] = _mm512_add_epi32(_mm512_shuffle_i32x4(r[j], r[j + 2], 0x88), _mm512_shuffle_i32x4(r[j], r[j + 2], 0xDD));
  return (i32x16)_mm512_add_epi32(_mm512_shuffle_i32x4(r[0], r[4], 0x88), _mm512_shuffle_i32x4(r[0], r[4], 0xDD));
}

static inline i32x16 dot_rows(const Encoded* x, int64_t x_stride, const int8_t* b, int64_t b_stride, int count,
                              int rows) {
  return sum_rows(count, rows, [=](__m512i acc, int row, int k, __mmask64 mask) {
    const __m512i from = _mm512_maskz_loadu_epi8(mask, x + row * x_stride + k);
    return _mm512_dpbusd_epi32(acc, from, _mm512_loadu_si512(b + row / 2 * b_stride + k));
  });
}

static inline i32x16 magnitudes(const int8_t* x, int64_t stride, int count, int rows) {
  const __m512i ones = _mm512_set1_epi8(1);
  return sum_rows(count, rows, [=](__m512i acc, int row, int k, __mmask64 mask) {
    return _mm512_dpbusd_epi32(acc, _mm512_abs_epi8(_mm512_maskz_loadu_epi8(mask, x + row * stride + k)), ones);
  });
}

static inline void pair_up(const int8_t* first, const int8_t* second, i32x16 out[kParts]) {
  const __m512i a = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)first));
  const __m512i b = second ? _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)second)) : _mm512_set1_epi16(1);
  out[0] = (i32x16)_mm512_unpacklo_epi16(a, b);
  out[1] = (i32x16)_mm512_unpackhi_epi16(a, b);
}

static inline i32x16 dot2(i32x16 pairs, int32_t t) {
  return (i32x16)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi32(t));
}
static inline i32x16 dot2_add(i32x16 acc, i32x16 pairs, int32_t t) {
  return (i32x16)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)pairs, _mm512_set1_epi32(t));
}

static inline Wide mulhrs(Wide a, Wide b) { return (Wide)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b); }
/* The instruction takes four lanes of one operand and four of the other in turn. */
static inline Wide narrow(const i32x16 v[kParts]) { return (Wide)_mm512_packs_epi32((__m512i)v[0], (__m512i)v[1]); }
static inline int column(int part, int lane) { return lane / 4 * 8 + part * 4 + lane % 4; }
static inline Narrow narrow8(Wide v) {
  return (Narrow)_mm256_max_epi8(_mm512_cvtsepi16_epi8((__m512i)v), _mm256_set1_epi8(-127));
}

static inline Wide clamp8(Wide v) { return widen(narrow8(v)); }
static inline Lanes zip(const int8_t* first, int32_t f0, const int8_t* second, int32_t f1) {
  return join(widen(widen(load<i8x16>(first))) * f0, widen(widen(load<i8x16>(second))) * f1);
}

static inline Narrow lookup(Narrow v, const int8_t* table) {
  __m512i index = _mm512_xor_si512(_mm512_castsi256_si512((__m256i)v), _mm512_set1_epi8((char)0x80));
  __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), index, _mm512_loadu_si512(table + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), index, _mm512_loadu_si512(table + 192));
  return (Narrow)_mm512_castsi512_si256(_mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
}

static inline void quantile64(const uint8_t* bytes, int8_t* out) {
  __m512i b = _mm512_loadu_si512(bytes);
  __m512i size =
      _mm512_permutex2var_epi8(_mm512_loadu_si512(intlm_quantile), b, _mm512_loadu_si512(intlm_quantile + 64));
  _mm512_storeu_si512(out, _mm512_mask_sub_epi8(size, _mm512_movepi8_mask(b), _mm512_setzero_si512(), size));
}

static inline void transpose(const Counters x[4], uint32_t* words) {
  const __m512i low01 = _mm512_unpacklo_epi32((__m512i)x[0], (__m512i)x[1]);
  const __m512i low23 = _mm512_unpacklo_epi32((__m512i)x[2], (__m512i)x[3]);
  const __m512i high01 = _mm512_unpackhi_epi32((__m512i)x[0], (__m512i)x[1]);
  const __m512i high23 = _mm512_unpackhi_epi32((__m512i)x[2], (__m512i)x[3]);
  _mm512_store_si512(words, _mm512_unpacklo_epi64(low01, low23));
  _mm512_store_si512(words + 16, _mm512_unpackhi_epi64(low01, low23));
  _mm512_store_si512(words + 32, _mm512_unpacklo_epi64(high01, high23));
  _mm512_store_si512(words + 48, _mm512_unpackhi_epi64(high01, high23));
}

/* The instruction finds the least of eight unsigned values: that of 32767 - x, for the largest x. */
static inline int32_t largest(Wide v) {
  const __m256i half = _mm256_max_epi16(_mm512_castsi512_si256((__m512i)v), _mm512_extracti64x4_epi64((__m512i)v, 1));
  const __m128i last = _mm_max_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  return 32767 - _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_sub_epi16(_mm_set1_epi16(32767), last))) % 65536;
}

/* 2 EXP2 in three planes of bytes: a permutation looks up 128 entries at once. The fourth byte is 2 for entry 0, else 1. */
struct Planes {
  alignas(64) uint8_t byte[3][256] = {};
  constexpr Planes() {
    for (int i = 0; i < 256; ++i)
      for (int j = 0; j < 3; ++j) byte[j][i] = (uint8_t)(2 * intlm_exp2[i] >> (8 * j));
  }
};
constexpr Planes kExp2;

/* The bytes 0 to 63. */
struct Count {
  uint8_t byte[64] = {};
  constexpr Count() {
    for (int i = 0; i < 64; ++i) byte[i] = (uint8_t)i;
  }
};
constexpr Count kCount;

/* The terms of two vectors of differences, as `packs` takes them to make the vectors of 32 of which byte b of the first 16
 * is of difference b / 2 of `first` or, where b is odd, `second`. */
__attribute__((always_inline)) static inline void terms(__m512i first, __m512i second, __m512i e[4]) {
  const __m512i low8 = _mm512_set1_epi16(0xFF), high8 = _mm512_set1_epi16((int16_t)0xFF00), one8 = _mm512_set1_epi8(1);
  const __m512i one = _mm512_set1_epi32(1), zero = _mm512_setzero_si512();
  /* The low bytes of 64 differences together, as indices, and the high ones, in the same order. */
  const __m512i index = _mm512_ternarylogic_epi32(low8, first, _mm512_slli_epi16(second, 8), 0xEA);
  const __m512i shift = _mm512_ternarylogic_epi32(high8, second, _mm512_srli_epi16(first, 8), 0xEA);
  const __mmask64 upper = _mm512_movepi8_mask(index);
  __m512i b[4], q[4];
  for (int j = 0; j < 3; ++j) {
    const uint8_t* plane = kExp2.byte[j];
    __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(plane), index, _mm512_load_si512(plane + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(plane + 128), index, _mm512_load_si512(plane + 192));
    b[j] = _mm512_mask_blend_epi8(upper, low, high);
  }
  b[3] = _mm512_mask_add_epi8(one8, _mm512_testn_epi8_mask(index, index), one8, one8);
  const __m512i low01 = _mm512_unpacklo_epi8(b[0], b[1]), low23 = _mm512_unpacklo_epi8(b[2], b[3]);
  const __m512i high01 = _mm512_unpackhi_epi8(b[0], b[1]), high23 = _mm512_unpackhi_epi8(b[2], b[3]);
  const __m512i low_q = _mm512_unpacklo_epi8(shift, zero), high_q = _mm512_unpackhi_epi8(shift, zero);
  e[0] = _mm512_unpacklo_epi16(low01, low23), q[0] = _mm512_unpacklo_epi16(low_q, zero);
  e[1] = _mm512_unpackhi_epi16(low01, low23), q[1] = _mm512_unpackhi_epi16(low_q, zero);
  e[2] = _mm512_unpacklo_epi16(high01, high23), q[2] = _mm512_unpacklo_epi16(high_q, zero);
  e[3] = _mm512_unpackhi_epi16(high01, high23), q[3] = _mm512_unpackhi_epi16(high_q, zero);
  for (int j = 0; j < 4; ++j)  // rounded as the bit below the last says
    e[j] = _mm512_srli_epi32(_mm512_add_epi32(_mm512_srlv_epi32(e[j], q[j]), one), 1);
}

/* Even and odd lanes, none negative, in int64. */
static inline __m512i even_lanes(Lanes v) { return _mm512_and_si512((__m512i)v, _mm512_set1_epi64(0xFFFFFFFF)); }
static inline __m512i odd_lanes(Lanes v) { return _mm512_srli_epi64((__m512i)v, 32); }

/* The sums of the lanes of two vectors. */
static inline __m128i totals(__m512i first, __m512i second) {
  const __m512i all = _mm512_add_epi64(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
  const __m256i half = _mm256_add_epi64(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi64(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
static inline int64_t total(Lanes v) {
  const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64((__m512i)v, 1));
  const __m128i sums = totals(_mm512_cvtepi32_epi64(_mm512_castsi512_si256((__m512i)v)), high);
  return _mm_cvtsi128_si64(sums) + _mm_extract_epi64(sums, 1);
}

/* Where at most 32 logits are left, those of both rows are one call's. */
static inline void sum_terms(const int32_t* tops, const int16_t* logits, int64_t stride, int vocab, int64_t* sums) {
  __m512i all[2] = {}, e[4];
  const __m512i top[2] = {_mm512_set1_epi16((int16_t)tops[0]), _mm512_set1_epi16((int16_t)tops[1])};
  auto below = [&](int row, int i) {
    return _mm512_sub_epi16(top[row], _mm512_loadu_si512(logits + row * stride + i));
  };
  auto sum = [&] { return (Lanes)e[0] + (Lanes)e[1] + (Lanes)e[2] + (Lanes)e[3]; };
  const int whole = (vocab + 31) / 64 * 64;
#pragma GCC unroll 2
  for (int row = 0; row < 2; ++row)
    for (int begin = 0; begin < whole; begin += 1024) {  // a lane holds the sum of 64 terms of at most 2^24
      Lanes acc = broadcast(0);
      for (int i = begin; i < std::min(begin + 1024, whole); i += 64) {
        terms(below(row, i), below(row, i + 32), e);
        acc += sum();
      }
      all[row] = _mm512_add_epi64(all[row], _mm512_add_epi64(even_lanes(acc), odd_lanes(acc)));
    }
  if (whole < vocab) {
    terms(below(0, whole), below(1, whole), e);
    all[0] = _mm512_add_epi64(all[0], even_lanes(sum())), all[1] = _mm512_add_epi64(all[1], odd_lanes(sum()));
  }
  _mm_storeu_si128((__m128i*)sums, totals(all[0], all[1]));
}

static inline void slopes(int32_t lse, const int16_t* logits, const uint8_t* octets, int8_t* out) {
  /* Unsigned differences that saturate at 0: both operands are moved by 2^15. */
  const __m512i half = _mm512_set1_epi16(INT16_MIN), zero = _mm512_setzero_si512();
  const __m512i lses = _mm512_xor_si512(_mm512_set1_epi16((int16_t)lse), half);
  auto below = [=](const int16_t* at) {
    return _mm512_subs_epu16(lses, _mm512_xor_si512(_mm512_loadu_si512(at), half));
  };
  __m512i e[4];
  terms(below(logits), below(logits + 32), e);
  for (__m512i& four : e)
    four = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_mullo_epi32(four, _mm512_set1_epi32(INTLM_MAX8)), _mm512_set1_epi32(1 << 15)), 16);
  /* Byte 2 i of the terms is logit i, byte 2 i + 1 logit 32 + i. */
  __m512i order = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)kCount.byte));
  order = _mm512_or_si512(order, _mm512_slli_epi16(_mm512_add_epi16(order, _mm512_set1_epi16(32)), 8));
  const __m512i drawn = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(octets));
  const __m512i low = _mm512_sub_epi16(_mm512_unpacklo_epi8(drawn, zero), _mm512_packus_epi32(e[0], e[1]));
  const __m512i high = _mm512_sub_epi16(_mm512_unpackhi_epi8(drawn, zero), _mm512_packus_epi32(e[2], e[3]));
  const __m512i found = _mm512_packs_epi16(_mm512_srai_epi16(low, 8), _mm512_srai_epi16(high, 8));
  const __m512i even = _mm512_loadu_si512(kCount.byte);  // 0 .. 63: byte i comes from 2 i, or 2 (i - 32) + 1
  const __m512i back = _mm512_add_epi8(even, even);
  _mm512_storeu_si512(
      out, _mm512_permutexvar_epi8(_mm512_mask_sub_epi8(back, 0xFFFFFFFF00000000, back, _mm512_set1_epi8(63)), found));
}

/* The bit of each lane's column is tested in a word of 32 bits that all lanes have. */
static inline Lanes choose(const uint8_t* bits, int part, Lanes minus, Lanes plus) {
  const Lanes first = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
  const __m512i column = (__m512i)((broadcast(1) << first) << 4 * part);
  const __mmask16 set = _mm512_test_epi32_mask(_mm512_set1_epi32(load<int32_t>(bits)), column);
  return (Lanes)_mm512_mask_blend_epi32(set, (__m512i)minus, (__m512i)plus);
}

static inline void perturb(const int8_t* row, const uint8_t* bits, int8_t a, int8_t* out) {
  const __m512i plus = _mm512_set1_epi8(a), minus = _mm512_sub_epi8(_mm512_setzero_si512(), plus);
  const __m512i signs = _mm512_mask_blend_epi8(load<uint64_t>(bits), minus, plus);
  const __m512i sum = _mm512_adds_epi8(_mm512_loadu_si512(row), signs);
  _mm512_storeu_si512(out, _mm512_max_epi8(sum, _mm512_set1_epi8(-127)));
}

static inline void sum_signs(const uint8_t* bits, int64_t stride, const int8_t* f, int count, int32_t total,
                             int8_t* out) {
  __m512i plus = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int m = 0; m < count; ++m)
    plus = _mm512_mask_add_epi8(plus, load<uint64_t>(bits + m * stride), plus, _mm512_set1_epi8(f[m]));
  _mm512_storeu_si512(out, _mm512_sub_epi8(_mm512_add_epi8(plus, plus), _mm512_set1_epi8((int8_t)total)));
}

}  // namespace avx512
