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

/* Lane 4 l + i counts number 4 i + l, so that the transposed words come out in order. */
constexpr uint32_t kOrder[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

/* The words of sixteen blocks, [16][4], aligned to 64. counter(at, x) sets words 1 to 3 of the counters of lanes `at` on;
 * lane i is that of block kOrder[i]. */
template <class Set>
static inline void draw_words(const Counter& c, uint32_t* words, const Set& counter) {
  for (int at = 0; at < 16; at += sizeof(Counters) / 4) {
    Counters x[4] = {(Counters){} + c.epoch};
    counter(at, x);
    threefry(c.key, x);
    transpose(x, words + at);
  }
}

/* The words of sixteen blocks of (epoch, pair, number), from `begin` on. */
static inline void draw_words(const Counter& c, uint32_t pair, uint32_t number, uint32_t begin, uint32_t* words) {
  draw_words(c, words, [=](int at, Counters x[4]) {
    x[1] = (Counters){} + pair, x[2] = (Counters){} + number, x[3] = load<Counters>(kOrder + at) + begin;
  });
}

/* The noise of blocks begin .. begin + count - 1 of (epoch, pair, number); out has room for `drawn_bytes(count)`. */
static void draw(const Counter& c, uint32_t pair, uint32_t number, int begin, int count, int8_t* out) {
  for (int first = 0; first < count; first += 16) {
    alignas(64) uint32_t words[64];
    draw_words(c, pair, number, (uint32_t)(begin + first), words);
    for (int i = 0; i < 4 && first + 4 * i < count; ++i)
      quantile64((const uint8_t*)(words + 16 * i), out + 16 * (first + 4 * i));
  }
}

/* Bytes that `draw` may write for count blocks. */
static inline size_t drawn_bytes(int count) { return (size_t)(count + 3) / 4 * 64; }

}  // namespace INTLM_TARGET
