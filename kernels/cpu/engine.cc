/* The engine, compiled once for each target: INTLM_TARGET names it. Section numbers are those of docs/numerics.md. */
#include "bounds.h"
#include "inference.h"
#include "low_rank.h"
#include "token_votes.h"
#include "votes.h"

namespace INTLM_TARGET {

extern const intlm::Kernels kernels;
const intlm::Kernels kernels{INTLM_STRING(INTLM_TARGET),
                             supported,
                             evaluate,
                             accumulate,
                             evaluate_tokens,
                             prepared_size,
                             prepare,
                             infer,
                             generate,
                             multiply,
                             read};

}  // namespace INTLM_TARGET
