/* XLA's FFI: takes buffers and attributes, checks their shapes once, and calls one target's kernels. */
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "../ranges.h"
#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

using intlm::Kernels;
using intlm::Problem;
using intlm::TokenProblem;

/* The attributes of every call, by name. */
#define INTLM_PROBLEM                                                                                       \
  StructMember<int32_t>("vocab"), StructMember<int32_t>("hidden"), StructMember<int32_t>("layers"),         \
      StructMember<int32_t>("feed_forward"), StructMember<bool>("table"), StructMember<int32_t>("rank"),    \
      StructMember<int32_t>("sigma_shift"), StructMember<int64_t>("pairs"), StructMember<int64_t>("group"), \
      StructMember<int64_t>("seed"), StructMember<int32_t>("threads")
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(Problem, INTLM_PROBLEM);
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(TokenProblem, INTLM_PROBLEM, StructMember<int64_t>("texts"),
                                      StructMember<int32_t>("noisy"), StructMember<int32_t>("credit"),
                                      StructMember<int32_t>("sigma_embedding"), StructMember<int32_t>("sigma_gate"),
                                      StructMember<int32_t>("sigma_candidate"), StructMember<int32_t>("sigma_up"),
                                      StructMember<int32_t>("sigma_down"));

/* The fastest target that this processor supports, or the one that INTLM_ISA names. */
static const Kernels* choose() {
  const char* wanted = std::getenv("INTLM_ISA");
  for (const Kernels* k : kAll)
    if ((!wanted || !*wanted || std::strcmp(wanted, k->name) == 0) && k->supported()) return k;
  return nullptr;
}

extern "C" const char* intlm_isa() {
  const Kernels* k = choose();
  return k ? k->name : "";
}

/* ---- For `intlm bench`, by ctypes ---- */

extern "C" const char* intlm_phases() { return intlm::kPhaseNames; }

/* Starts measuring the time that workers spend in each phase. */
extern "C" void intlm_measure() { intlm::start_measuring(); }

/* Stops measuring: the nanoseconds of each phase, summed over workers. */
extern "C" void intlm_measured(int64_t* nanoseconds) { intlm::stop_measuring(nanoseconds); }

