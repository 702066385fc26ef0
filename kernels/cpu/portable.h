/* The operations in plain C++, sixteen lanes: all operations of `plain`, and all of `neon` but its byte products. */
#pragma once

namespace INTLM_TARGET {

typedef i16x16 Wide;
typedef i8x16 Narrow;
typedef i32x16 Lanes;
typedef u32x16 Counters;
typedef int8_t Encoded;
constexpr int kLanes = 16, kParts = 1, kEncoding = 0, kDepth = 4, kUnits = 1, kTerms = 16;
constexpr bool kChangeFirst = false;

static inline Lanes broadcast(int32_t v) { return (Lanes){} + v; }

static inline Lanes dot2(Lanes pairs, int32_t t) {
  /* Two int16 values an int32 lane, little-endian: the low half is taken by shifting it up and down again. */
  return ((pairs << 16) >> 16) * (int32_t)(int16_t)t + (pairs >> 16) * (t >> 16);
}
static inline Lanes dot2_add(Lanes acc, Lanes pairs, int32_t t) { return acc + dot2(pairs, t); }

static inline Lanes dot_rows(const int8_t* x, int64_t x_stride, const int8_t* b, int64_t b_stride, int count,
                             int rows) {
  Lanes sums = {};
  for (int j = 0; j < rows; ++j) {
    int32_t sum = 0;
    for (int k = 0; k < count; ++k) sum += x[j * x_stride + k] * b[j / 2 * b_stride + k];
    sums[j] = sum;
  }
  return sums;
}
static inline Lanes magnitudes(const int8_t* x, int64_t stride, int count, int rows) {
  Lanes sums = {};
  for (int j = 0; j < rows; ++j)
    for (int k = 0; k < count; ++k) sums[j] += x[j * stride + k] < 0 ? -x[j * stride + k] : x[j * stride + k];
  return sums;
}

static inline Lanes zip(const int8_t* first, int32_t f0, const int8_t* second, int32_t f1) {
  return join(widen(widen(load<i8x16>(first))) * f0, widen(widen(load<i8x16>(second))) * f1);
}
static inline void pair_up(const int8_t* first, const int8_t* second, Lanes out[kParts]) {
  out[0] = join(widen(widen(load<i8x16>(first))), second ? widen(widen(load<i8x16>(second))) : broadcast(1));
}

static inline Wide mulhrs(Wide a, Wide b) {
  return __builtin_convertvector((widen(a) * widen(b) + (1 << 14)) >> 15, Wide);
}
static inline Wide narrow(const Lanes v[kParts]) { return __builtin_convertvector(clamp(v[0], INTLM_MAX16), Wide); }
static inline int column(int, int lane) { return lane; }
static inline Narrow narrow8(Wide v) {
  v = v > INTLM_MAX8 ? (Wide){} + INTLM_MAX8 : v;
  v = v < -INTLM_MAX8 ? (Wide){} - INTLM_MAX8 : v;
  return __builtin_convertvector(v, Narrow);
}
static inline Wide clamp8(Wide v) { return widen(narrow8(v)); }

static inline void quantile64(const uint8_t* bytes, int8_t* out) {
  for (int i = 0; i < 64; ++i) out[i] = intlm_quantile[bytes[i]];
}
static inline void transpose(const Counters x[4], uint32_t* words) {
  for (int l = 0; l < 16; ++l)
    for (int j = 0; j < 4; ++j) words[l % 4 * 16 + l / 4 * 4 + j] = x[j][l];
}

static inline int32_t largest(Wide v) {
  int32_t top = v[0];
  for (int i = 1; i < kLanes; ++i) top = v[i] > top ? v[i] : top;
  return top;
}
static inline int64_t total(Lanes v) {
  int64_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += v[i];
  return sum;
}
static inline void sum_terms(const int32_t* tops, const int16_t* logits, int64_t stride, int vocab, int64_t* sums) {
  for (int row = 0; row < 2; ++row) {
    sums[row] = 0;
    for (int i = 0; i < vocab; ++i)
      sums[row] += intlm_exp2_term((uint32_t)(tops[row] - logits[row * stride + i]), intlm_exp2);
  }
}

static inline void slopes(int32_t lse, const int16_t* logits, const uint8_t* octets, int8_t* out) {
  for (int i = 0; i < 16; ++i) out[i] = (int8_t)((octets[i] - share_of(lse - logits[i])) >> 8);
}

static inline Lanes choose(const uint8_t* bits, int, Lanes minus, Lanes plus) {
  const Lanes column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return broadcast(load<uint16_t>(bits)) >> column & 1 ? plus : minus;
}
static inline void perturb(const int8_t* row, const uint8_t* bits, int8_t a, int8_t* out) {
  for (int j = 0; j < 64; ++j) out[j] = (int8_t)intlm_clamp(row[j] + (bits[j / 8] >> (j % 8) & 1 ? a : -a), INTLM_MAX8);
}
static inline void sum_signs(const uint8_t* bits, int64_t stride, const int8_t* f, int count, int32_t, int8_t* out) {
  std::memset(out, 0, 64);
  for (int m = 0; m < count; ++m, bits += stride)
    for (int j = 0; j < 64; ++j) out[j] = (int8_t)(out[j] + (bits[j / 8] >> (j % 8) & 1 ? f[m] : -f[m]));
}

}  // namespace INTLM_TARGET
