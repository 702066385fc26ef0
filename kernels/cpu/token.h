/* The estimator `token`: members of a text that differ by the noise of each token (docs/numerics.md, 7.4, 8.2, 8.3). */
#pragma once

#include "loss.h"
#include "noise.h"
#include "tile.h"

namespace INTLM_TARGET {

using intlm::TokenProblem;

constexpr uint32_t kTokenDomain = 3;
constexpr int kMostNoisy = 127, kTileMembers = 72, kMostMembers = 1 + kMostNoisy;
constexpr int kTileTokens = 4096, kTileLogits = 1 << 24;

static inline int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Pre-activations that share their noise and their votes. */
struct Units {
  const Matrix* noisy;  // the product whose accumulator the noise enters; null for the embedding
  const Matrix* other;  // another product that is added up in these pre-activations, or null
  const VectorParameter* bias;
  int first, width;  // their numbers among a token's units
  bool future;       // whether the next state depends on them: credited with R
  int32_t amplitude;
};

/* The units of a token, and what the products of a token read, which is kept for the votes. */
struct Plan {
  struct Product {
    int units = -1;  // whose noise enters it
    int input = -1;  // the number of what it reads
    bool keeps = false;
  };
  struct Input {
    int fan_in;
    int64_t stride;  // of a row
  };
  const Model& model;
  std::vector<Units> units;
  std::vector<Product> products;  // by the parameter's number
  std::vector<Input> inputs;
  int count = 0;    // units of a token
  int64_t row = 0;  // bytes of a member's bits of a token

  Plan(const TokenProblem& p, const Model& m) : model(m), products(m.head.number + 1) {
    auto amplitude = [](int fan_in, int sigma) { return (int32_t)isqrt((uint64_t)fan_in << 2 * (8 - sigma)); };
    auto add = [&](const Matrix* noisy, const Matrix* other, const VectorParameter* bias, bool future, int sigma) {
      const int width = noisy ? noisy->fan_out : p.hidden;
      const int32_t own = noisy ? amplitude(noisy->fan_in, sigma) : std::max(1, 1 << INTLM_ONE_BITS >> sigma);
      if (noisy) products[noisy->number].units = (int)units.size();
      units.push_back({noisy, other, bias, count, width, future, own});
      count += width;
    };
    auto reads = [&](const Matrix& w) {
      products[w.number].input = (int)inputs.size(), products[w.number].keeps = true;
      inputs.push_back({w.fan_in, rounded(w.fan_in * (int64_t)sizeof(Encoded), 64) / (int64_t)sizeof(Encoded)});
    };
    add(nullptr, nullptr, nullptr, true, p.sigma_embedding);
    for (const Layer& layer : model.layers) {
      const Matrix* w = layer.products;
      const bool future = &layer != &model.layers.back();
      add(w + kGateInput, w + kGateState, layer.vectors + kGateBias, true, p.sigma_gate);
      add(w + kCandidateInput, w + kCandidateState, layer.vectors + kCandidateBias, true, p.sigma_candidate);
      add(w + kUp, nullptr, nullptr, future, p.sigma_up);
      add(w + kDown, nullptr, nullptr, future, p.sigma_down);
      for (int i : {kGateInput, kGateState, kCandidateState, kUp, kDown}) reads(w[i]);
      products[w[kCandidateInput].number].input = products[w[kGateInput].number].input;
    }
    reads(model.head);
    row = rounded(count, 128) / 8;
  }
};

/* How members differ (see `None`). A tile's first members are the clean ones of its texts; then come the noisy ones, text
 * by text. */
struct Noisy {
  static constexpr bool kAny = true, kOwnVectors = false;

  struct Addend {
    static constexpr bool kAny = false, kStarts = true;
    int clean;
    const uint8_t* bits;  // of the first noisy member's first unit
    int64_t row;
    int32_t amplitude;

    template <int MB, int UB, class Each>
    inline void start(int m0, int u0, const int32_t* from, const Each& each) const {
      const Addend o = *this;
      const uint8_t* bits = o.bits + (m0 - o.clean) * o.row + u0 * (kLanes / 8);
      auto begin = [&](auto is_noisy) {
        const Lanes by = broadcast(o.amplitude);
#pragma GCC unroll 8
        for (int u = 0; u < UB; ++u)
#pragma GCC unroll 2
          for (int part = 0; part < kParts; ++part) {
            const Lanes v = load<Lanes>(from + 16 * ((u0 + u) * kParts + part)), minus = v - by, plus = v + by;
#pragma GCC unroll 12
            for (int m = 0; m < MB; ++m)
              each(m, u, part, is_noisy(m) ? choose(bits + m * o.row + u * (kLanes / 8), part, minus, plus) : v);
          }
      };
      if (m0 >= o.clean) begin([](int) { return true; });
      else begin([=](int m) { return m0 + m >= o.clean; });
    }
  };

