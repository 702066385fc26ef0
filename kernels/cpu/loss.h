/* The loss's log-sum-exp (section 6). */
#pragma once

#include <algorithm>

#include "operations.h"

namespace INTLM_TARGET {

/* logits has room for a multiple of kTerms entries; those beyond the vocabulary are overwritten. */
static int32_t log_sum_exp2(int16_t* logits, int vocab) {
  const int whole = (vocab + kTerms - 1) / kTerms * kTerms;
  for (int i = vocab; i < whole; ++i) logits[i] = -32768;  // its term is zero
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
