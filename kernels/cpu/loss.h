/* The loss's log-sum-exp (section 6). */
#pragma once

#include <algorithm>

#include "operations.h"

namespace INTLM_TARGET {

struct Lane {
  int16_t number[kLanes] = {};
  constexpr Lane() {
    for (int i = 0; i < kLanes; ++i) number[i] = (int16_t)i;
  }
};
constexpr Lane kLane;

/* logits has room for a multiple of kTerms entries; those beyond the vocabulary are overwritten. */
static int32_t log_sum_exp2(int16_t* logits, int vocab) {
  const int whole = (vocab + kTerms - 1) / kTerms * kTerms;
  /* The term of -32768 is zero. Whole vectors are stored, as they will be loaded. */
  for (int i = vocab / kLanes * kLanes; i < whole; i += kLanes) {
    const Wide some = load<Wide>(logits + i), lane = load<Wide>(kLane.number);
    store(logits + i, lane < (int16_t)(vocab - i) ? some : (Wide){} + INT16_MIN);
  }
  Wide most = load<Wide>(logits);
  for (int i = kLanes; i < whole; i += kLanes) {
    const Wide some = load<Wide>(logits + i);
    most = some > most ? some : most;
  }
  const int32_t top = largest(most);
  int64_t sum = 0;
  for (int begin = 0; begin < whole; begin += 1024) {  // a lane holds the sum of 64 terms of at most 2^24
    Lanes acc = broadcast(0);
    for (int i = begin; i < std::min(begin + 1024, whole); i += kTerms) acc = add_terms(acc, top, logits + i);
    int32_t lanes[16];
    store(lanes, acc);
    for (int32_t lane : lanes) sum += lane;
  }
  return intlm_log_sum(top, (uint64_t)sum, intlm_log2);
}

}  // namespace INTLM_TARGET
