/* One stream of an integer language model: docs/numerics.md in C99.
 *
 * It needs only <stdint.h> and <stddef.h>: no heap, no library, no floating point, no division. All variables are in an
 * intlm_model_t that the caller owns; the weights (weights.h, weights.c) are constant. Tokens are below INTLM_VOCAB,
 * and token 0 separates documents. In logits and losses 256 is one bit.
 */
#ifndef INTLM_H
#define INTLM_H

#include <stddef.h>
#include <stdint.h>

#include "weights.h"

#define INTLM_WIDEST (INTLM_FEED_FORWARD > INTLM_HIDDEN ? INTLM_FEED_FORWARD : INTLM_HIDDEN)

typedef struct {
  int8_t state[INTLM_LAYERS][INTLM_STATE]; /* the recurrent states; 127 is 1.0 */
  int16_t logits[INTLM_VOCAB];             /* the logits of the next token */
  /* The buffers of a step. The operand of a matrix is widened to int16 once for all of the matrix's rows. */
  int16_t normed[INTLM_HIDDEN], operand[INTLM_WIDEST];
  int8_t residual[INTLM_HIDDEN];
#if INTLM_SCRATCH
  uint8_t scratch[INTLM_SCRATCH]; /* the cell's */
#endif
} intlm_model_t;

/* Reads a token and updates the states and the logits. Token 0 clears the states first, so a document that begins
 * with it does not depend on anything read before. */
void intlm_step(intlm_model_t* model, uint16_t token);

/* The loss if `token` comes next: the cross-entropy, 0 to 36,865. */
int32_t intlm_loss(const intlm_model_t* model, uint16_t token);

/* The loss of a whole document of `count` tokens, none of them 0. The model reads it. */
int64_t intlm_text_loss(intlm_model_t* model, const uint16_t* tokens, size_t count);

/* Samples the next token, by the random word of `position` in the stream of `seed`; does not read it yet.
 * inverse: 256 / temperature, 1 to 32,768. top_k: sample from the top_k most likely tokens, 1 to INTLM_VOCAB. */
uint16_t intlm_draw(const intlm_model_t* model, uint64_t seed, uint32_t position, int32_t inverse, int32_t top_k);

#endif
