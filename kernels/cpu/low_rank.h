/* The estimator `member`: antithetic pairs that differ from the weights by low-rank noise (section 7), made once a tile.
 */
#pragma once

#include "loss.h"
#include "noise.h"
#include "tile.h"

namespace INTLM_TARGET {

constexpr int kVectorShift = 1;
constexpr int kTilePairs = 12;

static int32_t rank_multiplier(uint32_t rank) { return (int32_t)((isqrt(65536u / rank) + 1) >> 1); }

/* A matrix's noise for the pairs of a tile. */
struct MatrixNoise {
  int rank = 0, fan_in = 0, b_width = 0, width = 0;
  int64_t stride = 0;       // bytes of one pair
  Buffer<int8_t> raw;       // [pairs][rank][B, A], each padded to 16
  int members = 0;          // of a row of b_start
  Buffer<int32_t> b_start;  // [rank][members], cancels the encoding's constant part

  void reserve(const Matrix& m, int rank_, int pairs) {
    rank = rank_, fan_in = m.fan_in, b_width = blocks(m.fan_in) * 16, width = b_width + blocks(m.fan_out) * 16;
    stride = drawn_bytes(m.noise_bytes(rank) / 16);
    raw.reserve(stride * pairs);
  }

  const int8_t* b_row(int pair, int k) const { return raw.data() + pair * stride + (int64_t)k * width; }
  const int8_t* a_row(int pair, int k) const { return b_row(pair, k) + b_width; }

  /* Draws the noise of that many pairs. */
  void make(const Matrix& m, const Counter& counter, uint32_t first, int pairs) {
    members = (2 * pairs + 15) & ~15;  // rounded up to whole vectors of sixteen
    b_start.reserve((size_t)rank * members);
    for (int pair = 0; pair < pairs; ++pair) {
      draw(counter, first + (uint32_t)pair, m.number, 0, m.noise_bytes(rank) / 16, raw.data() + pair * stride);
      for (int k = 0; kEncoding && k < rank; ++k)
        std::fill_n(&b_start[k * members + 2 * pair], 2, -kEncoding * sum_row(b_row(pair, k), fan_in));
    }
  }
};

/* How members differ (see `None`): members 2 i and 2 i + 1 are pair i. */
struct LowRank {
  static constexpr bool kAny = true, kOwnVectors = true;

  /* RANK: the rank, or 0 for any. */
  template <int RANK>
  struct Addend {
    static constexpr bool kAny = true, kStarts = false;
    const int8_t* a;  // A of the first pair, and its strides from pair to pair and from rank to rank
    int64_t next_pair, next_rank;
    const int32_t* along;  // t
    int t_stride, any_rank, sigma_shift;

    static Lanes apply(int m, Lanes sums, Lanes change) { return m % 2 ? sums - change : sums + change; }

    template <int MB, int UB, class Each>
    inline void make(int m0, int u0, const Each& each) const {
      const Addend o = *this;
      const int rank = RANK ? RANK : o.any_rank;
      const int32_t half = o.sigma_shift ? 1 << (o.sigma_shift - 1) : 0;
#pragma GCC unroll 12
      for (int m = 0; m < MB; m += 2)
#pragma GCC unroll 8
        for (int u = 0; u < UB; ++u) {
          const int8_t* a = o.a + (m0 + m) / 2 * o.next_pair + (u0 + u) * kLanes;
          const int32_t* along = o.along + m0 + m;
          Lanes change[2][kParts];
          int k = 0;
          do {
            Lanes pairs[kParts];
            pair_up(a, k + 1 < rank ? a + o.next_rank : nullptr, pairs);
#pragma GCC unroll 2
            for (int s = 0; s < 2; ++s)
#pragma GCC unroll 2
              for (int part = 0; part < kParts; ++part)
                change[s][part] = k ? dot2_add(change[s][part], pairs[part], along[s]) : dot2(pairs[part], along[s]);
            a += 2 * o.next_rank, along += o.t_stride;
          } while ((k += 2) < rank);
#pragma GCC unroll 2
          for (int s = 0; s < 2; ++s)
#pragma GCC unroll 2
            for (int part = 0; part < kParts; ++part) {
              const Lanes sum = rank % 2 ? change[s][part] : change[s][part] + broadcast(half);
              each(m + s, u, part, sum >> o.sigma_shift);
            }
        }
    }
  };

