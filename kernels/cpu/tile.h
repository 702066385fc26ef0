/* The model's step (section 5.2): a tile of members goes through all layers and all tokens, in cache.
 *
 * Products are blocks of members times vectors of outputs held in registers. When their sums are complete, the member's
 * change is added, they are rescaled, and the model's next operation (a gate, a residual) is done before they leave the
 * registers. A class, the tile's template argument, says how members differ: `None` here, `LowRank` in low_rank.h.
 */
#pragma once

#include "model.h"

namespace INTLM_TARGET {

/* A worker and the others that share its tile, each computing its share of every product's outputs. */
struct Team {
  int part = 0, parts = 1;
  intlm::Barrier* barrier = nullptr;
  intlm::Stopwatch watch{intlm::kCopies};
  void meet() {
    if (barrier) barrier->wait(part);
  }
  int from(int panels) const { return panels * part / parts; }
  int to(int panels) const { return panels * (part + 1) / parts; }
};

/* Members that all compute with the shared weights. Its comments describe the interface of any such class. */
struct None {
  /* Whether something is added to the sums of products. If so a whole number of blocks of members goes through every
   * product: those beyond the last member are computed and not read. */
  static constexpr bool kAny = false;
  /* Whether every member has vectors (biases) of its own. */
  static constexpr bool kOwnVectors = false;

  /* The addend of one product's sums. With kAny it has `make<MB, UB>(m0, u0, each)`, which calls
   * each(m, u, part, change) for a block of MB members from m0 and UB vectors of outputs from u0, and
   * `apply(m, sums, change)`, which returns the sums of the block's member m with it. With kStarts it has
   * `start<MB, UB>(m0, u0, from, each)`, which calls each(m, u, part, v) with what the sums start from, in place of
   * `from`, a matrix's `start`. */
  struct Addend {
    static constexpr bool kAny = false, kStarts = false;
  };

  const Model& model;
  const int8_t* parameters;
  None(const Problem&, const Model& m, const int8_t* parameters_, int) : model(m), parameters(parameters_) {}

  /* The number of the states that a member starts from. */
  static int text(int m) { return m; }
  /* Writes a vector's rows, [members or 1][stride], before a tile's first token. */
  void vector(const VectorParameter& v, int, int8_t* rows, int) const {
    std::copy_n(parameters + v.offset, model.embedding.fan_in, rows);
  }
  /* Writes the members' rows of the embedding, x [members][stride], at every token. */
  void embed(const uint16_t* tokens, int members, int8_t* x, int stride) const {
    const int width = model.embedding.fan_in;
    for (int m = 0; m < members; ++m)
      std::copy_n(parameters + model.embedding.offset + (int64_t)tokens[m] * width, width, x + (int64_t)m * stride);
  }

  /* Calls call(addend) for a product of encoded activations, [members][stride]. */
  template <class Call>
  void addend(Team&, const Matrix&, const Encoded*, int, int, const Call& call) {
    call(Addend{});
  }
};

template <class Change>
struct Tile {
  const Problem& p;
  const Model& model;
  int capacity;              // members
  int hidden, feed_forward;  // padded
  int32_t mean_scale;
  Change change;
  Buffer<int8_t> vectors;       // [layers * kLayerVectors][members or 1][hidden]
  Buffer<int8_t> x;             // [members][hidden], the residual stream
  Buffer<Encoded> normed;       // encoded: [parts][members][hidden]
  Buffer<Encoded> reset, wide;  // encoded: [members][hidden], [members][feed_forward]
  Buffer<Encoded> state;        // encoded: [layers][members][hidden]
  Buffer<int16_t> y, gate;      // [members][hidden]
  int members = 0;

  Tile(const Problem& problem, const Model& m, const int8_t* parameters, int most, int parts = 1)
      : p(problem), model(m), capacity(Change::kAny ? (most + 11) / 12 * 12 : most), hidden(padded(p.hidden)),
        feed_forward(padded(p.feed_forward)), mean_scale(mean_multiplier(p.hidden)),
        change(p, m, parameters, capacity) {
    const size_t own = (size_t)capacity * hidden;
    vectors.reserve((size_t)p.layers * kLayerVectors * (Change::kOwnVectors ? own : hidden));
    x.reserve(own), reset.reserve(own), y.reserve(own), gate.reserve(own);
    normed.reserve(own * parts), state.reserve(own * p.layers);
    wide.reserve((size_t)capacity * feed_forward);
  }

  int8_t* vector_rows(int row) { return vectors.data() + (int64_t)row * (Change::kOwnVectors ? capacity : 1) * hidden; }

  /* Everything that a tile of members needs before its first token. states: [][layers][hidden], of which member m starts
   * from number change.text(m). */
  void start(int count, const int8_t* states) {
    members = count;
    for (int l = 0; l < p.layers; ++l) {
      for (int m = 0; m < members; ++m) {
        Encoded* out = state.data() + ((int64_t)l * capacity + m) * hidden;
        const int8_t* in = states + ((int64_t)change.text(m) * p.layers + l) * p.hidden;
        for (int i = 0; i < p.hidden; ++i) out[i] = (Encoded)(in[i] + kEncoding);
      }
      for (int i = 0; i < kLayerVectors; ++i)
        change.vector(model.layers[l].vectors[i], members, vector_rows(l * kLayerVectors + i), hidden);
    }
  }

