/* The operations that the 256-bit targets share, all but byte products: sixteen lanes, int32 lanes in two halves. */
#pragma once

#include <immintrin.h>

namespace INTLM_TARGET {

typedef i16x16 Wide;
typedef i8x16 Narrow;
typedef u32x8 Counters;
constexpr int kLanes = 16, kParts = 1, kUnits = 1, kTerms = 16;

struct Sums {
  __m256i half[2];
};
typedef Sums Lanes;

/* Copied by halves: the compiler copies the whole through memory in quarters. */
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
static inline Sums clamp(Sums a, int32_t limit) {
  const __m256i most = _mm256_set1_epi32(limit), least = _mm256_set1_epi32(-limit);
  return each([&](int i) { return _mm256_max_epi32(least, _mm256_min_epi32(most, a.half[i])); });
}
static inline Sums join(Sums a, Sums b) {
  return each([&](int i) { return _mm256_blend_epi16(a.half[i], _mm256_slli_epi32(b.half[i], 16), 0xAA); });
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
      for (int j = 0; j < 8; ++j)
        acc[j] = _mm256_add_epi32(acc[j], _mm256_zextsi128_si256(_mm256_castsi256_si128(step(row[j], k))));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) acc[j] = _mm256_hadd_epi32(acc[2 * j], acc[2 * j + 1]);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) acc[j] = _mm256_hadd_epi32(acc[2 * j], acc[2 * j + 1]);
    sums.half[half] = _mm256_add_epi32(_mm256_permute2x128_si256(acc[0], acc[1], 0x20),
                                       _mm256_permute2x128_si256(acc[0], acc[1], 0x31));
  }
  return sums;
}

template <class Encoded>
static inline Sums dot_rows(const Encoded* x, int64_t x_stride, const int8_t* b, int64_t b_stride, int count,
                            int rows) {
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
/* The instruction takes its operands' lanes by fours in turn. */
static inline Wide narrow(const Lanes v[kParts]) { return (Wide)_mm256_packs_epi32(v[0].half[0], v[0].half[1]); }
static inline int column(int, int lane) { return lane % 8 / 4 * 8 + lane / 8 * 4 + lane % 4; }
static inline Wide clamp8(Wide v) {
  return (Wide)_mm256_max_epi16(_mm256_min_epi16((__m256i)v, _mm256_set1_epi16(127)), _mm256_set1_epi16(-127));
}
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

/* Sixteen entries at a time: the shuffle gives those whose index is below 16, and zero where the index is negative. */
static inline void quantile64(const uint8_t* bytes, int8_t* out) {
  for (int i = 0; i < 64; i += 32) {
    const __m256i b = _mm256_loadu_si256((const __m256i*)(bytes + i)),
                  index = _mm256_and_si256(b, _mm256_set1_epi8(127));
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
}

static inline void transpose(const Counters x[4], uint32_t* words) {
  const __m256i low01 = _mm256_unpacklo_epi32((__m256i)x[0], (__m256i)x[1]);
  const __m256i low23 = _mm256_unpacklo_epi32((__m256i)x[2], (__m256i)x[3]);
  const __m256i high01 = _mm256_unpackhi_epi32((__m256i)x[0], (__m256i)x[1]);
  const __m256i high23 = _mm256_unpackhi_epi32((__m256i)x[2], (__m256i)x[3]);
  store(words, _mm256_unpacklo_epi64(low01, low23));
  store(words + 16, _mm256_unpackhi_epi64(low01, low23));
  store(words + 32, _mm256_unpacklo_epi64(high01, high23));
  store(words + 48, _mm256_unpackhi_epi64(high01, high23));
}

/* The instruction finds the least of eight unsigned values: that of 32767 - x, for the largest x. */
static inline int32_t largest(Wide v) {
  const __m128i last = _mm_max_epi16(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  return 32767 - _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_sub_epi16(_mm_set1_epi16(32767), last))) % 65536;
}

/* The terms of eight differences. */
static inline __m256i terms(__m256i below) {
  const __m256i one = _mm256_set1_epi32(1), low8 = _mm256_set1_epi32(255);
  const __m256i found = _mm256_i32gather_epi32((const int*)intlm_exp2, _mm256_and_si256(below, low8), 4);
  const __m256i shift = _mm256_srli_epi32(below, 8), rounding = _mm256_srli_epi32(_mm256_sllv_epi32(one, shift), 1);
  return _mm256_srlv_epi32(_mm256_add_epi32(found, rounding), shift);
}

static inline int64_t total(Lanes v) {
  __m256i all = _mm256_setzero_si256();
  for (int i = 0; i < 2; ++i)
    all = _mm256_add_epi64(all, _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(v.half[i])),
                                                 _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v.half[i], 1))));
  const __m128i last = _mm_add_epi64(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  return _mm_cvtsi128_si64(_mm_add_epi64(last, _mm_unpackhi_epi64(last, last)));
}