/* The rate per second of what `task` counts, with every thread repeating it at the same time for that long. */
template <class Task>
static double rate(int64_t nanoseconds, int threads, const Task& task) {
  intlm::Barrier start(threads);
  std::vector<double> rates(threads);
  auto work = [&](int worker) {
    start.wait(worker);
    int32_t sink = worker;
    const int64_t began = intlm::now();
    int64_t count = 0, took = 0;
    while (took < nanoseconds) count += task(worker, &sink), took = intlm::now() - began;
    rates[worker] = sink == began ? 0 : 1e9 * count / took;  // sink is read, or nothing would be computed
  };
  intlm::parallel(threads, threads, (void*)&work,
                  [](void* context, int64_t worker, int) { (*(const decltype(work)*)context)((int)worker); });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

/* Byte products per second. */
extern "C" double intlm_multiply(int64_t nanoseconds, int32_t threads) {
  return rate(nanoseconds, threads, [k = choose()](int, int32_t* sink) { return k->multiply(sink); });
}

/* Bytes per second read from a buffer of that size, each thread reading its share again and again. */
extern "C" double intlm_read(int64_t nanoseconds, int32_t threads, int64_t bytes) {
  const int64_t share = bytes / threads / 256 * 256, passes = (1 << 20) / share + 1;
  struct alignas(64) Line {
    int8_t bytes[64];
  };
  std::vector<Line> buffer(share * threads / 64);
  return rate(nanoseconds, threads, [&, k = choose()](int worker, int32_t* sink) {
    for (int64_t pass = 0; pass < passes; ++pass) k->read(buffer.data()->bytes + share * worker, share, sink);
    return passes * share;
  });
}

/* ---- The calls ---- */

static ffi::Error refuse(const std::string& what) {
  return ffi::Error::InvalidArgument("intlm native engine: " + what);
}

static int64_t weights(const Problem& p) {
  const int64_t h = p.hidden;
  return 2 * h * p.vocab + p.layers * (4 * h * h + 2 * h + 2 * h * p.feed_forward);
}

static ffi::Error within(const std::string& name, int64_t value, int64_t low, int64_t high, int64_t multiple) {
  if (low <= value && value <= high && value % multiple == 0) return ffi::Error::Success();
  return refuse(name + " = " + std::to_string(value) + ": expected " + std::to_string(low) + " to " +
                std::to_string(high) + (multiple > 1 ? ", a multiple of " + std::to_string(multiple) : ""));
}

static ffi::Error check(Problem& p) {
#define INTLM_CHECK(name, low, high, multiple) \
  if (ffi::Error e = within(#name, p.name, low, high, multiple); e.failure()) return e;
  INTLM_RANGES(INTLM_CHECK)
  if (p.group < 1 || p.pairs % p.group)
    return refuse("group = " + std::to_string(p.group) + ": expected to divide pairs");
  if (!p.threads) p.threads = (int32_t)std::clamp(std::thread::hardware_concurrency(), 1u, 1024u);
  return ffi::Error::Success();
}

template <class Buffer>
static bool has(const Buffer& buffer, std::initializer_list<int64_t> shape) {
  auto dims = buffer.dimensions();
  return dims.size() == shape.size() && std::equal(dims.begin(), dims.end(), shape.begin());
}

static bool known(const ffi::Buffer<ffi::U16>& tokens, const Problem& p) {
  const uint16_t* begin = tokens.typed_data();
  return std::all_of(begin, begin + tokens.element_count(), [&](uint16_t token) { return token < p.vocab; });
}

static ffi::Error Evaluate(ffi::Buffer<ffi::S8> parameters, ffi::Buffer<ffi::U16> tokens, ffi::Buffer<ffi::U16> targets,
                           ffi::Buffer<ffi::S8> states, ffi::Buffer<ffi::U32> epoch, ffi::Buffer<ffi::U32> first,
                           ffi::ResultBuffer<ffi::S32> losses, ffi::ResultBuffer<ffi::S8> next, Problem p) {
  if (ffi::Error e = check(p); e.failure()) return e;
  if (!has(parameters, {weights(p)}) || !has(states, {p.pairs, 2, p.layers, p.hidden}) ||
      !has(*next, {p.pairs, 2, p.layers, p.hidden}) || !has(*losses, {p.pairs, 2}) || tokens.dimensions().size() != 2 ||
      tokens.dimensions()[0] != p.pairs / p.group || tokens.dimensions()[1] < 1 ||
      tokens.dimensions()[1] > INTLM_MAX_TOKENS || epoch.element_count() != 1 || first.element_count() != 1 ||
      targets.dimensions().size() != 3)
    return refuse("evaluate: a buffer's shape does not fit the problem");
  const int64_t length = tokens.dimensions()[1], count = targets.dimensions()[2];
  if (!has(targets, {p.pairs / p.group, length, count}) || count < 1 || count > INTLM_MAX_TARGETS ||
      count & (count - 1))
    return refuse("evaluate: a buffer's shape does not fit the problem");
  if (!known(tokens, p) || !known(targets, p)) return refuse("evaluate: a token is outside the vocabulary");
  choose()->evaluate(p, parameters.typed_data(), tokens.typed_data(), targets.typed_data(), length,
                     __builtin_ctzll(count), states.typed_data(), *epoch.typed_data(), *first.typed_data(),
                     losses->typed_data(), next->typed_data());
  return ffi::Error::Success();
}

static ffi::Error Accumulate(ffi::Buffer<ffi::S8> fitness, ffi::Buffer<ffi::U32> epoch, ffi::Buffer<ffi::U32> first,
                             ffi::ResultBuffer<ffi::S32> votes, Problem p) {
  if (ffi::Error e = check(p); e.failure()) return e;
  if (!has(fitness, {p.pairs}) || !has(*votes, {weights(p)}) || epoch.element_count() != 1 ||
      first.element_count() != 1)
    return refuse("accumulate: a buffer's shape does not fit the problem");
  choose()->accumulate(p, fitness.typed_data(), *epoch.typed_data(), *first.typed_data(), votes->typed_data());
  return ffi::Error::Success();
}

static ffi::Error Prepare(ffi::Buffer<ffi::S8> parameters, ffi::ResultBuffer<ffi::S8> prepared, Problem p) {
  if (ffi::Error e = check(p); e.failure()) return e;
  if (!has(parameters, {weights(p)}) || !has(*prepared, {choose()->prepared_size(p)}))
    return refuse("prepare: a buffer's shape does not fit the problem");
  choose()->prepare(p, parameters.typed_data(), prepared->typed_data());
  return ffi::Error::Success();
}

static ffi::Error Infer(ffi::Buffer<ffi::S8> prepared, ffi::Buffer<ffi::U16> tokens, ffi::Buffer<ffi::S8> states,
                        ffi::ResultBuffer<ffi::S16> logits, ffi::ResultBuffer<ffi::S8> next, Problem p) {
  if (ffi::Error e = check(p); e.failure()) return e;
  if (tokens.dimensions().size() != 2) return refuse("infer: tokens have two axes");
  const int64_t batch = tokens.dimensions()[0], length = tokens.dimensions()[1];
  if (!has(prepared, {choose()->prepared_size(p)}) || !has(states, {batch, p.layers, p.hidden}) ||
      !has(*next, {batch, p.layers, p.hidden}) || !has(*logits, {batch, length, p.vocab}))
    return refuse("infer: a buffer's shape does not fit the problem");
  if (!known(tokens, p)) return refuse("infer: a token is outside the vocabulary");
  choose()->infer(p, prepared.typed_data(), tokens.typed_data(), batch, length, states.typed_data(),
                  logits->typed_data(), next->typed_data());
  return ffi::Error::Success();
}

/* inverse: 256 / temperature; top: top_k */
static ffi::Error Generate(ffi::Buffer<ffi::S8> prepared, ffi::Buffer<ffi::S16> logits, ffi::Buffer<ffi::S8> states,
                           ffi::Buffer<ffi::U32> key, ffi::Buffer<ffi::U32> position, ffi::Buffer<ffi::S32> inverse,
                           ffi::Buffer<ffi::S32> top, ffi::ResultBuffer<ffi::S32> tokens,
                           ffi::ResultBuffer<ffi::S16> logits_after, ffi::ResultBuffer<ffi::S8> states_after,
                           Problem p) {
  if (ffi::Error e = check(p); e.failure()) return e;
  if (!has(prepared, {choose()->prepared_size(p)}) || !has(logits, {p.vocab}) || !has(*logits_after, {p.vocab}) ||
      !has(states, {p.layers, p.hidden}) || !has(*states_after, {p.layers, p.hidden}) || !has(key, {4}) ||
      position.element_count() != 1 || inverse.element_count() != 1 || top.element_count() != 1 ||
      tokens->dimensions().size() != 1)
    return refuse("generate: a buffer's shape does not fit the problem");
  const int32_t top_k = *top.typed_data();
  if (*inverse.typed_data() < 1 || *inverse.typed_data() > INTLM_MAX_INVERSE || top_k < 1 || top_k > p.vocab)
    return refuse("generate: the temperature or top_k is outside docs/numerics.md, section 10");
  std::copy_n(logits.typed_data(), logits.element_count(), logits_after->typed_data());
  std::copy_n(states.typed_data(), states.element_count(), states_after->typed_data());
  choose()->generate(p, prepared.typed_data(), key.typed_data(), *position.typed_data(), *inverse.typed_data(), top_k,
                     tokens->dimensions()[0], logits_after->typed_data(), states_after->typed_data(),
                     tokens->typed_data());
  return ffi::Error::Success();
}

static ffi::Error EvaluateTokens(ffi::Buffer<ffi::S8> parameters, ffi::Buffer<ffi::U16> tokens,
                                 ffi::Buffer<ffi::U16> targets, ffi::Buffer<ffi::S8> states,
                                 ffi::Buffer<ffi::S32> means, ffi::Buffer<ffi::U32> update, ffi::Buffer<ffi::U32> first,
                                 ffi::Buffer<ffi::PRED> there, ffi::Buffer<ffi::PRED> voters,
                                 ffi::ResultBuffer<ffi::S32> losses, ffi::ResultBuffer<ffi::S8> next,
                                 ffi::ResultBuffer<ffi::S32> votes, ffi::ResultBuffer<ffi::S32> chance,
                                 ffi::ResultBuffer<ffi::S32> sizes, TokenProblem p) {
  if (ffi::Error e = check(p); e.failure()) return e;
  INTLM_TOKEN_RANGES(INTLM_CHECK)
  if (tokens.dimensions().size() != 2 || targets.dimensions().size() != 3)
    return refuse("evaluate_tokens: a buffer's shape does not fit the problem");
  const int64_t length = tokens.dimensions()[1], count = targets.dimensions()[2], h = p.hidden;
  const int64_t variances = p.vocab + p.layers * (5 * h + p.feed_forward + 2) + h;
  if (!has(parameters, {weights(p)}) || !has(tokens, {p.pairs, length}) || length < 1 || length > INTLM_MAX_TOKENS ||
      !has(targets, {p.pairs, length, count}) || count < 1 || count > INTLM_MAX_TARGETS || count & (count - 1) ||
      !has(states, {p.pairs, p.layers, h}) || !has(*next, {p.pairs, p.layers, h}) || !has(means, {2}) ||
      update.element_count() != 1 || first.element_count() != 1 || !has(there, {p.pairs}) || !has(voters, {p.noisy}) ||
      !has(*losses, {p.pairs}) || !has(*votes, {weights(p)}) || !has(*chance, {4 * variances}) || !has(*sizes, {2, 4}))
    return refuse("evaluate_tokens: a buffer's shape does not fit the problem");
  if (ffi::Error e = within("texts * tokens", p.texts * length, 1, INTLM_MAX_TEXT_TOKENS, 1); e.failure()) return e;
  for (int i = 0; i < 2; ++i)
    if (ffi::Error e = within("means", means.typed_data()[i], 1, INTLM_MAX_MEAN, 1); e.failure()) return e;
  if (!known(tokens, p) || !known(targets, p)) return refuse("evaluate_tokens: a token is outside the vocabulary");
  choose()->evaluate_tokens(p, parameters.typed_data(), tokens.typed_data(), targets.typed_data(), length,
                            __builtin_ctzll(count), states.typed_data(), means.typed_data(), *update.typed_data(),
                            *first.typed_data(), there.typed_data(), voters.typed_data(), losses->typed_data(),
                            next->typed_data(), votes->typed_data(), chance->typed_data(), sizes->typed_data());
  return ffi::Error::Success();
}

extern "C" int64_t intlm_prepared_size(int32_t vocab, int32_t hidden, int32_t layers, int32_t feed_forward) {
  return choose()->prepared_size(Problem{vocab, hidden, layers, feed_forward});
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(IntlmEvaluate, Evaluate);
XLA_FFI_DEFINE_HANDLER_SYMBOL(IntlmAccumulate, Accumulate);
XLA_FFI_DEFINE_HANDLER_SYMBOL(IntlmEvaluateTokens, EvaluateTokens);
XLA_FFI_DEFINE_HANDLER_SYMBOL(IntlmPrepare, Prepare);
XLA_FFI_DEFINE_HANDLER_SYMBOL(IntlmInfer, Infer);
XLA_FFI_DEFINE_HANDLER_SYMBOL(IntlmGenerate, Generate);
