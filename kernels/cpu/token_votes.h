/* The votes of the estimator `token` (docs/numerics.md, 9.2, 9.3).
 *
 * A matrix's votes are a product of bytes: lanes are outputs, as in the model's products, but what is summed over are
 * tokens. Both operands are laid out in panels of sixteen columns: [panels][groups][16][kDepth], a group being kDepth
 * tokens; a text begins a new one. Sums are kept as [fan_in][fan_out] until the end.
 */
#pragma once

#include "token.h"

namespace INTLM_TARGET {

constexpr int kPanel = 16;

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

/* Sixteen columns of two rows, side by side. */
static inline u16x16 pair_rows(const void* first, const void* second) {
  const u16x16 a = __builtin_convertvector(load<u8x16>(first), u16x16);
  return a | __builtin_convertvector(load<u8x16>(second), u16x16) << 8;
}
static inline u32x16 pair_rows(u16x16 first, u16x16 second) {
  return __builtin_convertvector(first, u32x16) | __builtin_convertvector(second, u32x16) << 16;
}

/* Sixteen columns of kDepth rows, side by side. */
template <class T>
static inline void interleave(const T* rows, int64_t stride, T* out) {
  if constexpr (sizeof(T) == 2) {
    store(out, pair_rows(load<u16x16>(rows), load<u16x16>(rows + stride)));
  } else {
    const u16x16 pairs = pair_rows(rows, rows + stride);
    if constexpr (kDepth == 2) store(out, pairs);
    else store(out, pair_rows(pairs, pair_rows(rows + 2 * stride, rows + 3 * stride)));
  }
}

/* The sums of KB inputs times OB panels of outputs over some groups. */
template <int KB, int OB>
static inline void sum_products(Sums acc[KB][OB], const Encoded* x, const int8_t* y, int64_t y_panel, int64_t groups) {
  for (const Encoded* end = x + groups * kPanel * kDepth; x != end; x += kPanel * kDepth, y += kPanel * kDepth)
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k)
#pragma GCC unroll 3
      for (int o = 0; o < OB; ++o) acc[k][o] = dot(acc[k][o], x + k * kDepth, y + o * y_panel);
}

/* The squares of a group of sixteen inputs, in pairs: tokens 0 and 2, then 1 and 3, or 0 and 1 where a group has two. */
static inline void squares(const Encoded* x, Lanes out[kDepth / 2]) {
  i16x32 pairs = load<i16x32>(x);
  if (kDepth == 4) {
    pairs ^= (int16_t)(0x0101 * kEncoding);
    const i16x32 even = (pairs << 8) >> 8, odd = pairs >> 8, of_odd = odd * odd;
    pairs = even;
    out[kDepth / 2 - 1] = load<Lanes>(&of_odd);
  }
  pairs *= pairs;
  out[0] = load<Lanes>(&pairs);
}

/* The smallest shift of a text's votes for a matrix with which those of all texts stay within int32. */
static int vote_shift(int64_t texts, int64_t length) {
  int shift = 0;
  while (texts * ((length * INTLM_MAX8 * INTLM_MAX8 + (1 << shift >> 1)) >> shift) > INT32_MAX) ++shift;
  return shift;
}

/* A worker's sums of votes and of chance. */
struct Tally {
  struct Place {
    int64_t offset, fan_out, fan_in;  // of a parameter
    bool transposed;                  // a matrix, whose sums are [fan_in][stride]; [fan_out][stride] of others
    int64_t variances;                // the number of values of its chance
    int64_t told;                     // where they begin, among all parameters'
    int64_t stride, votes, chance;    // of its sums
    int64_t size() const { return (transposed ? fan_in : fan_out) * stride; }
  };
  const TokenProblem& p;
  const Plan& plan;
  std::vector<Place> places;  // by the parameter's number
  int shift;
  Buffer<int32_t> votes;          // [fan_in][outputs] of a matrix, [vocab][hidden] of the embedding, [hidden] of a bias
  Buffer<int64_t> chance;         // [fan_in] of a matrix, [vocab] of the embedding, [1] of a bias
  Buffer<int8_t> y;               // panels of node votes
  Buffer<Encoded> x[2];           // panels of inputs, of the products with noise and of others
  int laid[2] = {-1, -1};         // which inputs they are
  Buffer<int32_t> sums;           // of node votes over the tokens of a text, and of all: [texts + 1][outputs]
  Buffer<int32_t> energies;       // E in the pairs of `squares`: [kCredits + 1][texts * groups][kDepth / 2]
  int64_t texts = 0, groups = 0;  // of the tile that is added; of a text