static inline void sum_terms(const int32_t* tops, const int16_t* logits, int64_t stride, int vocab, int64_t* sums) {
  for (int row = 0; row < 2; ++row, logits += stride) {
    const __m256i top = _mm256_set1_epi32(tops[row]);
    sums[row] = 0;
    for (int begin = 0; begin < vocab; begin += 1024) {  // a lane holds the sum of 64 terms of at most 2^24
      Lanes acc = broadcast(0);
      for (int i = begin; i < std::min(begin + 1024, vocab); i += 16)
        acc = acc + each([&](int half) {
                const __m128i own = load<__m128i>(logits + i + 8 * half);
                return terms(_mm256_sub_epi32(top, _mm256_cvtepi16_epi32(own)));
              });
      sums[row] += total(acc);
    }
  }
}

static inline void slopes(int32_t lse, const int16_t* logits, const uint8_t* octets, int8_t* out) {
  const __m256i lses = _mm256_set1_epi32(lse), zero = _mm256_setzero_si256();
  const Lanes found = each([&](int i) {
    const __m256i below = _mm256_sub_epi32(lses, _mm256_cvtepi16_epi32(load<__m128i>(logits + 8 * i)));
    const __m256i e = _mm256_mullo_epi32(terms(_mm256_max_epi32(below, zero)), _mm256_set1_epi32(INTLM_MAX8));
    const __m256i share = _mm256_srli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(1 << 15)), 16);
    const __m256i drawn = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(octets + 8 * i)));
    return _mm256_srai_epi32(_mm256_sub_epi32(drawn, share), 8);
  });
  const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(found.half[0], found.half[1]), 0xD8);
  store(out, _mm_packs_epi16(_mm256_castsi256_si128(narrow), _mm256_extracti128_si256(narrow, 1)));
}

/* The bit of each lane's column is tested in a word of 16 bits that all lanes have. */
static inline Lanes choose(const uint8_t* bits, int, Lanes minus, Lanes plus) {
  const __m256i word = _mm256_set1_epi32(load<uint16_t>(bits));
  return each([&](int i) {
    const __m256i column = _mm256_slli_epi32(_mm256_setr_epi32(1, 2, 4, 8, 256, 512, 1024, 2048), 4 * i);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(word, column), column);
    return _mm256_add_epi32(minus.half[i], _mm256_and_si256(set, _mm256_sub_epi32(plus.half[i], minus.half[i])));
  });
}

/* -1 in the bytes of 32 units whose bits are 1, else 0: each byte is given the byte that holds its bit. */
static inline __m256i bytes_of(const uint8_t* bits) {
  const __m256i from = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i own = _mm256_set1_epi64x((int64_t)0x8040201008040201);
  const __m256i held = _mm256_shuffle_epi8(_mm256_set1_epi32(load<int32_t>(bits)), from);
  return _mm256_cmpeq_epi8(_mm256_and_si256(held, own), own);
}

static inline void perturb(const int8_t* row, const uint8_t* bits, int8_t a, int8_t* out) {
  const __m256i by = _mm256_set1_epi8(a), twice = _mm256_add_epi8(by, by), least = _mm256_set1_epi8(-127);
  for (int i = 0; i < 64; i += 32) {
    const __m256i signs = _mm256_sub_epi8(_mm256_and_si256(bytes_of(bits + i / 8), twice), by);
    store(out + i, _mm256_max_epi8(_mm256_adds_epi8(load<__m256i>(row + i), signs), least));
  }
}

static inline void sum_signs(const uint8_t* bits, int64_t stride, const int8_t* f, int count, int32_t total,
                             int8_t* out) {
  __m256i plus[2] = {};
  for (int m = 0; m < count; ++m, bits += stride) {
    const __m256i by = _mm256_set1_epi8(f[m]);
    for (int i = 0; i < 2; ++i) {
      plus[i] = _mm256_add_epi8(plus[i], _mm256_and_si256(bytes_of(bits + 4 * i), by));
    }
  }
  for (int i = 0; i < 2; ++i)
    store(out + 32 * i, _mm256_sub_epi8(_mm256_add_epi8(plus[i], plus[i]), _mm256_set1_epi8((int8_t)total)));
}

}  // namespace INTLM_TARGET
