/* Prints a digest of the three calls over pseudo-random problems, for every instruction set that runs here.
 *
 * The digests of all instruction sets and builds must be equal: kernels/check.sh compares a sanitized build, and one
 * for 64-bit Arm under an emulator, with this machine's. Needs no JAX.
 */
#include <algorithm>
#include <cstdio>
#include <vector>

#include "kernels.h"

using intlm::Kernels;
using intlm::Problem;

#if defined(__x86_64__)
extern const Kernels intlm_avx512, intlm_avxvnni, intlm_avx2;
#elif defined(__aarch64__)
extern const Kernels intlm_neon;
#endif
extern const Kernels intlm_plain;

void intlm::parallel(int64_t count, int, void* context, void (*task)(void*, int64_t, int)) {
  for (int64_t i = 0; i < count; ++i) task(context, i, 0);
}

bool intlm::measuring = false;
void intlm::spend(Phase, int64_t) {}
int64_t intlm::now() { return 0; }

static uint64_t state;
static uint32_t random32() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33);
}
static int32_t between(int32_t low, int32_t high) { return low + (int32_t)(random32() % (uint32_t)(high - low + 1)); }

static uint64_t digest;
template <class T>
static void add(const std::vector<T>& values) {
  for (T v : values) digest = (digest ^ (uint64_t)(uint32_t)v) * 1099511628211u;
}

static void one(const Kernels& k) {
  Problem p{};
  p.vocab = between(2, 300), p.hidden = 8 * between(1, 12), p.layers = between(1, 3), p.feed_forward = 8 * between(1, 20);
  p.table = between(0, 1), p.rank = between(1, 4), p.sigma_shift = between(0, 12), p.pairs = between(1, 30);
  p.group = p.pairs % 2 ? 1 : 2, p.seed[0] = random32(), p.seed[1] = random32(), p.threads = 2;
  const int64_t h = p.hidden, length = 3, rows = p.layers * h;
  const int64_t weights = 2 * h * p.vocab + h + p.layers * (4 * h * h + 4 * h + 2 * h * p.feed_forward);
  const int32_t widest = between(0, 1) ? 127 : 40;
  std::vector<int8_t> parameters(weights), states(2 * p.pairs * rows), next(states.size()), fitness(p.pairs);
  for (auto& v : parameters) v = (int8_t)between(-widest, widest);
  for (auto& v : states) v = (int8_t)between(-127, 127);
  for (auto& v : fitness) v = (int8_t)between(-127, 127);
  std::vector<uint16_t> tokens(p.pairs * (length + 1));
  for (auto& v : tokens) v = (uint16_t)between(0, p.vocab - 1);
  std::vector<int32_t> losses(2 * p.pairs), votes(weights);
  std::vector<int16_t> logits(p.pairs * length * p.vocab);
  const uint32_t epoch = random32();
  k.evaluate(p, parameters.data(), tokens.data(), length, states.data(), epoch, losses.data(), next.data());
  add(losses), add(next);
  k.accumulate(p, fitness.data(), epoch, votes.data());
  add(votes);
  next.resize(p.pairs * rows);
  k.infer(p, parameters.data(), tokens.data(), p.pairs, length, states.data(), logits.data(), next.data());
  add(logits), add(next);
}

int main() {
  const Kernels* all[] = {
#if defined(__x86_64__)
      &intlm_avx512, &intlm_avxvnni, &intlm_avx2,
#elif defined(__aarch64__)
      &intlm_neon,
#endif
      &intlm_plain};
  for (const Kernels* k : all) {
    if (!k->supported()) continue;
    state = 1, digest = 14695981039346656037u;
    for (int i = 0; i < 20; ++i) one(*k);
    std::printf("%016llx %s\n", (unsigned long long)digest, k->name);
  }
}
