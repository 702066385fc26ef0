/* The interface of a target's kernels to the FFI layer, which checks shapes and ranges once. */
#pragma once

#include <atomic>
#include <cstdint>

namespace intlm {

struct Problem {
  int32_t vocab, hidden, layers, feed_forward;
  bool table;  // nonlinearity by table; by saturation otherwise
  int32_t rank, sigma_shift;
  int64_t pairs, group;  // pairs of the call; pairs that share a text
  int64_t seed;          // its 64 bits
  int32_t threads;
};

/* Of the estimator `token` (docs/numerics.md, 7.4 to 9.2); `pairs` are the call's texts. */
struct TokenProblem : Problem {
  int64_t texts;          // of the update
  int32_t noisy, credit;  // noisy members of a text; eighths
  int32_t sigma_embedding, sigma_gate, sigma_candidate, sigma_up, sigma_down;
};

struct Kernels {
  const char* name;
  bool (*supported)();
  /* tokens [pairs / group, length]; targets [pairs / group, length, 2^log_targets]; states [pairs, 2, layers, hidden]
   * in and out; losses [pairs, 2]. The first pair's number is `first`, here and below. */
  void (*evaluate)(const Problem&, const int8_t* parameters, const uint16_t* tokens, const uint16_t* targets,
                   int64_t length, int log_targets, const int8_t* states, uint32_t epoch, uint32_t first,
                   int32_t* losses, int8_t* next);
  /* votes: one int32 a parameter, in the order of the parameters. */
  void (*accumulate)(const Problem&, const int8_t* fitness, uint32_t epoch, uint32_t first, int32_t* votes);
  /* tokens [texts, length]; targets [texts, length, 2^log_targets]; states [texts, layers, hidden] in and out; means [2];
   * there [texts]; voters [noisy]; losses [texts]; votes: as above; chance: by parameter, in their order, [4, fan-in] of
   * a matrix, [4, vocab] of the embedding, [4, 1] of a bias; sizes [2, 4]. The first text's number is `first`. */
  void (*evaluate_tokens)(const TokenProblem&, const int8_t* parameters, const uint16_t* tokens,
                          const uint16_t* targets, int64_t length, int log_targets, const int8_t* states,
                          const int32_t* means, uint32_t update, uint32_t first, const bool* there, const bool* voters,
                          int32_t* losses, int8_t* next, int32_t* votes, int32_t* chance, int32_t* sizes);
  /* The shared weights in the form that the two calls below read: their size in bytes, and the data. */
  int64_t (*prepared_size)(const Problem&);
  void (*prepare)(const Problem&, const int8_t* parameters, int8_t* prepared);
  /* tokens [batch, length]; states [batch, layers, hidden]; logits [batch, length, vocab]. */
  void (*infer)(const Problem&, const int8_t* prepared, const uint16_t* tokens, int64_t batch, int64_t length,
                const int8_t* states, int16_t* logits, int8_t* next);
  /* logits [vocab] and states [layers, hidden] are read and replaced; tokens [count]. */
  void (*generate)(const Problem&, const int8_t* prepared, const uint32_t* key, uint32_t position, int32_t inverse,
                   int32_t top_k, int64_t count, int16_t* logits, int8_t* states, int32_t* tokens);
  /* For `intlm bench`: makes some thousands of byte products and returns how many; reads a buffer, aligned to 64. */
  int64_t (*multiply)(int32_t* sink);
  void (*read)(const int8_t* buffer, int64_t bytes, int32_t* sink);
};

/* The phases of workers, and the nanoseconds that all of them together spent in each; measured while `measuring`. */
enum Phase { kNoise, kEmbedding, kNorm, kProjection, kProducts, kLoss, kVotes, kCopies, kPhases };
constexpr const char* kPhaseNames = "noise,embedding,norm,projection,products,loss,votes,copies";
extern bool measuring;
void spend(Phase phase, int64_t nanoseconds);
int64_t now();  // nanoseconds
void start_measuring();
void stop_measuring(int64_t nanoseconds[kPhases]);

/* A worker's stopwatch: the time from one call of `on` to the next counts for a phase. */
class Stopwatch {
 public:
  explicit Stopwatch(Phase phase) : running_(measuring), phase_(phase), since_(running_ ? now() : 0) {}
  ~Stopwatch() { on(phase_); }
  void on(Phase phase) {
    if (!running_) return;
    int64_t at = now();
    spend(phase_, at - since_);
    phase_ = phase, since_ = at;
  }

 private:
  bool running_;
  Phase phase_;
  int64_t since_;
};

/* Runs task(context, index, worker) for every index below count; workers are numbered from 0. Where count is at most
 * threads and tasks wait for each other, each has a worker of its own. */
void parallel(int64_t count, int threads, void* context, void (*task)(void*, int64_t, int));

/* Where workers wait until all of them are there. Each announces itself in its own cache line and reads the others':
 * one transfer from core to core, where a shared counter would take three. */
class Barrier {
 public:
  explicit Barrier(int workers);
  ~Barrier();
  void wait(int worker);

 private:
  struct alignas(64) Line {
    std::atomic<uint32_t> round{0};
  };
  const int workers_;
  Line* const lines_;
};

}  // namespace intlm

/* INTLM_TARGETS(X) is X(name) for every target that is compiled, best first: kernels/targets.py defines it. */
#ifdef INTLM_TARGETS
#define INTLM_DECLARE(name)            \
  namespace name {                     \
  extern const intlm::Kernels kernels; \
  }
#define INTLM_ADDRESS(name) &name::kernels,
INTLM_TARGETS(INTLM_DECLARE)
static const intlm::Kernels* const kAll[] = {INTLM_TARGETS(INTLM_ADDRESS)};
#endif
