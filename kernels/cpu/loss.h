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

/* lse of members' logits, [members][stride], with room for a multiple of kTerms entries; those beyond the vocabulary are
 * overwritten. All members go through one step after the other: a member's steps wait for each other. */
static void log_sum_exp2(int16_t* logits, int64_t stride, int members, int vocab, int32_t* lse) {
  const int whole = (vocab + kTerms - 1) / kTerms * kTerms;
  for (int m = 0; m < members; ++m) {
    int16_t* own = logits + m * stride;
    /* The term of -32768 is zero. Whole vectors are stored, as they will be loaded. */
    for (int i = vocab / kLanes * kLanes; i < whole; i += kLanes) {
      const Wide some = load<Wide>(own + i), lane = load<Wide>(kLane.number);
      store(own + i, lane < (int16_t)(vocab - i) ? some : (Wide){} + INT16_MIN);
    }
    Wide most = load<Wide>(own);
    for (int i = kLanes; i < whole; i += kLanes) {
      const Wide some = load<Wide>(own + i);
      most = some > most ? some : most;
    }
    lse[m] = largest(most);
  }
  for (int m = 0; m < members; m += 2) {
    const bool both = m + 1 < members;
    const int32_t tops[2] = {lse[m], lse[m + both]};
    int64_t sums[2];
    sum_terms(tops, logits + m * stride, both * stride, vocab, sums);
    for (int i = 0; i <= both; ++i) lse[m + i] = intlm_log_sum(tops[i], (uint64_t)sums[i], intlm_log2);
  }
}

}  // namespace INTLM_TARGET
