/* The minimal gated unit (docs/numerics.md, section 5.2): a part of intlm.c. */

static void cell(intlm_model_t* m, const intlm_layer_t* layer, int8_t* state) {
  int32_t found[ROWS], i, k;
  for (i = 0; i < INTLM_HIDDEN; ++i) m->operand[i] = state[i];
  for (i = 0; i < INTLM_HIDDEN; i += ROWS) {
    const int32_t at = i * INTLM_HIDDEN;
    drive(m, layer->gate_input + at, layer->gate_state + at, layer->gate_bias + i, INTLM_GATE_TABLE, found);
    for (k = 0; k < ROWS; ++k) m->scratch[i + k] = (uint8_t)(INTLM_GATE_ONE + found[k]);
  }
  for (i = 0; i < INTLM_HIDDEN; ++i)
    m->operand[i] = (int16_t)intlm_q15(m->scratch[i] * state[i], INTLM_GATE_MULTIPLIER);
  for (i = 0; i < INTLM_HIDDEN; i += ROWS) {
    const int32_t at = i * INTLM_HIDDEN;
    drive(m, layer->candidate_input + at, layer->candidate_state + at, layer->candidate_bias + i, INTLM_CANDIDATE_TABLE,
          found);
    for (k = 0; k < ROWS; ++k) {
      const int32_t gate = m->scratch[i + k], old = state[i + k];
      state[i + k] = (int8_t)intlm_q15((2 * INTLM_GATE_ONE - gate) * old + gate * found[k], INTLM_GATE_MULTIPLIER);
    }
  }
}
