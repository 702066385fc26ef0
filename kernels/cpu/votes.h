/* The votes of the estimator `member` (section 9). */
#pragma once

#include "noise.h"

namespace INTLM_TARGET {

/* Two rows of int8 values as int16 pairs, each times its own factor; count rounded up to sixteen. */
static void zip(const int8_t* first, int32_t f0, const int8_t* second, int32_t f1, int count, int32_t* out) {
  for (int i = 0; i < count; i += 16) store(out + i, zip(first + i, f0, second + i, f1));
}

/* Adds the products of pairs a[terms][outputs] and b[terms][inputs] to OB rows and IB vectors of z. */
template <int OB, int IB>
static inline void outer(const int32_t* a, int64_t a_stride, const int32_t* b, int64_t b_stride, int terms, int32_t* z,
                         int64_t z_stride) {
  Lanes acc[OB][IB];
#pragma GCC unroll 8
  for (int o = 0; o < OB; ++o)
#pragma GCC unroll 2
    for (int i = 0; i < IB; ++i) acc[o][i] = load<Lanes>(z + o * z_stride + 16 * i);
  for (int term = 0; term < terms; ++term, a += a_stride, b += b_stride)
#pragma GCC unroll 8
    for (int o = 0; o < OB; ++o)
#pragma GCC unroll 2
      for (int i = 0; i < IB; ++i) acc[o][i] = dot2_add(acc[o][i], load<Lanes>(b + 16 * i), a[o]);
#pragma GCC unroll 8
  for (int o = 0; o < OB; ++o)
#pragma GCC unroll 2
    for (int i = 0; i < IB; ++i) store(z + o * z_stride + 16 * i, acc[o][i]);
}

/* The buffers that a worker keeps from one slab of votes to the next. */
struct Ballot {
  static constexpr int kPairs = 128, kRows = 256;  // pairs whose noise is held at once; outputs of a slab
  Buffer<int8_t> drawn[2];
  Buffer<int32_t> a, b, z;

  /* Rows from `first` of a matrix: Z = sum over pairs of f A B^T. B is drawn anew for every slab. */
  void matrix(const Problem& p, const Counter& counter, const int8_t* fitness, const Matrix& m, int first,
              uint32_t first_pair, int32_t* votes) {
    const int rows = std::min(kRows, m.fan_out - first), b_blocks = blocks(m.fan_in), in = 16 * b_blocks;
    const int width = b_blocks + blocks(m.fan_out);
    const int64_t a_stride = kRows + 16;  // not a power of two: rows must not map to the same cache set
    const int64_t b_drawn = drawn_bytes(b_blocks), all_drawn = b_drawn + drawn_bytes(kRows / 16);
    const size_t most = (size_t)kPairs / 2 * p.rank;
    a.reserve(most * a_stride), b.reserve(most * in), z.reserve((size_t)kRows * in);
    std::fill(z.data(), z.data() + kRows * in, 0);
    for (Buffer<int8_t>& d : drawn) d.reserve(p.rank * all_drawn);
    for (int64_t begin = 0; begin < p.pairs; begin += kPairs) {
      const int count = (int)std::min<int64_t>(kPairs, p.pairs - begin);
      int terms = 0;
      watch.on(intlm::kNoise);
      for (int pair = 0; pair < count; pair += 2) {
        const int8_t* f = fitness + begin + pair;
        const int32_t other = pair + 1 < count ? f[1] : 0;
        if (f[0] == 0 && other == 0) continue;
        for (int s = 0; s < 2; ++s)
          for (int k = 0; k < p.rank; ++k) {
            const uint32_t global = first_pair + (uint32_t)(begin + pair + s);
            int8_t* to = drawn[s].data() + k * all_drawn;
            draw(counter, global, m.number, k * width, b_blocks, to);
            draw(counter, global, m.number, k * width + b_blocks + first / 16, blocks(rows), to + b_drawn);
          }
        for (int k = 0; k < p.rank; ++k, ++terms) {
          const int8_t *one = drawn[0].data() + k * all_drawn, *two = drawn[1].data() + k * all_drawn;
          zip(one, 1, two, 1, m.fan_in, b.data() + (int64_t)terms * in);
          zip(one + b_drawn, f[0], two + b_drawn, other, rows, a.data() + terms * a_stride);
        }
      }
      watch.on(intlm::kVotes);
      int i = 0;
      auto columns = [&](auto vectors) {
        constexpr int IB = decltype(vectors)::value, OB = kSums >= 24 ? 8 : 4;
        for (int o = 0; o < rows; o += OB)
          outer<OB, IB>(a.data() + o, a_stride, b.data() + i, in, terms, z.data() + (int64_t)o * in + i, in);
      };
      if (kSums >= 24)
        for (; i + 32 <= in; i += 32) columns(std::integral_constant<int, 2>{});
      for (; i < in; i += 16) columns(std::integral_constant<int, 1>{});
    }
    for (int o = 0; o < rows; ++o)
      std::copy_n(z.data() + (int64_t)o * in, m.fan_in, votes + m.offset + (int64_t)(first + o) * m.fan_in);
  }

  void vector(const Problem& p, const Counter& counter, const int8_t* fitness, const VectorParameter& v,
              uint32_t first_pair, int32_t* votes) {
    watch.on(intlm::kNoise);
    const int count = blocks(p.hidden);
    drawn[0].reserve(drawn_bytes(count)), z.reserve(16 * count);
    std::fill(z.data(), z.data() + 16 * count, 0);
    for (int64_t pair = 0; pair < p.pairs; ++pair) {
      if (!fitness[pair]) continue;
      draw(counter, first_pair + (uint32_t)pair, v.number, 0, count, drawn[0].data());
      for (int i = 0; i < 16 * count; i += 16)
        store(z.data() + i,
              load<i32x16>(z.data() + i) + 16 * fitness[pair] * widen(widen(load<i8x16>(drawn[0].data() + i))));
    }
    std::copy_n(z.data(), p.hidden, votes + v.offset);
  }

  intlm::Stopwatch watch{intlm::kVotes};
};

static void accumulate(const Problem& p, const int8_t* fitness, uint32_t epoch, uint32_t first_pair, int32_t* votes) {
  const Model model(p);
  const Counter counter(p, epoch);
  struct Slab {
    const Matrix* matrix;
    const VectorParameter* vector;
    int first;
  };
  std::vector<Slab> slabs;
  model.each_matrix([&](const Matrix& m) {
    for (int first = 0; first < m.fan_out; first += Ballot::kRows) slabs.push_back({&m, nullptr, first});
  });
  for (const Layer& layer : model.layers)
    for (const VectorParameter& v : layer.vectors) slabs.push_back({nullptr, &v, 0});
  std::vector<std::unique_ptr<Ballot>> own(p.threads);
  parallel((int64_t)slabs.size(), p.threads, [&](int64_t index, int worker) {
    if (!own[worker]) own[worker].reset(new Ballot);
    const Slab& slab = slabs[index];
    if (slab.matrix) own[worker]->matrix(p, counter, fitness, *slab.matrix, slab.first, first_pair, votes);
    else own[worker]->vector(p, counter, fitness, *slab.vector, first_pair, votes);
  });
}

}  // namespace INTLM_TARGET
