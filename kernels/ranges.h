/* Made by kernels/make_headers.py from intlm.config and intlm.generation (docs/numerics.md, 11). */
#ifndef INTLM_RANGES_H
#define INTLM_RANGES_H
/* X(name, low, high, what it is a multiple of) */
#define INTLM_RANGES(X) \
  X(vocab, 2, 65536, 1) \
  X(hidden, 8, 65536, 8) \
  X(layers, 1, 64, 1) \
  X(feed_forward, 8, 65536, 8) \
  X(rank, 1, 256, 1) \
  X(sigma_shift, 0, 12, 1) \
  X(threads, 0, 1024, 1) \
  X(pairs, 1, 524288, 1)
#define INTLM_TOKEN_RANGES(X) \
  X(texts, 1, 524288, 1) \
  X(noisy, 1, 127, 1) \
  X(credit, 0, 7, 1) \
  X(sigma_embedding, 0, 8, 1) \
  X(sigma_gate, 0, 8, 1) \
  X(sigma_candidate, 0, 8, 1) \
  X(sigma_up, 0, 8, 1) \
  X(sigma_down, 0, 8, 1)
#define INTLM_MAX_TOKENS 32768
#define INTLM_MAX_TARGETS 1024
#define INTLM_MAX_INVERSE 32768
#define INTLM_MAX_TEXT_TOKENS 16777216
#define INTLM_MAX_MEAN 294920
#endif
