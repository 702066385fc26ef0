/* See intlm.h. Section numbers are those of docs/numerics.md. */
#include "intlm.h"

#include "fixed_point.h"

static int8_t saturate(int32_t x) { return (int8_t)intlm_clamp(x, INTLM_MAX8); }

static int32_t dot(const int8_t *weights, const int8_t *x, int32_t count) {
  int32_t sum = 0, i;
  for (i = 0; i < count; ++i) sum += (int32_t)weights[i] * x[i];
  return sum;
}

/* Section 5.3: divided by the mean magnitude. */
static void norm(const int8_t *x, int8_t *out) {
  int32_t total = 0, gain, i;
  for (i = 0; i < INTLM_HIDDEN; ++i) total += x[i] < 0 ? -x[i] : x[i];
  gain = intlm_reciprocal[intlm_mean(total, INTLM_MEAN_MULTIPLIER)];
  for (i = 0; i < INTLM_HIDDEN; ++i) out[i] = saturate(intlm_q15(x[i] * (1 << INTLM_ONE_BITS), gain));
}

/* What a unit of the cell is driven by: the input's part, the state's, its bias. */
static int8_t drive(const int8_t *input_row, const int8_t *input, const int8_t *state_row, const int8_t *state, int8_t bias,
                    const int8_t *table) {
  static const intlm_rescale_t from_input = INTLM_INPUT_RESCALE, from_state = INTLM_STATE_RESCALE;
  const int8_t x = saturate(intlm_rescale(dot(input_row, input, INTLM_HIDDEN), from_input) +
                            intlm_rescale(dot(state_row, state, INTLM_HIDDEN), from_state) + bias);
  return table ? table[x + 128] : x;
}

static void cell(intlm_model_t *m, const intlm_layer_t *layer, int8_t *state) {
  int32_t i, at;
  for (i = 0, at = 0; i < INTLM_HIDDEN; ++i, at += INTLM_HIDDEN) {
    const int32_t gate = INTLM_GATE_ONE + drive(layer->gate_input + at, m->normed, layer->gate_state + at, state,
                                                layer->gate_bias[i], INTLM_GATE_TABLE);
    m->gate[i] = (uint8_t)gate;
    m->reset[i] = (int8_t)intlm_q15(gate * state[i], INTLM_GATE_MULTIPLIER);
  }
  for (i = 0, at = 0; i < INTLM_HIDDEN; ++i, at += INTLM_HIDDEN) {
    const int32_t gate = m->gate[i];
    const int32_t candidate = drive(layer->candidate_input + at, m->normed, layer->candidate_state + at, m->reset,
                                    layer->candidate_bias[i], INTLM_CANDIDATE_TABLE);
    state[i] = (int8_t)intlm_q15((2 * INTLM_GATE_ONE - gate) * state[i] + gate * candidate, INTLM_GATE_MULTIPLIER);
  }
}

/* Section 5.2, the second half of a layer. */
static void feed_forward(intlm_model_t *m, const intlm_layer_t *layer) {
  static const intlm_rescale_t up = INTLM_INPUT_RESCALE, down = INTLM_WIDE_RESCALE;
  int32_t i;
  for (i = 0; i < INTLM_FEED_FORWARD; ++i) {
    const int32_t x = intlm_rescale(dot(layer->up + i * INTLM_HIDDEN, m->normed, INTLM_HIDDEN), up);
    m->wide[i] = saturate(x < 0 ? -x : x);
  }
  for (i = 0; i < INTLM_HIDDEN; ++i) {
    const int32_t x = intlm_rescale(dot(layer->down + i * INTLM_FEED_FORWARD, m->wide, INTLM_FEED_FORWARD), down);
    m->residual[i] = saturate(m->residual[i] + x);
  }
}

/* Section 5.2. */
void intlm_step(intlm_model_t *m, uint16_t token) {
  static const intlm_rescale_t to_logit = INTLM_LOGIT_RESCALE;
  int32_t l, i;
  for (i = 0; i < INTLM_HIDDEN; ++i) m->residual[i] = intlm_embedding[token * INTLM_HIDDEN + i];
  for (l = 0; l < INTLM_LAYERS; ++l) {
    int8_t *state = m->state[l];
    if (token == 0)
      for (i = 0; i < INTLM_HIDDEN; ++i) state[i] = 0;
    norm(m->residual, m->normed);
    cell(m, &intlm_layers[l], state);
    for (i = 0; i < INTLM_HIDDEN; ++i) m->residual[i] = saturate(m->residual[i] + intlm_rshift(state[i], INTLM_OUTPUT_SHIFT));
    norm(m->residual, m->normed);
    feed_forward(m, &intlm_layers[l]);
  }
  norm(m->residual, m->normed);
  for (i = 0; i < INTLM_VOCAB; ++i)
    m->logits[i] = (int16_t)intlm_rescale(dot(intlm_head + i * INTLM_HIDDEN, m->normed, INTLM_HIDDEN), to_logit);
}

/* Section 6. */
int32_t intlm_loss(const intlm_model_t *m, uint16_t token) {
  int32_t largest = m->logits[0], i;
  uint64_t sum = 0;
  for (i = 1; i < INTLM_VOCAB; ++i)
    if (m->logits[i] > largest) largest = m->logits[i];
  for (i = 0; i < INTLM_VOCAB; ++i) sum += intlm_exp2_term((uint32_t)(largest - m->logits[i]), intlm_exp2);
  return intlm_log_sum(largest, sum, intlm_log2) - m->logits[token];
}

int64_t intlm_text_loss(intlm_model_t *m, const uint16_t *tokens, size_t count) {
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
uint16_t intlm_draw(const intlm_model_t *m, uint64_t seed, uint32_t position, int32_t inverse, int32_t top_k) {
  uint32_t key[4], word[4] = {0, 0, 0, 0};
  key[0] = (uint32_t)seed, key[1] = (uint32_t)(seed >> 32), key[2] = 0, key[3] = 2;
  word[0] = position;
  intlm_threefry(key, word);
  return (uint16_t)intlm_sample(m->logits, INTLM_VOCAB, word[0], inverse, top_k, intlm_exp2);
}