  /* Writes the states of the first `count` members. */
  void finish(int8_t* states, int count) {
    for (int m = 0; m < count; ++m)
      for (int l = 0; l < p.layers; ++l) {
        const Encoded* row = state.data() + ((int64_t)l * capacity + m) * hidden;
        for (int i = 0; i < p.hidden; ++i)
          states[((int64_t)m * p.layers + l) * p.hidden + i] = (int8_t)(row[i] - kEncoding);
      }
  }

  /* A product's operands, held in locals: the compiler must assume that a store of bytes changes anything else. */
  struct Operands {
    const int8_t* packed;
    const int32_t* start;
    int fan_in, shift;
    int16_t multiplier;
    const Encoded* in;  // [members][stride], encoded
    int stride;
  };

  /* Sums of MB members times UB vectors of outputs, changed and rescaled, each vector handed to
   * sink(member, first output, values). */
  template <int MB, int UB, class Addend, class Sink>
  static inline void block(const Operands& operands, const Addend& addend, int m0, int u0, const Sink sink) {
    const Operands o = operands;
    Sums acc[MB][UB][kParts];
    if constexpr (Addend::kStarts) {
      addend.template start<MB, UB>(m0, u0, o.start,
                                    [&](int m, int u, int part, Lanes from) { acc[m][u][part] = load<Sums>(&from); });
    } else {
#pragma GCC unroll 8
      for (int u = 0; u < UB; ++u)
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part) {
          Sums begin = load<Sums>(o.start + 16 * ((u0 + u) * kParts + part));
#pragma GCC unroll 12
          for (int m = 0; m < MB; ++m) acc[m][u][part] = begin;
        }
    }
    /* The change first: it does not wait for the sums, so it is made while those of the last block end and these begin.
     * Where registers are few the sums start from it. */
    constexpr bool kKept = Addend::kAny && !kChangeFirst;
    Lanes by[kKept ? MB : 1][UB][kParts];
    if constexpr (Addend::kAny) {
      addend.template make<MB, UB>(m0, u0, [&](int m, int u, int part, Lanes change) {
        if constexpr (kKept) by[m][u][part] = change;
        else acc[m][u][part] = Addend::apply(m, acc[m][u][part], change);
      });
      if constexpr (kKept) asm volatile("" : "+m"(by));  // keeps the compiler from moving it behind the sums
    }
    const Encoded* from = o.in + (int64_t)m0 * o.stride;
    const int8_t* weights = o.packed + (int64_t)u0 * kLanes * o.fan_in;
    const int64_t stride = o.stride;
    for (const Encoded* end = from + o.fan_in; from != end; from += kDepth, weights += 16 * kDepth * UB * kParts) {
#pragma GCC unroll 12
      for (int m = 0; m < MB; ++m)
#pragma GCC unroll 8
        for (int u = 0; u < UB; ++u)
#pragma GCC unroll 2
          for (int part = 0; part < kParts; ++part)
            acc[m][u][part] = dot(acc[m][u][part], from + m * stride, weights + (u * kParts + part) * 16 * kDepth);
    }
    const Wide multiplier = (Wide){} + o.multiplier;
#pragma GCC unroll 12
    for (int m = 0; m < MB; ++m)
#pragma GCC unroll 8
      for (int u = 0; u < UB; ++u) {
        Lanes total[kParts];
#pragma GCC unroll 2
        for (int part = 0; part < kParts; ++part) {
          total[part] = load<Lanes>(&acc[m][u][part]);
          if constexpr (kKept) total[part] = Addend::apply(m, total[part], by[m][u][part]);
          if (o.shift) total[part] = total[part] >> o.shift;
        }
        sink(m0 + m, (u0 + u) * kLanes, mulhrs(narrow(total), multiplier));
      }
  }

  template <int UB, class Addend, class Sink>
  __attribute__((noinline)) static void every_member(const Operands& o, const Addend& addend, int members, int u,
                                                     const Sink& sink) {
    constexpr int kMost = kSums / (UB * kParts);
    int m = 0;
    for (; m + (Change::kAny ? 1 : kMost) <= members; m += kMost) block<kMost, UB>(o, addend, m, u, sink);
    if constexpr (!Change::kAny)
      for (; m < members; ++m) block<1, UB>(o, addend, m, u, sink);
  }

  /* in: encoded [members][stride]. A panel of weights stays in the nearest cache while all members use it. */
  template <class Sink>
  void product(Team& team, const Matrix& w, const Encoded* in, int stride, const Sink& sink) {
    const Operands o{w.packed, w.start, w.fan_in, w.scale.shift, (int16_t)w.scale.multiplier, in, stride};
    change.addend(team, w, in, stride, members, [&](const auto& addend) {
      team.watch.on(intlm::kProducts);
      for (int panel = team.from(w.panels()); panel < team.to(w.panels()); ++panel)
        if (const int u = panel * kUnits; w.whole(panel)) every_member<kUnits>(o, addend, members, u, sink);
        else every_member<1>(o, addend, members, u, sink);
    });
  }

