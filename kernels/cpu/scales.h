/* What the engine makes of a configuration once: the scales of docs/numerics.md, sections 2, 5.3 and 7. */
#ifndef INTLM_SCALES_H
#define INTLM_SCALES_H

#include "../fixed_point.h"

#define INTLM_VECTOR_SHIFT 1

static inline uint32_t intlm_isqrt(uint64_t x) {
  uint64_t root = 0;
  for (int bit = 31; bit >= 0; --bit) {
    uint64_t trial = root | ((uint64_t)1 << bit);
    if (trial * trial <= x) root = trial;
  }
  return (uint32_t)root;
}

/* oddroot(2^bits, n); bits <= 62. */
static inline int32_t intlm_odd_root(int bits, uint32_t n) {
  return (int32_t)(2 * intlm_isqrt(((uint64_t)1 << bits) / ((uint64_t)4 * n)) + 1);
}

static inline intlm_rescale_t intlm_activation_rescale(uint32_t fan_in, int extra_shift) {
  intlm_rescale_t scale;
  int shift = 0;
  while (((uint32_t)256 << (2 * shift)) < fan_in) ++shift;
  scale.shift = shift + extra_shift;
  scale.multiplier = intlm_odd_root(2 * (11 + shift), fan_in);
  return scale;
}

static inline intlm_rescale_t intlm_logit_rescale(uint32_t fan_in) {
  intlm_rescale_t scale;
  int shift = 0;
  while (((uint32_t)16 << (2 * shift)) < fan_in) ++shift;
  scale.shift = shift;
  scale.multiplier = intlm_odd_root(2 * (15 + shift), fan_in);
  return scale;
}

static inline int32_t intlm_rank_multiplier(uint32_t rank) { return (int32_t)((intlm_isqrt(65536u / rank) + 1) >> 1); }

static inline int32_t intlm_mean_multiplier(uint32_t count) { return (int32_t)((((uint32_t)1 << 25) / count + 1) >> 1); }

#endif