  const Model& model;
  const int8_t* parameters;
  int noisy;  // of a text
  const Plan* plan = nullptr;
  int clean = 0;                      // texts of the tile
  int token = 0;                      // that is read
  int rows = 0;                       // tokens of a text, rounded up to kDepth
  int64_t capacity;                   // noisy members, rounded up to 16
  Buffer<uint8_t> bits;               // [tokens][capacity][plan.row]
  Buffer<uint32_t> numbers;           // [capacity], those of the members in the update, in the order of `draw_words`
  std::vector<Buffer<Encoded>> kept;  // by input: [texts * rows][stride]

  Noisy(const Problem& p, const Model& m, const int8_t* parameters_, int members)
      : model(m), parameters(parameters_), noisy(((const TokenProblem&)p).noisy), capacity(rounded(members, 16)),
        numbers(capacity) {}

  void reserve(const Plan& plan_, int texts, int64_t length) {
    plan = &plan_, rows = (int)rounded(length, kDepth);
    bits.reserve(capacity * plan->row * length), kept.resize(plan->inputs.size());
    for (size_t i = 0; i < kept.size(); ++i) kept[i].reserve((size_t)texts * rows * plan->inputs[i].stride);
  }

  /* Begins with some texts, of which `first` is the first's number in the update. */
  void begin(int texts, uint32_t first) {
    clean = texts;
    for (uint32_t m = 0; m < capacity; ++m) {
      const uint32_t member = m / 16 * 16 + kOrder[m % 16];
      numbers[m] = (first + member / noisy) * (1 + noisy) + 1 + member % noisy;
    }
  }

  int text(int m) const { return m < clean ? m : (m - clean) / noisy; }

  /* The bits of a text's first noisy member, from that of a unit on. */
  const uint8_t* bits_of(int64_t at, int64_t text, int unit) const {
    return bits.data() + (at * capacity + text * noisy) * plan->row + unit / 8;
  }

  /* Draws the bits of a token's members (section 7.4). */
  void draw(const Counter& c, int at) {
    alignas(64) uint32_t words[64];
    token = at;
    for (int m = 0; m < clean * noisy; m += 16)
      for (int64_t block = 0; block < plan->row / 16; ++block) {
        draw_words(c, words, [&](int lane, Counters x[4]) {
          x[1] = load<Counters>(numbers.data() + m + lane);
          x[2] = (Counters){} + (uint32_t)at, x[3] = (Counters){} + (uint32_t)block;
        });
        uint8_t* out = bits.data() + (at * capacity + m) * plan->row + 16 * block;
        for (int i = 0; i < 16; ++i) store(out + i * plan->row, load<i8x16>(words + 4 * i));
      }
  }

  void vector(const VectorParameter& v, int, int8_t* to, int) const {
    std::copy_n(parameters + v.offset, model.embedding.fan_in, to);
  }

  void embed(const uint16_t* tokens, int count, int8_t* x, int stride) const {
    const int width = model.embedding.fan_in;
    const int8_t amplitude = (int8_t)plan->units[0].amplitude;
    for (int m = 0; m < count; ++m, x += stride) {
      const int8_t* row = parameters + model.embedding.offset + (int64_t)tokens[m] * width;
      if (m < clean) std::copy_n(row, width, x);
      for (int i = 0; m >= clean && i < width; i += 64) {
        int8_t changed[64];
        perturb(row + i, bits_of(token, 0, i) + (m - clean) * plan->row, amplitude, changed);
        for (int j = 0; j < 64 && i + j < stride; j += kLanes) store(x + i + j, load<Narrow>(changed + j));
      }
    }
  }