  Tally(const TokenProblem& problem, const Plan& plan_, int64_t length)
      : p(problem), plan(plan_), places(plan.products.size()), shift(vote_shift(p.texts, length)) {
    plan.model.each_matrix([&](const Matrix& w) {
      const bool is_embedding = w.number == plan.model.embedding.number;
      places[w.number] = {w.offset, w.fan_out, w.fan_in, !is_embedding, is_embedding ? w.fan_out : w.fan_in};
    });
    for (const Layer& layer : plan.model.layers)
      for (const VectorParameter& v : layer.vectors) places[v.number] = {v.offset, 1, p.hidden, false, 1};
    int64_t size = 0, width = 0;
    for (Place& place : places) {
      place.stride = rounded(place.transposed ? place.fan_out : place.fan_in, kPanel);
      place.votes = size, place.chance = place.told = width;
      size += place.size(), width += place.variances;
    }
    for (const Layer& layer : plan.model.layers)  // which read the same, with noise that is credited alike
      places[layer.products[kCandidateInput].number].chance = places[layer.products[kGateInput].number].chance;
    votes.reserve(size), chance.reserve(width);
  }

  /* Adds the votes of a tile's texts, `count` of them. */
  void add(const Reader& reader, const uint16_t* tokens, int count) {
    intlm::Stopwatch watch(intlm::kVotes);
    texts = count, groups = reader.tile.change.rows / kDepth, laid[0] = laid[1] = -1;
    energies.reserve((kCredits + 1) * texts * groups * (kDepth / 2));
    for (int c = 0; c <= kCredits; ++c) pair_up_energies(reader.energy[c].data(), energies_of(c));
    for (const Units& units : plan.units) {
      const int credit = units.future ? kFuture : kOwn;
      if (!units.noisy) {
        embedding(reader, units, tokens);
        continue;
      }
      node_votes(reader, units, credit);
      matrix(reader, *units.noisy, credit);
      if (units.other) matrix(reader, *units.other, credit);
      if (units.bias) bias(reader, units, credit);
    }
    head_votes(reader);
    matrix(reader, plan.model.head, kCredits);
  }

 private:
  int64_t y_panel() const { return texts * groups * kPanel * kDepth + 64; }  // not a power of two
  int64_t x_panel() const { return texts * groups * kPanel * kDepth + 64 / sizeof(Encoded); }
  int32_t* energies_of(int credit) { return energies.data() + credit * texts * groups * (kDepth / 2); }

  void pair_up_energies(const int32_t* energy, int32_t* out) const {
    for (int64_t group = 0; group < texts * groups; ++group, energy += kDepth)
      for (int i = 0; i < kDepth / 2; ++i) *out++ = energy[i] | energy[kDepth == 4 ? i + 2 : 1] << 16;
  }

  /* The node votes of 64 units from `unit` on, of a text's token. */
  void sum_members(const Reader& reader, int credit, int64_t text, int64_t at, int unit, int8_t* out) const {
    const int64_t row = text * reader.length + at;
    sum_signs(reader.tile.change.bits_of(at, text, unit), plan.row,
              reader.fitness[credit].data() + row * reader.fitness_stride, p.noisy, reader.sums[credit][row], out);
  }

