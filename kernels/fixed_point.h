/* The arithmetic of docs/numerics.md, version 3, one value at a time, in C99.
 *
 * The one source of these rules for everything native: the CPU engine, the exported C. Only <stdint.h>; no
 * floating point, no division, no undefined behaviour: right shifts of negative numbers are
 * arithmetic on every compiler that is supported (gcc, clang), and the tests run under UBSan.
 */
#ifndef INTLM_FIXED_POINT_H
#define INTLM_FIXED_POINT_H

#include <stdint.h>

#define INTLM_MAX8 127
#define INTLM_MAX16 32767
#define INTLM_ONE_BITS 4
#define INTLM_GATE_ONE 127
#define INTLM_GATE_MULTIPLIER 129
#define INTLM_STATE_SHIFT 3

/* Section 2: primitives. */

static inline int32_t intlm_clamp(int32_t x, int32_t limit) { return x > limit ? limit : x < -limit ? -limit : x; }

static inline int32_t intlm_rshift(int32_t x, int shift) {
  return shift == 0 ? x : (x + ((int32_t)1 << (shift - 1))) >> shift;
}

static inline int32_t intlm_q15(int32_t a, int32_t b) { return (a * b + (1 << 14)) >> 15; }

/* From an int32 accumulator to an int16 value. */
typedef struct {
  int32_t shift, multiplier;
} intlm_rescale_t;

static inline int32_t intlm_rescale(int32_t accumulator, intlm_rescale_t scale) {
  return intlm_q15(intlm_clamp(intlm_rshift(accumulator, scale.shift), INTLM_MAX16), scale.multiplier);
}

/* Sixteen times the mean magnitude, from the sum of magnitudes. */
static inline int32_t intlm_mean(int32_t total, int32_t multiplier) { return (total * multiplier + (1 << 19)) >> 20; }

/* Section 4: Threefry-4x32-13 of the counter x, in place. word: uint32_t, or in C++ a vector of them. */
#define INTLM_DEFINE_THREEFRY(word, name)                                                                              \
  static inline void name(const uint32_t* key, word x[4]) {                                                            \
    static const int rotations[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}}; \
    const uint32_t k[5] = {key[0], key[1], key[2], key[3], 0x1BD11BDAu ^ key[0] ^ key[1] ^ key[2] ^ key[3]};           \
    int round, j;                                                                                                      \
    for (j = 0; j < 4; ++j) x[j] += k[j];                                                                              \
    INTLM_UNROLL_13                                                                                                    \
    for (round = 0; round < 13; ++round) {                                                                             \
      const int b = round % 2 == 0 ? 1 : 3, d = 4 - b, left = rotations[round % 8][0],                                 \
                right = rotations[round % 8][1];                                                                       \
      x[0] += x[b];                                                                                                    \
      x[b] = ((x[b] << left) | (x[b] >> (32 - left))) ^ x[0];                                                          \
      x[2] += x[d];                                                                                                    \
      x[d] = ((x[d] << right) | (x[d] >> (32 - right))) ^ x[2];                                                        \
      if (round % 4 == 3) {                                                                                            \
        for (j = 0; j < 4; ++j) x[j] += k[(round / 4 + 1 + j) % 5];                                                    \
        x[3] += (uint32_t)(round / 4 + 1);                                                                             \
      }                                                                                                                \
    }                                                                                                                  \
  }
#if defined(__GNUC__) && !defined(__clang__)
#define INTLM_UNROLL_13 _Pragma("GCC unroll 13")
#else
#define INTLM_UNROLL_13
#endif
INTLM_DEFINE_THREEFRY(uint32_t, intlm_threefry)

/* Section 6: loss. `exp2_table` is EXP2, `log2_table` LOG2. */

static inline uint32_t intlm_exp2_term(uint32_t below, const int32_t* exp2_table) {
  uint32_t whole = below >> 8 > 26 ? 26 : below >> 8;
  return ((uint32_t)exp2_table[below & 255] + (((uint32_t)1 << whole) >> 1)) >> whole;
}

/* lse, given the largest logit and the exact sum of the terms, in [2^24, 2^40]. */
static inline int32_t intlm_log_sum(int32_t largest, uint64_t sum, const int16_t* log2_table) {
#if defined(__GNUC__) && defined(__cplusplus) /* in C it would need the compiler's library on a core without it */
  const int p = 63 - __builtin_clzll(sum);
#else
  int p = 24;
  while (sum >> (p + 1)) ++p;
#endif
  return largest + ((p - 24) << 8) + log2_table[(sum >> (p - 10)) & 1023];
}

/* Section 10: sampling. inverse: 256 / temperature; top_k: 1 to vocab; word: the random word. */
static inline int32_t intlm_sample(const int16_t* logits, int32_t vocab, uint32_t word, int32_t inverse, int32_t top_k,
                                   const int32_t* exp2_table) {
  int32_t largest = logits[0], least = -32768, ties = 0, i, cut = 0;
  uint32_t total = 0, drawn, sum = 0;
  for (i = 1; i < vocab; ++i)
    if (logits[i] > largest) largest = logits[i];
  if (top_k < vocab) { /* the k-th largest logit, bit by bit; then how many equal to it are kept */
    int32_t above = 0, bit;
    for (bit = 1 << 15; bit; bit >>= 1) {
      int32_t count = 0;
      for (i = 0; i < vocab; ++i) count += logits[i] >= least + bit;
      if (count >= top_k) least += bit;
    }
    for (i = 0; i < vocab; ++i) above += logits[i] > least;
    ties = top_k - above;
  }
  while ((vocab - 1) >> (cut + 6)) ++cut;
  for (i = 0; i < vocab; ++i) {
    const uint32_t term = intlm_exp2_term((uint32_t)(((largest - logits[i]) * inverse + 128) >> 8), exp2_table) >> cut;
    total += logits[i] > least ? term : 0; /* with no branch, for vectors */
  }
  if (ties)
    total +=
        (uint32_t)ties * (intlm_exp2_term((uint32_t)(((largest - least) * inverse + 128) >> 8), exp2_table) >> cut);
  drawn = (uint32_t)(((uint64_t)word * total) >> 32);
  for (i = 0; i < vocab; ++i) {
    if (logits[i] < least || (logits[i] == least && ties-- <= 0)) continue;
    sum += intlm_exp2_term((uint32_t)(((largest - logits[i]) * inverse + 128) >> 8), exp2_table) >> cut;
    if (sum > drawn) return i;
  }
  return vocab - 1; /* not reached: the sum of all is above what is drawn */
}

#endif