  const Problem& p;
  const Model& model;
  const int8_t* parameters;
  int t_stride;
  int32_t rank_scale;
  std::vector<MatrixNoise> noise;  // by the matrix's number
  Buffer<int32_t> t;               // [(rank + 1) / 2][t_stride], pairs of int16
  const Counter* counter = nullptr;
  uint32_t first_pair = 0;

  LowRank(const Problem& problem, const Model& m, const int8_t* parameters_, int capacity)
      : p(problem), model(m), parameters(parameters_), t_stride((capacity + 15) & ~15),
        rank_scale(rank_multiplier(p.rank)), noise(model.head.number + 1), t((size_t)t_stride * ((p.rank + 1) / 2)) {
    model.each_matrix([&](const Matrix& w) { noise[w.number].reserve(w, p.rank, capacity / 2); });
  }

  /* Draws the noise of that many pairs. */
  void start(const Counter& c, uint32_t first, int pairs) {
    counter = &c, first_pair = first;
    model.each_matrix([&](const Matrix& w) { noise[w.number].make(w, c, first, pairs); });
  }

  static int text(int m) { return m; }

  void vector(const VectorParameter& v, int members, int8_t* rows, int stride) const {
    const int8_t* w = parameters + v.offset;
    Buffer<int8_t> z(drawn_bytes(blocks(p.hidden)));
    for (int m = 0; m < members; m += 2) {
      draw(*counter, first_pair + (uint32_t)m / 2, v.number, 0, blocks(p.hidden), z.data());
      int8_t *plus = rows + (int64_t)m * stride, *minus = plus + stride;
      for (int i = 0; i < p.hidden; ++i) {
        const int32_t change = intlm_rshift(z[i], p.sigma_shift + kVectorShift);
        plus[i] = (int8_t)intlm_clamp(w[i] + change, INTLM_MAX8);
        minus[i] = (int8_t)intlm_clamp(w[i] - change, INTLM_MAX8);
      }
    }
  }

  void embed(const uint16_t* tokens, int members, int8_t* x, int stride) const {
    const MatrixNoise& n = noise[model.embedding.number];
    for (int m = 0; m < members; m += 2) {
      const int token = tokens[m];
      const int8_t* row = parameters + model.embedding.offset + (int64_t)token * p.hidden;
      int8_t* out = x + (int64_t)m * stride;
      for (int i = 0; i < p.hidden; i += kLanes) {
        Lanes changes[kParts], pairs[kParts];
        for (Lanes& part : changes) part = broadcast(0);
        for (int k = 0; k < p.rank; k += 2) {
          auto along = [&](int which) { return which < p.rank ? n.a_row(m / 2, which)[token] * rank_scale : 0; };
          const int8_t* b = n.b_row(m / 2, k) + i;
          pair_up(b, k + 1 < p.rank ? b + n.width : nullptr, pairs);
          const int32_t two = (along(k) & 0xFFFF) | (int32_t)((uint32_t)along(k + 1) << 16);
          for (int part = 0; part < kParts; ++part) changes[part] = dot2_add(changes[part], pairs[part], two);
        }
        for (Lanes& part : changes)  // anything larger saturates the sum anyway
          part = clamp(rounding_shift(part, 11 + p.sigma_shift), 2 * INTLM_MAX8);
        const Wide base = widen(load<Narrow>(row + i)), change = narrow(changes);
        store(out + i, narrow8(base + change));
        store(out + stride + i, narrow8(base - change));
      }
    }
  }

  template <class Call>
  void addend(Team& team, const Matrix& w, const Encoded* in, int stride, int members, const Call& call) {
    const MatrixNoise& n = noise[w.number];
    team.watch.on(intlm::kProjection);
    project(n, in, stride, members);
    auto with = [&](auto rank) {
      call(Addend<decltype(rank)::value>{n.a_row(0, 0), n.stride, n.width, t.data(), t_stride, n.rank, p.sigma_shift});
    };
    n.rank == 1 ? with(std::integral_constant<int, 1>{}) : with(std::integral_constant<int, 0>{});
  }

