/* Plain C++ for any processor. */
#pragma once

#include "portable.h"

namespace plain {

static bool supported() { return true; }

typedef Lanes Sums;
constexpr int kSums = 4;

static inline Sums dot(Sums acc, const Encoded* x, const int8_t* w) {
  for (int o = 0; o < 16; ++o)
    for (int j = 0; j < 4; ++j) acc[o] += x[j] * w[4 * o + j];
  return acc;
}

static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  asm volatile("" : "+m"(x));
  const i16x32 from = (i16x32)x, by = (i16x32)w;
  const i32x16 pairs = (i32x16)((from << 8 >> 8) * (by << 8 >> 8) + (from >> 8) * (by >> 8));
  acc += (pairs << 16 >> 16) + (pairs >> 16);
}

}  // namespace plain
