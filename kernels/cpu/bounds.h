/* The machine's peak rates, for `intlm bench`. */
#pragma once

#include "model.h"

namespace INTLM_TARGET {

/* Byte products in registers, with enough sums side by side to hide the latency of one. */
static int64_t multiply(int32_t* sink) {
  constexpr int kChains = kSums >= 24 ? 12 : 6, kTurns = 2048;
  Buffer<int32_t> start(16 * kChains);
  for (size_t i = 0; i < start.size(); ++i) start[i] = (*sink + (int32_t)i) & 0x7F7F7F7F;
  Sums x = load<Sums>(start.data()), acc[kChains];
  const Sums w = load<Sums>(start.data() + 16);
#pragma GCC unroll 12
  for (int j = 0; j < kChains; ++j) acc[j] = load<Sums>(start.data() + 16 * j);
  for (int turn = 0; turn < kTurns; ++turn)
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) multiply_bytes(acc[j], x, w);
#pragma GCC unroll 12
  for (int j = 0; j < kChains; ++j) store(start.data() + 16 * j, acc[j]);
  *sink ^= start[*sink & 15];
  return kTurns * kChains * 64;
}

static void read(const int8_t* buffer, int64_t bytes, int32_t* sink) {
  Lanes all[4] = {};
  for (int64_t i = 0; i + 256 <= bytes; i += 256)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) all[j] = all[j] + load<Lanes>(buffer + i + 64 * j);
  int32_t kept[16];
  store(kept, all[0] + all[1] + (all[2] + all[3]));
  *sink ^= kept[*sink & 15];
}

}  // namespace INTLM_TARGET
