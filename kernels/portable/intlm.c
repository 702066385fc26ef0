/* See intlm.h. Section numbers are those of docs/numerics.md. */
#include "intlm.h"

#include "fixed_point.h"

static int8_t saturate(int32_t x) { return (int8_t)intlm_clamp(x, INTLM_MAX8); }

/* Rows of a matrix that are computed together: their operand is loaded once, and their sums are rescaled together. */
#define ROWS INTLM_ROWS
#if INTLM_HIDDEN % ROWS || INTLM_FEED_FORWARD % ROWS
#error "the sizes of hidden and feed-forward must be multiples of INTLM_ROWS"
#endif

/* ROWS rows of a matrix by x, rescaled: int16 values. */
static inline void multiply(const int8_t* rows, const int16_t* x, int32_t fan_in, intlm_rescale_t scale, int32_t* out) {
  int32_t sum[ROWS], i, k;
  for (k = 0; k < ROWS; ++k) sum[k] = 0; /* not by an initializer, which compilers turn into a call of memset */
  for (i = 0; i < fan_in; ++i, ++rows)
    for (k = 0; k < ROWS; ++k) sum[k] += rows[k * fan_in] * x[i];
  for (k = 0; k < ROWS; ++k) out[k] = intlm_rescale(sum[k], scale);
}

/* Section 5.3: divided by the mean magnitude. */
static void norm(const int8_t* x, int16_t* out) {
  int32_t total = 0, gain, i;
  for (i = 0; i < INTLM_HIDDEN; ++i) total += x[i] < 0 ? -x[i] : x[i];
  gain = intlm_reciprocal[intlm_mean(total, INTLM_MEAN_MULTIPLIER)];
  for (i = 0; i < INTLM_HIDDEN; ++i) out[i] = saturate(intlm_q15(x[i] * (1 << INTLM_ONE_BITS), gain));
}

/* What ROWS units of the cell are driven by: the input's part, the remembered part, their biases. */
static void drive(const intlm_model_t* m, const int8_t* input_rows, const int8_t* state_rows, const int8_t* bias,
                  const int8_t* table, int32_t* out) {
  static const intlm_rescale_t from_input = INTLM_INPUT_RESCALE, from_state = INTLM_STATE_RESCALE;
  int32_t recalled[ROWS], i;
  multiply(input_rows, m->normed, INTLM_HIDDEN, from_input, out);
  multiply(state_rows, m->operand, INTLM_HIDDEN, from_state, recalled);
  for (i = 0; i < ROWS; ++i) out[i] = saturate(out[i] + recalled[i] + bias[i]);
  if (table)
    for (i = 0; i < ROWS; ++i) out[i] = table[out[i] + 128];
}

#include "cell.h" /* the cell's step: the next state, from m->normed and the state; it uses m->operand and m->scratch */

/* Section 5.2, the second half of a layer. */
static void feed_forward(intlm_model_t* m, const intlm_layer_t* layer) {
  static const intlm_rescale_t up = INTLM_INPUT_RESCALE, down = INTLM_WIDE_RESCALE;
  int32_t found[ROWS], i, k;
  for (i = 0; i < INTLM_FEED_FORWARD; i += ROWS) {
    multiply(layer->up + i * INTLM_HIDDEN, m->normed, INTLM_HIDDEN, up, found);
    for (k = 0; k < ROWS; ++k) m->operand[i + k] = saturate(found[k] < 0 ? -found[k] : found[k]);
  }
  for (i = 0; i < INTLM_HIDDEN; i += ROWS) {
    multiply(layer->down + i * INTLM_FEED_FORWARD, m->operand, INTLM_FEED_FORWARD, down, found);
    for (k = 0; k < ROWS; ++k) m->residual[i + k] = saturate(m->residual[i + k] + found[k]);
  }
}

/* Section 5.2. */
void intlm_step(intlm_model_t* m, uint16_t token) {
  static const intlm_rescale_t to_logit = INTLM_LOGIT_RESCALE;
  int32_t found[ROWS], l, i, k;
  for (i = 0; i < INTLM_HIDDEN; ++i) m->residual[i] = intlm_embedding[token * INTLM_HIDDEN + i];
  for (l = 0; l < INTLM_LAYERS; ++l) {
    int8_t* state = m->state[l];
    if (token == 0)
      for (i = 0; i < INTLM_STATE; ++i) state[i] = 0;
    norm(m->residual, m->normed);
    cell(m, &intlm_layers[l], state);
    for (i = 0; i < INTLM_HIDDEN; ++i)
      m->residual[i] = saturate(m->residual[i] + intlm_rshift(state[i], INTLM_OUTPUT_SHIFT));
    norm(m->residual, m->normed);
    feed_forward(m, &intlm_layers[l]);
  }
  norm(m->residual, m->normed);
  for (i = 0; i < INTLM_VOCAB; i += ROWS) { /* the head has rows of zeros up to a multiple of ROWS */
    multiply(intlm_head + i * INTLM_HIDDEN, m->normed, INTLM_HIDDEN, to_logit, found);
    for (k = 0; k < ROWS && i + k < INTLM_VOCAB; ++k) m->logits[i + k] = (int16_t)found[k];
  }
}

/* Section 6. */
int32_t intlm_loss(const intlm_model_t* m, uint16_t token) {
  int32_t largest = m->logits[0], i;
  uint64_t sum = 0;
  for (i = 1; i < INTLM_VOCAB; ++i)
    if (m->logits[i] > largest) largest = m->logits[i];
  for (i = 0; i < INTLM_VOCAB; ++i) sum += intlm_exp2_term((uint32_t)(largest - m->logits[i]), intlm_exp2);
  return intlm_log_sum(largest, sum, intlm_log2) - m->logits[token];
}

int64_t intlm_text_loss(intlm_model_t* m, const uint16_t* tokens, size_t count) {
  int64_t total = 0;
  size_t i;
  intlm_step(m, 0);
  for (i = 0; i < count; ++i) {
    total += intlm_loss(m, tokens[i]);
    intlm_step(m, tokens[i]);
  }
  return total;
}

/* Section 10. */
uint16_t intlm_draw(const intlm_model_t* m, uint64_t seed, uint32_t position, int32_t inverse, int32_t top_k) {
  uint32_t key[4], word[4] = {0, 0, 0, 0};
  key[0] = (uint32_t)seed, key[1] = (uint32_t)(seed >> 32), key[2] = 0, key[3] = 2;
  word[0] = position;
  intlm_threefry(key, word);
  return (uint16_t)intlm_sample(m->logits, INTLM_VOCAB, word[0], inverse, top_k, intlm_exp2);
}
