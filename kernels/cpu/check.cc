/* Prints a digest of the calls over pseudo-random problems, for every target that runs here.
 *
 * The digests of all targets and builds must be equal: kernels/check.py compares a sanitized build, and one
 * for 64-bit Arm under an emulator, with this machine's. Needs no JAX.
 */
#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "../ranges.h"
#include "kernels.h"

using intlm::Kernels;
using intlm::Problem;
using intlm::TokenProblem;

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

static Problem any() {
  Problem p{};
  p.vocab = between(2, 300), p.hidden = 8 * between(1, 12), p.layers = between(1, 3);
  p.feed_forward = 8 * between(1, 20);
  p.table = between(0, 1), p.rank = between(1, 4), p.sigma_shift = between(0, 12), p.pairs = between(1, 30);
  p.group = p.pairs % 2 ? 1 : 2, p.seed = random32(), p.seed |= (int64_t)random32() << 32, p.threads = 2;
  return p;
}

/* log_targets: negative for any value. */
static void one(const Kernels& k, const Problem& p, int64_t length = 3, int log_targets = -1) {
  const int64_t h = p.hidden, rows = p.layers * h;
  const int64_t weights = 2 * h * p.vocab + p.layers * (4 * h * h + 2 * h + 2 * h * p.feed_forward);
  const int32_t widest = between(0, 1) ? 127 : 40;
  std::vector<int8_t> parameters(weights), states(2 * p.pairs * rows), next(states.size()), fitness(p.pairs);
  for (auto& v : parameters) v = (int8_t)between(-widest, widest);
  for (auto& v : states) v = (int8_t)between(-127, 127);
  for (auto& v : fitness) v = (int8_t)between(-127, 127);
  if (log_targets < 0) log_targets = between(0, 3);
  std::vector<uint16_t> tokens(p.pairs * length), targets(tokens.size() << log_targets);
  for (auto* some : {&tokens, &targets})
    for (auto& v : *some) v = (uint16_t)between(0, p.vocab - 1);
  std::vector<int32_t> losses(2 * p.pairs), votes(weights);
  std::vector<int16_t> logits(p.pairs * length * p.vocab);
  const uint32_t epoch = random32(), first = random32() >> 12;
  k.evaluate(p, parameters.data(), tokens.data(), targets.data(), length, log_targets, states.data(), epoch, first,
             losses.data(), next.data());
  add(losses), add(next);
  k.accumulate(p, fitness.data(), epoch, first, votes.data());
  add(votes);
  std::vector<int8_t> prepared(k.prepared_size(p));
  k.prepare(p, parameters.data(), prepared.data());
  next.resize(p.pairs * rows);
  k.infer(p, prepared.data(), tokens.data(), p.pairs, length, states.data(), logits.data(), next.data());
  add(logits), add(next);
  const uint32_t key[4] = {random32(), random32(), 0, 2};
  const int32_t inverse = between(1, 2048), top_k = between(1, p.vocab);
  std::vector<int32_t> drawn(5);
  logits.resize(p.vocab), next.resize(rows);
  k.generate(p, prepared.data(), key, epoch, inverse, top_k, 5, logits.data(), next.data(), drawn.data());
  add(drawn), add(logits), add(next);
}