  void embedding(const Reader& reader, const Units& units, const uint16_t* tokens) {
    const Place& place = places[plan.model.embedding.number];
    const int32_t* energy = reader.energy[kFuture].data();
    for (int64_t text = 0; text < texts; ++text)
      for (int64_t at = 0; at < reader.length; ++at) {
        const int64_t token = tokens[text * reader.length + at];
        chance[place.chance + token] += energy[text * groups * kDepth + at];
        for (int i = 0; i < p.hidden; i += 64) {
          int8_t own[64];
          sum_members(reader, kFuture, text, at, units.first + i, own);
          int32_t* out = votes.data() + place.votes + token * place.stride + i;
          for (int j = 0; j < std::min<int64_t>(64, place.stride - i); j += kPanel)
            store(out + j, load<i32x16>(out + j) + widen(widen(load<i8x16>(own + j))));
        }
      }
  }

  void node_votes(const Reader& reader, const Units& units, int credit) {
    const int outputs = (int)rounded(units.width, kPanel);
    y.reserve(outputs / kPanel * y_panel());
    int8_t* to = y.data();
    for (int64_t text = 0; text < texts; ++text)
      for (int64_t begin = 0; begin < reader.length; begin += kDepth, to += kPanel * kDepth)
        for (int i = 0; i < outputs; i += 64) {
          alignas(64) int8_t own[kDepth][64];
          for (int j = 0; j < kDepth; ++j)
            if (begin + j < reader.length) sum_members(reader, credit, text, begin + j, units.first + i, own[j]);
            else std::fill_n(own[j], 64, 0);
          for (int o = 0; o < std::min(64, outputs - i); o += kPanel)
            interleave(own[0] + o, 64, to + (i + o) / kPanel * y_panel());
        }
    sum_tokens(outputs);
  }

  void head_votes(const Reader& reader) {
    const int outputs = (int)rounded(p.vocab, kPanel);
    y.reserve(outputs / kPanel * y_panel());
    const int8_t* rows = reader.head.data();
    for (int64_t group = 0; group < texts * groups; ++group, rows += kDepth * reader.width)
      for (int o = 0; o < outputs; o += kPanel)
        interleave(rows + o, reader.width, y.data() + o / kPanel * y_panel() + group * kPanel * kDepth);
    sum_tokens(outputs);
  }

  void sum_tokens(int outputs) {
    Encoded ones[kDepth];
    std::fill_n(ones, kDepth, 1);
    sums.reserve((texts + 1) * outputs);
    for (int o = 0; o < outputs; o += kPanel) {
      const int8_t* from = y.data() + o / kPanel * y_panel();
      Lanes total = broadcast(0);
      for (int64_t text = 0; text < texts; ++text) {
        const Lanes zero = broadcast(0);
        Sums acc = load<Sums>(&zero);
        for (int64_t group = 0; group < groups; ++group, from += kPanel * kDepth) acc = dot(acc, ones, from);
        const Lanes sum = load<Lanes>(&acc);
        store(sums.data() + text * outputs + o, sum);
        total = total + sum;
      }
      store(sums.data() + texts * outputs + o, total);
    }
  }

  void bias(const Reader& reader, const Units& units, int credit) {
    const Place& place = places[units.bias->number];
    const int32_t* total = sums.data() + texts * rounded(units.width, kPanel);
    const int32_t* energy = reader.energy[credit].data();
    for (int i = 0; i < units.width; ++i) votes[place.votes + i] += total[i];
    for (int64_t i = 0; i < texts * groups * kDepth; ++i) chance[place.chance] += energy[i];
  }

  void lay_out(const Reader& reader, int input, Buffer<Encoded>& out) {
    const auto [fan_in, stride] = plan.inputs[input];
    const Encoded* rows = reader.tile.change.kept[input].data();
    out.reserve(blocks(fan_in) * x_panel());
    for (int64_t group = 0; group < texts * groups; ++group, rows += kDepth * stride)
      for (int i = 0; i < blocks(fan_in); ++i)
        interleave(rows + i * kPanel, stride, out.data() + i * x_panel() + group * kPanel * kDepth);
  }