  template <class Call>
  void addend(Team& team, const Matrix& w, const Encoded* in, int stride, int, const Call& call) {
    const Plan::Product& product = plan->products[w.number];
    if (product.keeps) {
      team.watch.on(intlm::kCopies);
      const Plan::Input& input = plan->inputs[product.input];
      Encoded* to = kept[product.input].data() + token * input.stride;
      for (int m = 0; m < clean; ++m, to += rows * input.stride)
        for (int64_t i = 0; i < input.stride; i += 64 / sizeof(Encoded))
          store(to + i, load<u32x16>(in + (int64_t)m * stride + i));
    }
    if (product.units < 0) return call(None::Addend{});
    const Units& units = plan->units[product.units];
    call(Addend{clean, bits_of(token, 0, units.first), plan->row, units.amplitude});
  }
};

/* Fitness of sixteen members' credits (section 8.3): by a product with `reciprocal`, at most 2^31 and accurate to one part in
 * 2^9, which gives the quotient or one less. */
struct Scale {
  int32_t largest, whole, reciprocal, shift = 0;  // whole: 4 mean, below 2^21
  Scale(int noisy, int32_t mean) : largest(INTLM_MAX8 / noisy), whole(4 * mean) {
    while ((int64_t)largest << (shift + 1) <= INT32_MAX) ++shift;
    reciprocal = (int32_t)(((int64_t)largest << shift) / whole);
  }
  i32x16 operator()(i32x16 magnitude) const {
    const i32x16 size = magnitude < whole ? magnitude : (i32x16){} + whole;
    const i32x16 quotient = (size * reciprocal) >> shift, rest = size * largest + whole / 2 - quotient * whole;
    return quotient - (rest >= whole);  // true is -1
  }
};

static inline i32x16 with_sign(i32x16 magnitude, i32x16 sign) { return sign < 0 ? -magnitude : magnitude; }

enum Credit { kOwn, kFuture, kCredits };  // d and R

/* A worker's tile of texts, from their tokens to fitness. */
struct Reader {
  const TokenProblem& p;
  const Plan& plan;
  int64_t length;
  int texts, of_text, width, fitness_stride;  // of the tile; members of a text; logits with padding
  Tile<Noisy> tile;
  Counter counter;
  Buffer<int16_t> logits;                // [members][width]
  Buffer<int32_t> wanted;                // [vocab]: how many of a token's targets each is, 0 between tokens
  Buffer<int32_t> losses;                // [texts][length][of_text]
  Buffer<int8_t> head;                   // node votes of the logits: [texts * rows][width]
  Buffer<int8_t> fitness[kCredits];      // [texts][length][fitness_stride]
  Buffer<int32_t> sums[kCredits];        // of fitness over members: [texts][length]
  Buffer<int32_t> energy[kCredits + 1];  // E: [texts * rows]; the last is the head's
  int64_t sizes[kCredits] = {};

  Reader(const TokenProblem& problem, const Model& model, const Plan& plan_, const int8_t* parameters, int texts_,
         int64_t length_, uint32_t update)
      : p(problem), plan(plan_), length(length_), texts(texts_), of_text(1 + p.noisy), width((p.vocab + 63) & ~63),
        fitness_stride((p.noisy + 15) & ~15), tile(p, model, parameters, texts * of_text),
        counter(p, update, kTokenDomain), logits((size_t)tile.capacity * width), wanted(p.vocab),
        losses((size_t)texts * length * of_text) {
    tile.change.reserve(plan, texts, length);
    const size_t rows = (size_t)texts * tile.change.rows;
    head.reserve(rows * width);
    for (auto& f : fitness) f.reserve((size_t)texts * length * fitness_stride);
    for (auto& s : sums) s.reserve((size_t)texts * length);
    for (auto& e : energy) e.reserve(rows);
  }

  /* Reads `count` texts, of which `number` is the first's. Writes the clean members' losses and states. */
  void read(const uint16_t* tokens, const uint16_t* targets, int log_targets, const int8_t* states, uint32_t number,
            int count, const bool* there, int32_t* totals, int8_t* next) {
    Team alone;
    uint16_t reading[kMostMembers];
    int32_t lse[kMostMembers];
    const int members = count * of_text;
    int16_t* const scores = logits.data();
    const int64_t stride = width;
    tile.change.begin(count, number);
    tile.start(members, states);
    std::fill_n(totals, count, 0);
    for (int64_t at = 0; at < length; ++at) {
      alone.watch.on(intlm::kNoise);
      tile.change.draw(counter, (int)at);
      for (int text = 0; text < count; ++text) {
        reading[text] = tokens[text * length + at];
        std::fill_n(reading + count + text * p.noisy, p.noisy, reading[text]);
      }
      tile.step(alone, reading, [=](int m, int from, Wide found) { store(scores + m * stride + from, found); });
      alone.watch.on(intlm::kLoss);
      log_sum_exp2(scores, stride, members, p.vocab, lse);
      for (int text = 0; text < count; ++text) {
        const uint16_t* follow = targets + ((text * length + at) << log_targets);
        int32_t* const loss = losses.data() + (text * length + at) * of_text;
        for (int k = 0; k < of_text; ++k) {
          const int m = k ? count + text * p.noisy + k - 1 : text;
          int32_t chosen = 0;
          for (int i = 0; i < 1 << log_targets; ++i) chosen += scores[m * stride + follow[i]];
          loss[k] = lse[m] - intlm_rshift(chosen, log_targets);
        }
        if (there[text]) {
          totals[text] += loss[0];
          vote_head(scores + text * stride, lse[text], follow, log_targets, (number + text) * of_text, text, at);
        } else {
          skip_head(text, at);
        }
      }
    }
    alone.watch.on(intlm::kCopies);
    tile.finish(next, count);
  }

