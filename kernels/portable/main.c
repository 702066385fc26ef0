/* Reads bytes and prints the results of the model in weights.c.
 *
 *   model tokens < text     its tokens, one per line
 *   model states < text     the states before each token, one line per layer, and those after the last
 *   model logits < text     the logits that predict each token, one line per token, and those after the last
 *   model loss < text       the text's loss in bits times 256, then the number of its tokens and bytes
 *   model write COUNT [SEED [INVERSE [TOP_K]]] < prompt     the prompt and a continuation (INVERSE: 256 / temperature)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intlm.h"
#include "tokenizer.h"

static intlm_model_t model;

/* Writes the tokens of a byte; returns their number. */
static int encode(int byte, uint16_t* tokens) {
  int count = 0;
  while (count < INTLM_CODE && intlm_codes[byte][count]) tokens[count] = intlm_codes[byte][count], ++count;
  return count;
}

/* Prints the byte that a token completes, if it completes one. */
static void decode(uint16_t token) {
  static uint16_t pending[INTLM_CODE];
  static int count = 0;
  int byte;
  if (token == 0) {
    count = 0;
    return;
  }
  pending[count++] = token;
  if (pending[0] == INTLM_ESCAPE && count < INTLM_CODE) return;
  for (byte = 0; byte < 256; ++byte) {
    uint16_t code[INTLM_CODE];
    if (encode(byte, code) == count && !memcmp(code, pending, (size_t)count * sizeof *code)) {
      putchar(byte);
      break;
    }
  }
  count = 0;
}

static void print_states(void) {
  int l, i;
  for (l = 0; l < INTLM_LAYERS; ++l)
    for (i = 0; i < INTLM_STATE; ++i) printf("%d%c", model.state[l][i], i + 1 < INTLM_STATE ? ' ' : '\n');
}

static void print_logits(void) {
  int i;
  for (i = 0; i < INTLM_VOCAB; ++i) printf("%d%c", model.logits[i], i + 1 < INTLM_VOCAB ? ' ' : '\n');
}

int main(int count, char** arguments) {
  const char* what = count > 1 ? arguments[1] : "";
  const int tokens = !strcmp(what, "tokens"), states = !strcmp(what, "states"), logits = !strcmp(what, "logits");
  const int loss = !strcmp(what, "loss"), write = !strcmp(what, "write") && count > 2;
  const uint64_t seed = count > 3 ? strtoull(arguments[3], NULL, 10) : 0;
  const long inverse = count > 4 ? atol(arguments[4]) : 256, top_k = count > 5 ? atol(arguments[5]) : INTLM_VOCAB;
  const long all = write ? atol(arguments[2]) : 1;
  int64_t total = 0;
  long read = 0, bytes = 0, i;
  int byte;
  if (!(tokens || states || logits || loss || write) || all < 1 || inverse < 1 || inverse > 32768 || top_k < 1 ||
      top_k > INTLM_VOCAB) {
    fprintf(stderr,
            "usage: %s tokens | states | logits | loss | write COUNT [SEED [INVERSE [TOP_K]]], a text on standard "
            "input; COUNT from 1, INVERSE 1 to 32768, TOP_K 1 to %d\n",
            arguments[0], INTLM_VOCAB);
    return 2;
  }
  intlm_step(&model, 0);
  while ((byte = getchar()) != EOF) {
    uint16_t code[INTLM_CODE];
    const int length = encode(byte, code);
    for (i = 0; i < length; ++i) {
      if (tokens) printf("%d\n", code[i]);
      if (states) print_states();
      if (logits) print_logits();
      if (loss) total += intlm_loss(&model, code[i]);
      intlm_step(&model, code[i]);
    }
    if (write) putchar(byte);
    read += length, ++bytes;
  }
  if (states) print_states();
  if (logits) print_logits();
  if (loss) printf("%lld %ld %ld\n", (long long)total, read, bytes);
  for (i = 0; write && i < all; ++i) {
    const uint16_t token = intlm_draw(&model, seed, (uint32_t)i, (int32_t)inverse, (int32_t)top_k);
    if (token == 0) break;
    decode(token);
    intlm_step(&model, token);
  }
  return 0;
}