  /* The votes and the chance of a matrix whose node votes are in y. */
  void matrix(const Reader& reader, const Matrix& w, int credit) {
    const int input = plan.products[w.number].input, which = plan.products[w.number].units < 0;
    if (laid[which] != input) lay_out(reader, input, x[which]), laid[which] = input;
    const Encoded* in = x[which].data();
    const Place& place = places[w.number];
    if (plan.products[w.number].keeps) add_chance(place, in, w.fan_in, credit);
    constexpr int KB = kSums >= 24 ? 8 : 4;
    int panel = 0;
    if (kSums >= 24)
      for (; panel + 3 <= place.stride / kPanel; panel += 3) outputs<KB, 3>(place, in, w.fan_in, panel);
    for (; panel < place.stride / kPanel; ++panel) outputs<KB, 1>(place, in, w.fan_in, panel);
  }

  /* Some panels of a matrix's outputs. */
  template <int KB, int OB>
  void outputs(const Place& place, const Encoded* x, int fan_in, int panel) {
    const int8_t* from = y.data() + panel * y_panel();
    for (int k = 0; k < fan_in; k += KB) {
      const Encoded* in = x + k / kPanel * x_panel() + k % kPanel * kDepth;
      int32_t* out = votes.data() + place.votes + k * place.stride + panel * kPanel;
      auto part = [&](int64_t first_text, int64_t count, const int32_t* sum) {
        Sums acc[KB][OB];
        for (int o = 0; o < OB; ++o) {
          const Lanes start = load<Lanes>(sum + (panel + o) * kPanel) * broadcast(-kEncoding);
          for (int i = 0; i < KB; ++i) acc[i][o] = load<Sums>(&start);
        }
        const int64_t skipped = first_text * groups * kPanel * kDepth;
        sum_products<KB, OB>(acc, in + skipped, from + skipped, y_panel(), count * groups);
        for (int i = 0; i < KB; ++i)
          for (int o = 0; o < OB; ++o) {
            int32_t* at = out + i * place.stride + o * kPanel;
            store(at, load<Lanes>(at) + rounding_shift(load<Lanes>(&acc[i][o]), shift));
          }
      };
      if (!shift) part(0, texts, sums.data() + texts * place.stride);
      for (int64_t text = 0; shift && text < texts; ++text) part(text, 1, sums.data() + text * place.stride);
    }
  }

  /* C: the sums over tokens of E times the square of an input. */
  void add_chance(const Place& place, const Encoded* x, int fan_in, int credit) {
    const int32_t largest = credit == kCredits ? INTLM_MAX8 : INTLM_MAX8 / p.noisy;
    const int64_t most = (int64_t)(credit == kCredits ? 1 : p.noisy) * largest * largest * INTLM_MAX8 * INTLM_MAX8;
    const int64_t stretch = INT32_MAX / most / kDepth;  // groups whose sum is an int32; 2 at least
    for (int i = 0; i < fan_in; i += kPanel) {
      const Encoded* from = x + i / kPanel * x_panel();
      const int32_t* energy = energies_of(credit);
      int64_t* out = chance.data() + place.chance + i;
      for (int64_t begin = 0; begin < texts * groups; begin += stretch) {
        Lanes acc = broadcast(0), pairs[kDepth / 2];
        for (int64_t group = begin; group < std::min(begin + stretch, texts * groups); ++group) {
          squares(from, pairs);
          from += kPanel * kDepth;
          for (int j = 0; j < kDepth / 2; ++j) acc = dot2_add(acc, pairs[j], *energy++);
        }
        int32_t lanes[kPanel];
        store(lanes, acc);
        for (int k = 0; k < std::min(kPanel, fan_in - i); ++k) out[k] += lanes[k];
      }
    }
  }
};

/* A sum as four digits of 7 bits, the last with all that is left. */
static inline void put_digits(int64_t sum, int64_t stride, int32_t* out) {
  for (int k = 0; k < 4; ++k) out[k * stride] = (int32_t)(k < 3 ? sum >> 7 * k & 127 : sum >> 21);
}