/* The estimator `token` on problem p, of as many texts as it has pairs. texts: of the update. */
static void tokens(const Kernels& k, const Problem& p, int64_t texts, int64_t length, int32_t noisy,
                   int log_targets = 1) {
  const int64_t h = p.hidden, rows = p.pairs * p.layers * h;
  const int64_t weights = 2 * h * p.vocab + p.layers * (4 * h * h + 2 * h + 2 * h * p.feed_forward);
  TokenProblem t{
      p, texts, noisy, between(0, 7), between(0, 8), between(0, 8), between(0, 8), between(0, 8), between(0, 8)};
  std::vector<int8_t> parameters(weights), states(rows), next(rows);
  for (auto& v : parameters) v = (int8_t)between(-127, 127);
  for (auto& v : states) v = (int8_t)between(-127, 127);
  std::vector<uint16_t> read(p.pairs * length), targets(read.size() << log_targets);
  for (auto* some : {&read, &targets})
    for (auto& v : *some) v = (uint16_t)between(0, p.vocab - 1);
  const int32_t means[2] = {between(1, 5000), between(1, 294920)};
  std::vector<int32_t> losses(p.pairs), votes(weights), sizes(8);
  std::vector<int32_t> chance(4 * (p.vocab + p.layers * (5 * h + p.feed_forward + 2) + h));
  const std::unique_ptr<bool[]> there(new bool[p.pairs]), voters(new bool[noisy]);
  for (int64_t i = 0; i < p.pairs; ++i) there[i] = between(0, 9);
  for (int32_t m = 0; m < noisy; ++m) voters[m] = between(0, 9);
  k.evaluate_tokens(t, parameters.data(), read.data(), targets.data(), length, log_targets, states.data(), means,
                    random32(), random32() >> 14, there.get(), voters.get(), losses.data(), next.data(), votes.data(),
                    chance.data(), sizes.data());
  add(losses), add(next), add(votes), add(chance), add(sizes);
}

#define INTLM_LEAST(name, low, high, multiple) constexpr int name = low;
#define INTLM_MOST(name, low, high, multiple) constexpr int name = high;
namespace least {
INTLM_RANGES(INTLM_LEAST)
}
namespace most {
INTLM_RANGES(INTLM_MOST)
}

/* Settings at the ends of their ranges, all else small. */
static void extremes(const Kernels& k) {
  one(k, {least::vocab, 8, 1, 8, true, 1, least::sigma_shift, 1, 1, 0x200000001, 1}, INTLM_MAX_TOKENS, 0);
  one(k, {most::vocab, 8, 1, 8, false, 1, most::sigma_shift, 1, 1, 0x400000003, 2}, 2, 10);
  one(k, {3, 16, 2, 8, true, most::rank, 0, 3, 3, 0x600000005, 2}, 2, 0);
  one(k, {5, 8, most::layers, 8, false, 2, 3, 2, 1, 0x800000007, 2}, 2, 1);
}

/* Two workers that read one stream give the same result as one. */
static bool team(const Kernels& k) {
  Problem p{256, 192, 2, 512, true, 1, 4, 1, 1, 0x200000001, 2};
  const int64_t h = p.hidden, rows = p.layers * h, length = 4;
  std::vector<int8_t> parameters(2 * h * p.vocab + p.layers * (4 * h * h + 2 * h + 2 * h * p.feed_forward));
  for (auto& v : parameters) v = (int8_t)between(-40, 40);
  std::vector<uint16_t> tokens(length);
  for (auto& v : tokens) v = (uint16_t)between(0, p.vocab - 1);
  std::vector<int8_t> prepared(k.prepared_size(p)), states(rows), next[2];
  std::vector<int16_t> logits[2];
  k.prepare(p, parameters.data(), prepared.data());
  for (int i = 0; i < 2; ++i) {
    p.threads = i + 1;
    next[i].resize(rows), logits[i].resize(length * p.vocab);
    k.infer(p, prepared.data(), tokens.data(), 1, length, states.data(), logits[i].data(), next[i].data());
  }
  return parameters.size() > 1 << 18 && next[0] == next[1] && logits[0] == logits[1];
}

int main() {
  for (const Kernels* k : kAll) {
    if (!k->supported()) continue;
    state = 1, digest = 14695981039346656037u;
    for (int i = 0; i < 20; ++i) one(*k, any());
    if (!team(*k)) return 1;
    const unsigned long long some = digest;
    extremes(*k);
    const unsigned long long ends = digest;
    for (int i = 0; i < 5; ++i) tokens(*k, any(), i % 2 ? 1 << 19 : 64, between(1, 6), between(1, 6), between(0, 2));
    tokens(*k, {7, 8, 1, 8, true, 1, 0, 2, 1, 1, 2}, 1, 1, 127, 10);
    tokens(*k, {3, 8, 1, 8, false, 1, 0, 2, 1, 1, 1}, 1 << 12, 2050, 1, 0);
    std::printf("%016llx-%016llx-%016llx %s\n", some, ends, (unsigned long long)digest, k->name);
  }
}