  /* Every t, two per lane; with an odd rank the rounding is paired with the last. */
  void project(const MatrixNoise& n, const Encoded* in, int stride, int members) {
    const Lanes half = broadcast(p.sigma_shift ? 1 << (p.sigma_shift - 1) : 0), multiplier = broadcast(rank_scale);
    for (int m = 0; m < members; m += 16)
      for (int k = 0; k < n.rank; ++k) {
        Lanes along = dot_rows(in + (int64_t)m * stride, stride, n.b_row(m / 2, k), n.stride, n.fan_in,
                               std::min(16, members - m));
        if (kEncoding) along = along + load<Lanes>(n.b_start.data() + k * n.members + m);
        along = clamp(rounding_shift(clamp(along, 1 << 23) * multiplier, 11), INTLM_MAX16);
        int32_t* out = t.data() + (int64_t)(k / 2) * t_stride + m;
        store(out, k % 2 ? join(load<Lanes>(out), along) : join(along, half));
      }
  }
};

static void evaluate(const Problem& p, const int8_t* parameters, const uint16_t* tokens, const uint16_t* targets,
                     int64_t length, int log_targets, const int8_t* states, uint32_t epoch, uint32_t first_pair,
                     int32_t* losses, int8_t* next) {
  Model model(p);
  Buffer<int8_t> prepared(model.prepared_size);
  model.prepare(parameters, prepared.data(), p.threads);
  model.bind(prepared.data());
  const Counter counter(p, epoch);
  const int64_t per_thread = (p.pairs + p.threads - 1) / p.threads;
  const int pairs = (int)std::min<int64_t>(kTilePairs, per_thread);
  const int64_t tiles = (p.pairs + pairs - 1) / pairs, row = (int64_t)p.layers * p.hidden;
  struct Worker {
    Tile<LowRank> tile;
    int width;
    Buffer<int16_t> logits;  // [members][width]
    Worker(const Problem& p, const Model& model, const int8_t* prepared, int members)
        : tile(p, model, prepared, members), width((p.vocab + 63) & ~63), logits((size_t)tile.capacity * width) {}
  };
  std::vector<std::unique_ptr<Worker>> own(p.threads);
  parallel(tiles, p.threads, [&](int64_t index, int worker) {
    Team alone;
    if (!own[worker]) own[worker].reset(new Worker(p, model, prepared.data(), 2 * pairs));
    Tile<LowRank>& tile = own[worker]->tile;
    int16_t* const logits = own[worker]->logits.data();
    const int64_t width = own[worker]->width;
    const int64_t first = index * pairs;
    const int count = 2 * (int)std::min<int64_t>(pairs, p.pairs - first);
    alone.watch.on(intlm::kNoise);
    tile.change.start(counter, first_pair + (uint32_t)first, count / 2);
    tile.start(count, states + 2 * first * row);
    int32_t* total = losses + 2 * first;
    std::fill(total, total + count, 0);
    uint16_t reading[2 * kTilePairs];
    int64_t text[2 * kTilePairs];
    for (int m = 0; m < count; ++m) text[m] = (first + m / 2) / p.group * length;
    for (int64_t at = 0; at < length; ++at) {
      for (int m = 0; m < count; ++m) reading[m] = tokens[text[m] + at];
      tile.step(alone, reading, [=](int m, int from, Wide found) { store(logits + m * width + from, found); });
      alone.watch.on(intlm::kLoss);
      int32_t lse[2 * kTilePairs];
      log_sum_exp2(logits, width, count, p.vocab, lse);
      for (int m = 0; m < count; ++m) {
        const int16_t* scores = logits + m * width;
        const uint16_t* follow = targets + ((text[m] + at) << log_targets);
        int32_t chosen = 0;
        for (int k = 0; k < 1 << log_targets; ++k) chosen += scores[follow[k]];
        total[m] += lse[m] - intlm_rshift(chosen, log_targets);
      }
    }
    alone.watch.on(intlm::kCopies);
    tile.finish(next + 2 * first * row, count);
  });
}

}  // namespace INTLM_TARGET
