/* 64-bit Arm with byte products (ARMv8.2-A's dot product). */
#pragma once

#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "portable.h"

namespace neon {

static bool supported() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;
#endif
}

struct Sums {
  int32x4_t quarter[4];
};
constexpr int kSums = 6;

static inline Sums dot(Sums acc, const Encoded* x, const int8_t* w) {
  const int8x16_t four = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)x));
  for (int i = 0; i < 4; ++i) acc.quarter[i] = vdotq_s32(acc.quarter[i], four, vld1q_s8(w + 16 * i));
  return acc;
}

static inline void multiply_bytes(Sums& acc, Sums& x, const Sums& w) {
  for (int i = 0; i < 4; ++i)
    acc.quarter[i] = vdotq_s32(acc.quarter[i], vreinterpretq_s8_s32(x.quarter[i]), vreinterpretq_s8_s32(w.quarter[i]));
}

}  // namespace neon