/* A matrix's votes from [fan_in][outputs] to [fan_out][fan_in], in squares that stay in the nearest cache. */
static void transpose_votes(const Tally::Place& place, const int32_t* votes, int32_t* out) {
  for (int64_t o = 0; o < place.fan_out; o += kPanel)
    for (int64_t i = 0; i < place.fan_in; i += 8)
      for (int64_t row = o; row < std::min(o + kPanel, place.fan_out); ++row)
        for (int64_t k = i; k < i + 8; ++k) out[row * place.fan_in + k] = votes[k * place.stride + row];
}

static void evaluate_tokens(const TokenProblem& p, const int8_t* parameters, const uint16_t* tokens,
                            const uint16_t* targets, int64_t length, int log_targets, const int8_t* states,
                            const int32_t* means, uint32_t update, uint32_t first, const bool* there,
                            const bool* voters, int32_t* losses, int8_t* next, int32_t* votes, int32_t* chance,
                            int32_t* sizes) {
  Model model(p);
  Buffer<int8_t> prepared(model.prepared_size);
  model.prepare(parameters, prepared.data(), p.threads);
  model.bind(prepared.data());
  const Plan plan(p, model);
  const int64_t texts = p.pairs, row = (int64_t)p.layers * p.hidden;
  /* As many texts a tile as fill the members' blocks, but no more tokens and logits than stay in a cache. */
  const int64_t held = std::min<int64_t>(kTileTokens, kTileLogits / p.vocab) / length;
  const int64_t share = std::min<int64_t>(kTileMembers / (1 + p.noisy), (texts + p.threads - 1) / p.threads);
  const int own = (int)std::max<int64_t>(1, std::min(held, share));
  const int64_t tiles = (texts + own - 1) / own;
  struct Worker {
    Reader reader;
    Tally tally;
    Worker(const TokenProblem& p, const Model& model, const Plan& plan, const int8_t* prepared, int texts,
           int64_t length, uint32_t update)
        : reader(p, model, plan, prepared, texts, length, update), tally(p, plan, length) {}
  };
  std::vector<std::unique_ptr<Worker>> workers(p.threads);
  parallel(tiles, p.threads, [&](int64_t index, int worker) {
    if (!workers[worker]) workers[worker].reset(new Worker(p, model, plan, prepared.data(), own, length, update));
    auto& [reader, tally] = *workers[worker];
    const int64_t text = index * own;
    const int count = (int)std::min<int64_t>(own, texts - text);
    reader.read(tokens + text * length, targets + (text * length << log_targets), log_targets, states + text * row,
                first + (uint32_t)text, count, there + text, losses + text, next + text * row);
    reader.score(tokens + text * length, count, means, there + text, voters);
    tally.add(reader, tokens + text * length, count);
  });
  /* The workers' sums together, in the form of the results. */
  int64_t total[kCredits] = {};
  for (const auto& worker : workers)
    for (int c = 0; worker && c < kCredits; ++c) total[c] += worker->reader.sizes[c];
  for (int c = 0; c < kCredits; ++c) put_digits(total[c], 1, sizes + 4 * c);
  parallel((int64_t)plan.products.size(), p.threads, [&](int64_t number, int) {
    const Tally::Place* place = nullptr;
    int32_t* sum = nullptr;  // the first worker's, to which the others' are added
    for (const auto& worker : workers) {
      if (!worker) continue;
      place = &worker->tally.places[number];
      int32_t* own = worker->tally.votes.data() + place->votes;
      for (int64_t i = 0; sum && i < place->size(); ++i) sum[i] += own[i];
      sum = sum ? sum : own;
    }
    int32_t* out = votes + place->offset;
    if (place->transposed) transpose_votes(*place, sum, out);
    for (int64_t o = 0; !place->transposed && o < place->fan_out; ++o)
      std::copy_n(sum + o * place->stride, place->fan_in, out + o * place->fan_in);
    for (int64_t i = 0; i < place->variances; ++i) {
      int64_t all = 0;
      for (const auto& worker : workers) all += worker ? worker->tally.chance[place->chance + i] : 0;
      put_digits(all, place->variances, chance + 4 * place->told + i);
    }
  });
}

}  // namespace INTLM_TARGET
