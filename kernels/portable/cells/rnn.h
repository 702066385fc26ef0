/* The plain recurrent cell (docs/numerics.md, section 5.5): a part of intlm.c. */

static void cell(intlm_model_t* m, const intlm_layer_t* layer, int8_t* state) {
  int32_t found[ROWS], i, k;
  for (i = 0; i < INTLM_HIDDEN; ++i) m->operand[i] = state[i];
  for (i = 0; i < INTLM_HIDDEN; i += ROWS) {
    const int32_t at = i * INTLM_HIDDEN;
    drive(m, layer->candidate_input + at, layer->candidate_state + at, layer->candidate_bias + i, INTLM_CANDIDATE_TABLE,
          found);
    for (k = 0; k < ROWS; ++k) state[i + k] = (int8_t)found[k];
  }
}