  /* The logits' node votes, by the loss's own slope (section 9.2). */
  void vote_head(const int16_t* own, int32_t lse, const uint16_t* follow, int log_targets, uint32_t member, int text,
                 int64_t at) {
    const int64_t row = (int64_t)text * tile.change.rows + at;
    const int whole = (p.vocab + kTerms - 1) / kTerms * kTerms;  // log_sum_exp2 made those beyond the vocabulary 0
    int8_t* y = head.data() + row * width;
    alignas(64) uint32_t words[64];
    const uint8_t* octets = (const uint8_t*)words;
    int32_t squares = 0;
    for (int i = 0; i < 1 << log_targets; ++i) ++wanted[follow[i]];
    for (int from = 0; from < whole; from += 256) {
      draw_words(counter, member, (uint32_t)at, (uint32_t)from / 16, words);
      const int to = std::min(from + 256, whole);
      for (int v = from; v < to; v += kTerms) slopes(lse, own + v, octets + v - from, y + v);
      for (int i = 0; i < 1 << log_targets; ++i)
        if (const int v = follow[i]; from <= v && v < to && wanted[v]) {
          const int32_t g = (wanted[v] * INTLM_MAX8 << 8) >> log_targets;
          y[v] = (int8_t)((g - share_of(lse - own[v]) + octets[v - from]) >> 8);
          wanted[v] = 0;
        }
      for (int v = from; v < to; ++v) squares += y[v] * y[v];
    }
    energy[kCredits][row] = std::max(1, squares / p.vocab);
  }

  /* Those of a text that does not count. */
  void skip_head(int text, int64_t at) {
    const int64_t row = (int64_t)text * tile.change.rows + at;
    std::fill_n(head.data() + row * width, width, 0);
    energy[kCredits][row] = 0;
  }

  /* Credit and fitness of the texts that were read (sections 8.2, 8.3), with the sums of fitness and of its squares. Sixteen members
   * of a text go through all tokens, backward. */
  void score(const uint16_t* tokens, int count, const int32_t* means, const bool* there, const bool* voters) {
    intlm::Stopwatch watch(intlm::kVotes);
    const Scale scales[kCredits] = {{p.noisy, means[kOwn]}, {p.noisy, means[kFuture]}};
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int text = 0; text < count; ++text)
      for (int first = 0; first < p.noisy; first += 16) {
        const i32x16 counts = there[text] ? lane < p.noisy - first : (i32x16){};
        i32x16 votes = {}, r = {}, low[kCredits] = {}, high[kCredits] = {};
        for (int m = 0; m < std::min(16, p.noisy - first); ++m) votes[m] = -voters[first + m];
        for (int64_t at = length; at-- > 0;) {
          const int64_t row = text * length + at;
          const int32_t* loss = losses.data() + row * of_text;
          if (at + 1 < length && tokens[row + 1] == 0) r = (i32x16){};
          const i32x16 d = (loss[0] - load<i32x16>(loss + 1 + first)) & counts;
          r = d + with_sign((with_sign(r, r) * p.credit) >> 3, r);
          const i32x16 credits[kCredits] = {d, r};
          for (int c = 0; c < kCredits; ++c) {
            const i32x16 magnitude = with_sign(credits[c], credits[c]), f = scales[c](magnitude) & votes;
            low[c] += magnitude & 4095, high[c] += magnitude >> 12;
            const i32x16 squares = f * f, own = with_sign(f, credits[c]);
            store(fitness[c].data() + row * fitness_stride + first,
                  __builtin_convertvector(__builtin_convertvector(own, i16x16), i8x16));
            int32_t *square = &energy[c][(int64_t)text * tile.change.rows + at], *sum = &sums[c][row];
            *square = (first ? *square : 0) + (int32_t)total(load<Lanes>(&squares));
            *sum = (first ? *sum : 0) + (int32_t)total(load<Lanes>(&own));
          }
        }
        for (int c = 0; c < kCredits; ++c)
          sizes[c] += (total(load<Lanes>(&high[c])) << 12) + total(load<Lanes>(&low[c]));
      }
  }
};

}  // namespace INTLM_TARGET
