/* Reads bytes and prints what the model in weights.c makes of them.
 *
 *   model logits < text     the logits that predict each token, a line a token, and those after the last
 *   model loss < text       the text's cost in bits times 256, then its tokens and bytes
 *   model write COUNT [SEED [INVERSE [TOP_K]]] < prompt     the prompt and what follows it (INVERSE: 256 / temperature)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intlm.h"
#include "tokenizer.h"

static intlm_model_t model;

/* The tokens of a byte; returns how many. */
static int encode(int byte, uint16_t *tokens) {
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

static void print_logits(void) {
  int i;
  for (i = 0; i < INTLM_VOCAB; ++i) printf("%d%c", model.logits[i], i + 1 < INTLM_VOCAB ? ' ' : '\n');
}

int main(int count, char **arguments) {
  const char *what = count > 1 ? arguments[1] : "";
  const int logits = !strcmp(what, "logits"), loss = !strcmp(what, "loss"), write = !strcmp(what, "write") && count > 2;
  int64_t total = 0;
  long tokens = 0, bytes = 0;
  int byte;
  if (!logits && !loss && !write) {
    fprintf(stderr, "usage: %s logits | loss | write COUNT [SEED [INVERSE [TOP_K]]], with a text on standard input\n", arguments[0]);
    return 2;
  }
  intlm_step(&model, 0);
  while ((byte = getchar()) != EOF) {
    uint16_t code[INTLM_CODE];
    const int length = encode(byte, code);
    int i;
    for (i = 0; i < length; ++i) {
      if (logits) print_logits();
      if (loss) total += intlm_loss(&model, code[i]);
      intlm_step(&model, code[i]);
    }
    if (write) putchar(byte);
    tokens += length, ++bytes;
  }
  if (logits) print_logits();
  if (loss) printf("%lld %ld %ld\n", (long long)total, tokens, bytes);
  if (write) {
    const uint64_t seed = count > 3 ? strtoull(arguments[3], NULL, 10) : 0;
    const long inverse = count > 4 ? atol(arguments[4]) : 320, top_k = count > 5 ? atol(arguments[5]) : INTLM_VOCAB;
    const uint32_t all = (uint32_t)strtoul(arguments[2], NULL, 10);
    uint32_t i;
    if (inverse < 1 || inverse > 32768 || top_k < 1 || top_k > INTLM_VOCAB) {
      fprintf(stderr, "%s: INVERSE must be 1 to 32768, TOP_K 1 to %d\n", arguments[0], INTLM_VOCAB);
      return 2;
    }
    for (i = 0; i < all; ++i) {
      const uint16_t token = intlm_draw(&model, seed, i, (int32_t)inverse, (int32_t)top_k);
      if (token == 0) break;
      decode(token);
      intlm_step(&model, token);
    }
  }
  return 0;
}
