/* Vectors of the compiler's own (GCC and clang vector extensions), and the operations on them that all targets share. */
#pragma once

#include <cstdint>
#include <cstring>

#include "../fixed_point.h"
#include "../tables.h"

namespace INTLM_TARGET {

typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef int16_t i16x32 __attribute__((vector_size(64)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef int8_t i8x32 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

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
static inline i16x32 widen(i8x32 v) { return __builtin_convertvector(v, i16x32); }
static inline i32x16 widen(i16x16 v) { return __builtin_convertvector(v, i32x16); }

/* The sum of int8 values. */
static inline int32_t sum_row(const int8_t* x, int count) {
  int32_t sum = 0;
  for (int k = 0; k < count; ++k) sum += x[k];
  return sum;
}

/* 127 times a probability, 2^8 = 1, from its distance below lse (section 6). */
static inline int32_t share_of(int32_t below) {
  return (INTLM_MAX8 * (int32_t)intlm_exp2_term((uint32_t)(below > 0 ? below : 0), intlm_exp2) + (1 << 15)) >> 16;
}

static inline i8x16 lookup(i8x16 v, const int8_t* table) {
  i8x16 found;
  for (int i = 0; i < 16; ++i) found[i] = table[v[i] + 128];
  return found;
}

static inline i32x16 clamp(i32x16 v, int32_t limit) {
  v = v > limit ? (i32x16){} + limit : v;
  return v < -limit ? (i32x16){} - limit : v;
}
static inline i32x16 join(i32x16 low, i32x16 high) { return (low & 0xFFFF) | (i32x16)((u32x16)high << 16); }

}  // namespace INTLM_TARGET
