/* The operations that the engine is written in, on the target that INTLM_TARGET names: NAME.h implements this list, with
 * the plain C++ of portable.h where the target has nothing better. Everything is in a namespace of the target's name, so that one
 * library holds them all.
 *
 * Its sizes and types:
 *   kLanes        lanes of a Wide (int16) and a Narrow (int8) vector; kParts = kLanes / 16
 *   Lanes         sixteen int32 lanes, with + - >> and *; Sums: the same as `dot` holds them
 *   Counters      uint32 lanes, 8 or 16, for the random bits
 *   Encoded       an activation as `dot` takes it: x + kEncoding. As x + 128 where the instruction wants an unsigned
 *                 operand, with the products' constant part 128 * sum(w) subtracted beforehand; as int16 for AVX2, whose
 *                 byte products saturate; as it is elsewhere. kDepth: how many `dot` takes at once
 *   kSums, kUnits vectors of sums that the registers hold beside their operands; vectors of outputs taken together
 *   kChangeFirst  whether a block's sums start from their perturbation, as no registers are left to keep it
 *   kTerms        logits that `sum_terms` and `slopes` take at once
 *
 * Its functions:
 *   supported()                  whether this processor has the target's instructions
 *   broadcast(v)                 v in every lane of Lanes
 *   clamp(v, limit)              lanes of v in [-limit, limit]
 *   join(low, high)              lanes of int16 pairs: low's low half below high's
 *   dot(acc, x, w)               acc[o] += sum over j < kDepth of x[j] * w[o][j]; w: 16 * kDepth bytes
 *   multiply_bytes(acc, x, w)    acc[o] += sum over j < 4 of x[o][j] * w[o][j] in the fastest exact way, all in registers:
 *                                bytes in Sums, those of x from 0 to 127. x comes back as it was, but the compiler does not
 *                                know, so that no product serves twice
 *   dot_rows(x, xs, b, bs, n, rows)  [j]: the sum over k < n of x[j * xs + k] * b[j / 2 * bs + k], x encoded, for sixteen
 *                                rows j, of which those from `rows` (an even number) on are not read
 *   magnitudes(x, xs, n, rows)   [j]: the sum over k < n of |x[j * xs + k]|, for sixteen rows likewise
 *   pair_up(a, b, out)           kLanes int8 values of two rows as int16 pairs in the order of the sums' lanes; ones for
 *                                the second row if b is null
 *   zip(a, f, b, g)              sixteen int8 values of two rows as int16 pairs, times f and g
 *   dot2(pairs, t)               each lane's pair times the pair t, summed; dot2_add(acc, pairs, t): added to acc
 *   narrow(v)                    kParts of Lanes, saturated to int16. At -32768 rather than -32767 on x86: with an odd
 *                                multiplier below 2^14 the rescaled value is the same
 *   column(part, lane)           which output of a Wide vector `narrow` makes of a lane
 *   mulhrs(a, b)                 (a * b + 2^14) >> 15 of int16 lanes
 *   narrow8(v), clamp8(v)        int16 lanes saturated to [-127, 127], as int8 and as int16
 *   lookup(v, table)             table[v + 128], lane by lane
 *   quantile64(bytes, out)       QUANTILE of each of 64 random bytes
 *   transpose(x, words)          the four words of every lane of x[4] together, as the random words of the block that
 *                                the lane counts: `draw` says which
 *   largest(v)                   the largest lane of a Wide vector
 *   total(v)                     the sum of the lanes, in int64
 *   sum_terms(tops, logits, stride, vocab, sums)  the sums of the EXP2 terms of top - logit (section 6) of two rows; up to
 *                                the next multiple of kTerms, logits are -32768
 *   slopes(lse, logits, octets, out)  (octet - share) >> 8 of kTerms logits, share that of `share_of` (section 6)
 *   choose(bits, part, minus, plus)  a lane of `plus` where its output's bit is 1, else of `minus`, for a part of kLanes
 *                                outputs as `column` orders them; bits: theirs in order, bits[0]'s least significant first
 *   perturb(row, bits, a, out)  row[j] + a where bit j is 1, else row[j] - a, saturated to [-127, 127], for 64 values
 *   sum_signs(bits, stride, f, count, total, out)  out[j] = the sum over m < count of f[m] where bit j of row m is 1, else
 *                                -f[m], for 64 bits j; int8, |f| adding up to at most 127; total: the sum of f
 */
#pragma once

#ifndef INTLM_TARGET
#define INTLM_TARGET plain
#endif
#define INTLM_QUOTE(x) #x
#define INTLM_STRING(x) INTLM_QUOTE(x)

#include <algorithm>

#include "vectors.h"
#include INTLM_STRING(INTLM_TARGET.h)

namespace INTLM_TARGET {

/* Encoded activations as int16, and values saturated to int8 as encoded activations. */
static inline Wide decode(const int16_t* at) { return load<Wide>(at); }
template <class Byte>
static inline Wide decode(const Byte* at) {
  return widen(load<Narrow>(at) ^ (int8_t)kEncoding);
}
static inline void encode(int16_t* at, Wide v) { store(at, clamp8(v)); }
template <class Byte>
static inline void encode(Byte* at, Wide v) {
  store(at, narrow8(v) ^ (int8_t)kEncoding);
}

/* v >> shift, rounded. */
static inline Lanes rounding_shift(Lanes v, int shift) {
  return shift ? (v + broadcast(1 << (shift - 1))) >> shift : v;
}

}  // namespace INTLM_TARGET