  /* The norm of section 5.3 for every member, from x to this worker's part of normed. */
  const Encoded* norm(Team& team) {
    team.watch.on(intlm::kNorm);
    Encoded* own = normed.data() + (int64_t)team.part * capacity * hidden;
    for (int m0 = 0; m0 < members; m0 += 16) {
      const int count = std::min(16, members - m0);
      int32_t totals[16];
      store(totals, magnitudes(x.data() + (int64_t)m0 * hidden, hidden, p.hidden, count));
      for (int m = 0; m < count; ++m) {
        const int64_t at = (int64_t)(m0 + m) * hidden;
        const int16_t gain = intlm_reciprocal[intlm_mean(totals[m], mean_scale)];
        for (int i = 0; i < hidden; i += kLanes) {
          const Wide scaled = widen(load<Narrow>(x.data() + at + i)) << (int16_t)INTLM_ONE_BITS;
          encode(own + at + i, mulhrs(scaled, (Wide){} + gain));
        }
      }
    }
    return own;
  }

  /* Section 5.2 for every member, up to the logits, which go to sink(member, first, values). */
  template <class Sink>
  void step(Team& team, const uint16_t* tokens, const Sink& sink) {
    if (team.part == 0) {
      team.watch.on(intlm::kEmbedding);
      for (int m = 0; m < members; ++m)
        if (tokens[m] == 0)
          for (int l = 0; l < p.layers; ++l)
            std::fill_n(state.data() + ((int64_t)l * capacity + m) * hidden, hidden, (Encoded)kEncoding);
      change.embed(tokens, members, x.data(), hidden);
    }
    team.meet();
    const Wide one = (Wide){} + (int16_t)INTLM_GATE_ONE, unit = (Wide){} + (int16_t)INTLM_GATE_MULTIPLIER;
    /* Sinks hold copies of what they use: see Operands. */
    const int64_t width = hidden, wide_width = feed_forward, bias_width = Change::kOwnVectors ? hidden : 0;
    int16_t *const kept = y.data(), *const shares = gate.data();
    Encoded *const opened = reset.data(), *const up = wide.data();
    int8_t* const residual = x.data();
    const bool table = p.table;
    auto squash = [=](Wide v, const int8_t* by) { return table ? widen(lookup(narrow8(v), by)) : clamp8(v); };
    auto keep = [=](int m, int first, Wide found) { store(kept + m * width + first, found); };
    for (int l = 0; l < p.layers; ++l) {
      const Layer& layer = model.layers[l];
      Encoded* h = state.data() + (int64_t)l * capacity * hidden;
      const int8_t* gate_bias = vector_rows(l * kLayerVectors + kGateBias);
      const int8_t* candidate_bias = vector_rows(l * kLayerVectors + kCandidateBias);
      const Encoded* in = norm(team);
      product(team, layer.products[kGateInput], in, hidden, keep);
      product(team, layer.products[kGateState], h, hidden, [=](int m, int first, Wide found) {
        const int64_t at = m * width + first;
        const Wide open = found + load<Wide>(kept + at) + widen(load<Narrow>(gate_bias + m * bias_width + first));
        const Wide share = squash(open, intlm_sigmoid) + one;
        store(shares + at, share);
        encode(opened + at, mulhrs(share * decode(h + at), unit));
      });
      product(team, layer.products[kCandidateInput], in, hidden, keep);
      team.meet();
      product(team, layer.products[kCandidateState], opened, hidden, [=](int m, int first, Wide found) {
        const int64_t at = m * width + first;
        Wide candidate = found + load<Wide>(kept + at) + widen(load<Narrow>(candidate_bias + m * bias_width + first));
        candidate = squash(candidate, intlm_tanh);
        const Wide share = load<Wide>(shares + at);
        Wide next = mulhrs((one + one - share) * decode(h + at) + share * candidate, unit);
        encode(h + at, next);
        if (table) next = (next + (int16_t)(1 << (INTLM_STATE_SHIFT - 1))) >> (int16_t)INTLM_STATE_SHIFT;
        store(residual + at, narrow8(widen(load<Narrow>(residual + at)) + next));
      });
      team.meet();
      in = norm(team);
      product(team, layer.products[kUp], in, hidden,
              [=](int m, int first, Wide found) { encode(up + m * wide_width + first, found > 0 ? found : -found); });
      team.meet();
      product(team, layer.products[kDown], up, feed_forward, [=](int m, int first, Wide found) {
        const int64_t at = m * width + first;
        store(residual + at, narrow8(widen(load<Narrow>(residual + at)) + found));
      });
      team.meet();
    }
    product(team, model.head, norm(team), hidden, sink);
    team.meet();
  }
};

}  // namespace INTLM_TARGET
