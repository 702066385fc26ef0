/* A language model of integers, one stream of it: docs/numerics.md in C99.
 *
 * Only <stdint.h> and <stddef.h>: no heap, no library, no floating point, no division. What is read and written is in
 * an intlm_model_t that the caller owns; the weights (weights.h, weights.c) are constant. Tokens are below
 * INTLM_VOCAB, and token 0 divides documents. Logits and losses: 256 is one bit.
 */
#ifndef INTLM_H
#define INTLM_H

#include <stddef.h>
#include <stdint.h>

#include "weights.h"

#define INTLM_WIDEST (INTLM_FEED_FORWARD > INTLM_HIDDEN ? INTLM_FEED_FORWARD : INTLM_HIDDEN)

typedef struct {
  int8_t state[INTLM_LAYERS][INTLM_STATE]; /* what the model remembers; 127 is one */
  int16_t logits[INTLM_VOCAB];             /* what it expects next */
  /* Of the step that is being made. What is multiplied by a matrix is widened once for all of its rows. */
  int16_t normed[INTLM_HIDDEN], operand[INTLM_WIDEST];
  int8_t residual[INTLM_HIDDEN];
#if INTLM_SCRATCH
  uint8_t scratch[INTLM_SCRATCH]; /* the cell's */
#endif
} intlm_model_t;

/* Read a token: the states and the logits become those after it. Token 0 clears the states first, so a document
 * begins with it whatever was read before. */
void intlm_step(intlm_model_t* model, uint16_t token);

/* What it costs that `token` comes next: the cross-entropy, 0 to 36,865. */
int32_t intlm_loss(const intlm_model_t* model, uint16_t token);

/* The cost of a document of `count` tokens, none of them 0, from its beginning; the model has read it then. */
int64_t intlm_text_loss(intlm_model_t* model, const uint16_t* tokens, size_t count);

/* Draw the token that comes next, by the random word of `position` in the stream of `seed`; it is not read yet.
 * inverse: 256 / temperature, 1 to 32,768. top_k: only the so many likeliest can be drawn, 1 to INTLM_VOCAB. */
uint16_t intlm_draw(const intlm_model_t* model, uint64_t seed, uint32_t position, int32_t inverse, int32_t top_k);

#endif
