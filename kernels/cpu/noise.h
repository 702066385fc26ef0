/* Random bits (section 4), as noise of sixteen values a block. */
#pragma once

#include "model.h"

namespace INTLM_TARGET {

struct Counter {
  uint32_t key[4], epoch;
  Counter(const Problem& p, uint32_t epoch_, uint32_t domain = 0)
      : key{(uint32_t)p.seed, (uint32_t)(p.seed >> 32), 0, domain}, epoch(epoch_) {}
};

/* V: a vector of counters. */
template <class V>
INTLM_DEFINE_THREEFRY(V, threefry)

/* The words of sixteen counters (epoch, c1 + n * d1, c2, c3 + n * d3), n from 0: words [16][4], aligned to 64. */
static inline void draw_words(const Counter& c, uint32_t c1, uint32_t d1, uint32_t c2, uint32_t c3, uint32_t d3,
                              uint32_t* words) {
  /* Lane 4 l + i holds number 4 i + l, so that the transposed words come out in order. */
  static const uint32_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  for (int at = 0; at < 16; at += sizeof(Counters) / 4) {
    const Counters n = load<Counters>(order + at);
    Counters x[4] = {(Counters){} + c.epoch, n * d1 + c1, (Counters){} + c2, n * d3 + c3};
    threefry(c.key, x);
    transpose(x, words + at);
  }
}

/* The noise of blocks begin .. begin + count - 1 of (epoch, pair, number); out has room for `drawn_bytes(count)`. */
static void draw(const Counter& c, uint32_t pair, uint32_t number, int begin, int count, int8_t* out) {
  for (int first = 0; first < count; first += 16) {
    alignas(64) uint32_t words[64];
    draw_words(c, pair, 0, number, (uint32_t)(begin + first), 1, words);
    for (int i = 0; i < 4 && first + 4 * i < count; ++i)
      quantile64((const uint8_t*)(words + 16 * i), out + 16 * (first + 4 * i));
  }
}

/* Bytes that `draw` may write for count blocks. */
static inline size_t drawn_bytes(int count) { return (size_t)(count + 3) / 4 * 64; }

}  // namespace INTLM_TARGET
