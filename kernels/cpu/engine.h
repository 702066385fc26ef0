/* The engine: a tile of members goes through all layers and all tokens with its noise made once, in cache.
 *
 * Compiled once for each instruction set, in a namespace of its own. Products are blocks of members times groups of
 * sixteen outputs held in registers; their epilogue adds the perturbation and rescales. Everything between two
 * products is a pass over a member's int8 or int16 vectors, sixteen lanes at a time. Section numbers are those of
 * docs/numerics.md.
 */
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace INTLM_NAMESPACE {

using intlm::Problem;

constexpr int kSlack = 64;  // bytes that a load may read past a buffer's end
constexpr int kTilePairs = 12;
/* Members and groups of sixteen outputs whose accumulators fit the registers. */
#if INTLM_AVX512
constexpr int kMembers = 6, kGroups = 4;
#elif defined(__aarch64__)
constexpr int kMembers = 6, kGroups = 1;
#else
constexpr int kMembers = 4, kGroups = 1;
#endif

static inline int pad16(int n) { return (n + 15) & ~15; }
static inline int blocks(int n) { return (n + 15) / 16; }

/* Zeroed memory, aligned to a cache line. Not std::vector: templates of the standard library that two files share
 * are merged by the linker, and the one kept may be the one compiled for the newer processor. */
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : size_(count), data_((T*)std::calloc(count * sizeof(T) + 2 * kSlack, 1)) {
    if (!data_) std::abort();
    start_ = (T*)(((uintptr_t)data_ + kSlack - 1) & ~(uintptr_t)(kSlack - 1));
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() { std::free(data_); }
  void reserve(size_t count) {
    if (size_ < count) *this = Buffer(count);
  }
  T* data() { return start_; }
  const T* data() const { return start_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return start_[i]; }
  const T& operator[](size_t i) const { return start_[i]; }

 private:
  void swap(Buffer& other) {
    std::swap(size_, other.size_), std::swap(data_, other.data_), std::swap(start_, other.start_);
  }
  size_t size_ = 0;
  T *data_ = nullptr, *start_ = nullptr;
};

template <class Task>
static void parallel(int64_t count, int threads, const Task& task) {
  intlm::parallel(count, threads, (void*)&task,
                  [](void* context, int64_t index, int worker) { (*(const Task*)context)(index, worker); });
}

/* ---- Parameters (section 5.1) ---- */

enum Vector { kCellNorm, kGateBias, kCandidateBias, kFeedForwardNorm, kLayerVectors };
enum Product { kGateInput, kGateState, kCandidateInput, kCandidateState, kUp, kDown, kLayerProducts };

struct Matrix {
  int fan_out = 0, fan_in = 0;
  uint32_t number = 0;
  int64_t offset = 0;  // in the flat parameters
  intlm_rescale_t scale = {0, 0};
  Buffer<int8_t> packed;   // [groups][fan_in / 4][16][4]
  Buffer<int32_t> start;   // [groups * 16], what takes the encoding's constant part away
  int groups() const { return blocks(fan_out); }
  int noise_bytes(int rank) const { return rank * (blocks(fan_in) + blocks(fan_out)) * 16; }
};

struct VectorParameter {
  uint32_t number = 0;
  int64_t offset = 0;
};

struct Layer {
  Matrix products[kLayerProducts];
  VectorParameter vectors[kLayerVectors];
};

struct Model {
  Matrix embedding, head;
  VectorParameter output_norm;
  std::vector<Layer> layers;
  int64_t size = 0;

  explicit Model(const Problem& p) : layers(p.layers) {
    uint32_t number = 0;
    auto matrix = [&](Matrix& m, int fan_out, int fan_in) {
      m.fan_out = fan_out, m.fan_in = fan_in, m.number = number++, m.offset = size;
      size += (int64_t)fan_out * fan_in;
    };
    auto vector = [&](VectorParameter& v) { v.number = number++, v.offset = size, size += p.hidden; };
    matrix(embedding, p.vocab, p.hidden);
    for (Layer& layer : layers) {
      vector(layer.vectors[kCellNorm]);
      matrix(layer.products[kGateInput], p.hidden, p.hidden);
      matrix(layer.products[kGateState], p.hidden, p.hidden);
      vector(layer.vectors[kGateBias]);
      matrix(layer.products[kCandidateInput], p.hidden, p.hidden);
      matrix(layer.products[kCandidateState], p.hidden, p.hidden);
      vector(layer.vectors[kCandidateBias]);
      vector(layer.vectors[kFeedForwardNorm]);
      matrix(layer.products[kUp], p.feed_forward, p.hidden);
      matrix(layer.products[kDown], p.hidden, p.feed_forward);
      for (int i = 0; i < kLayerProducts; ++i) {
        bool state = i == kGateState || i == kCandidateState;
        Matrix& m = layer.products[i];
        m.scale = intlm_activation_rescale(m.fan_in, state && p.table ? INTLM_STATE_SHIFT : 0);
      }
    }
    vector(output_norm);
    matrix(head, p.vocab, p.hidden);
    head.scale = intlm_logit_rescale(p.hidden);
  }

  void pack(const int8_t* parameters) {
    auto one = [&](Matrix& m) {
      m.packed = Buffer<int8_t>((size_t)m.groups() * 16 * m.fan_in);
      m.start = Buffer<int32_t>((size_t)m.groups() * 16);
      for (int o = 0; o < m.fan_out; ++o) {
        const int8_t* row = parameters + m.offset + (int64_t)o * m.fan_in;
        int8_t* group = m.packed.data() + (int64_t)(o / 16) * 16 * m.fan_in + o % 16 * 4;
        int32_t sum = 0;
        for (int k = 0; k < m.fan_in; ++k) {
          group[k / 4 * 64 + k % 4] = row[k];
          sum += row[k];
        }
        m.start[o] = -kEncoding * sum;
      }
    };
    for (Layer& layer : layers)
      for (Matrix& m : layer.products) one(m);
    one(head);
  }
};

/* ---- Noise (sections 4 and 7) ---- */

struct Counter {
  uint32_t key[4], epoch;
};

/* The noise of blocks 0 .. count-1 of (epoch, pair, number); out has room for count blocks rounded up to 64. */
static void draw(const Counter& c, uint32_t pair, uint32_t number, int count, int8_t* out) {
  static const int rotations[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}};
  uint32_t k[5] = {c.key[0], c.key[1], c.key[2], c.key[3], 0x1BD11BDAu ^ c.key[0] ^ c.key[1] ^ c.key[2] ^ c.key[3]};
  /* Lane (l, i) of four lanes l of four holds block 4 i + l, so that the transposed words come out in order. */
  u32x16 lanes;
  for (int l = 0; l < 16; ++l) lanes[l] = 4 * (l % 4) + l / 4;
  for (int first = 0; first < count; first += 16) {
    u32x16 x[4] = {(u32x16){} + (c.epoch + k[0]), (u32x16){} + (pair + k[1]), (u32x16){} + (number + k[2]),
                   lanes + ((uint32_t)first + k[3])};
#pragma GCC unroll 13
    for (int d = 0; d < 13; ++d) {
      int b = d % 2 == 0 ? 1 : 3, e = d % 2 == 0 ? 3 : 1, r0 = rotations[d % 8][0], r1 = rotations[d % 8][1];
      x[0] += x[b];
      x[b] = ((x[b] << r0) | (x[b] >> (32 - r0))) ^ x[0];
      x[2] += x[e];
      x[e] = ((x[e] << r1) | (x[e] >> (32 - r1))) ^ x[2];
      if (d % 4 == 3) {
        int i = d / 4 + 1;
        for (int j = 0; j < 4; ++j) x[j] += k[(i + j) % 5];
        x[3] += (uint32_t)i;
      }
    }
    alignas(64) uint32_t words[64];
#if INTLM_AVX512
    __m512i low01 = _mm512_unpacklo_epi32((__m512i)x[0], (__m512i)x[1]), low23 = _mm512_unpacklo_epi32((__m512i)x[2], (__m512i)x[3]);
    __m512i high01 = _mm512_unpackhi_epi32((__m512i)x[0], (__m512i)x[1]), high23 = _mm512_unpackhi_epi32((__m512i)x[2], (__m512i)x[3]);
    _mm512_store_si512(words, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(words + 16, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(words + 32, _mm512_unpacklo_epi64(high01, high23));
    _mm512_store_si512(words + 48, _mm512_unpackhi_epi64(high01, high23));
#else
    for (int l = 0; l < 16; ++l)
      for (int j = 0; j < 4; ++j) words[(4 * (l % 4) + l / 4) * 4 + j] = x[j][l];
#endif
    for (int i = 0; i < 4 && first + 4 * i < count; ++i)
      quantile64((const uint8_t*)(words + 16 * i), out + 16 * (first + 4 * i));
  }
}

/* Bytes that `draw` may write for count blocks. */
static inline size_t drawn_bytes(int count) { return (size_t)(count + 3) / 4 * 64; }

/* A matrix's noise for the pairs of a tile. */
struct MatrixNoise {
  int rank = 0, fan_in = 0, components = 0, width = 0;
  int64_t stride = 0;        // bytes of one pair's raw noise
  Buffer<int8_t> raw;        // [pairs][rank][B, A], each padded to 16
  Buffer<int32_t> b_start;   // [pairs][rank], what takes the encoding's constant part away
  Buffer<int16_t> a;         // [pairs][components][width][2]: A and at last the rounding, two by two

  void reserve(const Matrix& m, int rank_, int pairs, bool outputs) {
    rank = rank_, fan_in = m.fan_in, width = m.groups() * 16;
    components = (rank + 2) / 2;
    stride = drawn_bytes(m.noise_bytes(rank) / 16);
    raw = Buffer<int8_t>(stride * pairs);
    if (!outputs) return;
    b_start = Buffer<int32_t>((size_t)rank * pairs);
    a = Buffer<int16_t>((size_t)pairs * components * width * 2);
  }

  const int8_t* b_row(int pair, int k) const { return raw.data() + pair * stride + (int64_t)k * (blocks(fan_in) * 16 + width); }
  const int8_t* a_row(int pair, int k) const { return b_row(pair, k) + blocks(fan_in) * 16; }
  const int16_t* a_pairs(int pair) const { return a.data() + (int64_t)pair * components * width * 2; }

  void make(const Matrix& m, const Counter& counter, int pair, uint32_t global) {
    draw(counter, global, m.number, m.noise_bytes(rank) / 16, raw.data() + pair * stride);
    if (!a.size()) return;
    for (int k = 0; k < rank; ++k) {
      int32_t sum = 0;
      const int8_t* b = b_row(pair, k);
      for (int i = 0; i < fan_in; ++i) sum += b[i];
      b_start[pair * rank + k] = -kEncoding * sum;
    }
    int16_t* out = a.data() + (int64_t)pair * components * width * 2;
    for (int c = 0; c < components; ++c, out += 2 * width)
      for (int j = 0; j < 2; ++j) {
        int k = 2 * c + j;
        const int8_t* row = k < rank ? a_row(pair, k) : nullptr;
        for (int o = 0; o < m.fan_out; ++o) out[2 * o + j] = row ? row[o] : k == rank;
      }
  }
};

/* ---- The tile ---- */

template <bool P>
struct Tile {
  const Problem& p;
  const Model& model;
  int capacity;  // members
  int hidden, feed_forward, vocab;  // padded to sixteen
  int32_t rank_multiplier, mean_multiplier;
  bool table;
  MatrixNoise embedding_noise, head_noise;
  std::vector<MatrixNoise> noise;    // [layers * products]
  Buffer<int8_t> vectors;            // [layers * kLayerVectors + 1][members or 1][hidden]
  Buffer<int8_t> x;                  // [members][hidden], the residual stream
  Buffer<uint8_t> normed, reset, wide;  // encoded: [members][hidden], [members][feed_forward]
  Buffer<uint8_t> state;             // encoded: [layers][members][hidden]
  Buffer<int16_t> y0, y1, gate;      // [members][widest]
  Buffer<int32_t> t;                 // [members][components], pairs of int16
  int y_stride;
  int members = 0;
  intlm::Stopwatch watch{intlm::kNoise};

  Tile(const Problem& problem, const Model& m, int capacity_)
      : p(problem), model(m), capacity(capacity_), hidden(pad16(p.hidden)), feed_forward(pad16(p.feed_forward)),
        vocab(pad16(p.vocab)), rank_multiplier(intlm_rank_multiplier(p.rank)),
        mean_multiplier(intlm_mean_multiplier(p.hidden)), table(p.table) {
    size_t rows = (size_t)p.layers * kLayerVectors + 1;
    vectors = Buffer<int8_t>(rows * (P ? capacity : 1) * hidden);
    x = Buffer<int8_t>((size_t)capacity * hidden);
    normed = Buffer<uint8_t>((size_t)capacity * hidden);
    reset = Buffer<uint8_t>((size_t)capacity * hidden);
    wide = Buffer<uint8_t>((size_t)capacity * feed_forward);
    state = Buffer<uint8_t>((size_t)p.layers * capacity * hidden);
    y_stride = std::max(std::max(hidden, feed_forward), vocab);
    y0 = Buffer<int16_t>((size_t)capacity * y_stride);
    y1 = Buffer<int16_t>((size_t)capacity * y_stride);
    gate = Buffer<int16_t>((size_t)capacity * hidden);
    t = Buffer<int32_t>((size_t)capacity * ((p.rank + 2) / 2));
    if (P) {
      embedding_noise.reserve(m.embedding, p.rank, capacity / 2, false);
      head_noise.reserve(m.head, p.rank, capacity / 2, true);
      noise.resize((size_t)p.layers * kLayerProducts);
      for (int l = 0; l < p.layers; ++l)
        for (int i = 0; i < kLayerProducts; ++i)
          noise[l * kLayerProducts + i].reserve(m.layers[l].products[i], p.rank, capacity / 2, true);
    }
  }

  int8_t* vector_row(int row, int member) { return vectors.data() + ((int64_t)row * (P ? capacity : 1) + (P ? member : 0)) * hidden; }

  void set_vector(int row, const VectorParameter& v, const int8_t* parameters, const Counter* counter, int64_t first_pair) {
    const int8_t* w = parameters + v.offset;
    if (!P) {
      std::copy(w, w + p.hidden, vector_row(row, 0));
      return;
    }
    Buffer<int8_t> z(drawn_bytes(blocks(p.hidden)));
    for (int pair = 0; pair < members / 2; ++pair) {
      draw(*counter, (uint32_t)(first_pair + pair), v.number, blocks(p.hidden), z.data());
      int8_t *plus = vector_row(row, 2 * pair), *minus = vector_row(row, 2 * pair + 1);
      for (int i = 0; i < p.hidden; ++i) {
        int32_t change = intlm_rshift(z[i], p.sigma_shift);
        plus[i] = (int8_t)intlm_clamp(w[i] + change, INTLM_MAX8);
        minus[i] = (int8_t)intlm_clamp(w[i] - change, INTLM_MAX8);
      }
    }
  }

  /* Everything that a tile of members needs before its first token. states: [members][layers][hidden]. */
  void start(const int8_t* parameters, const Counter* counter, int64_t first_pair, int count, const int8_t* states) {
    members = count;
    for (int l = 0; l < p.layers; ++l) {
      for (int i = 0; i < kLayerVectors; ++i)
        set_vector(l * kLayerVectors + i, model.layers[l].vectors[i], parameters, counter, first_pair);
      for (int m = 0; m < members; ++m) {
        uint8_t* out = state.data() + ((int64_t)l * capacity + m) * hidden;
        for (int i = 0; i < hidden; ++i)
          out[i] = (uint8_t)((i < p.hidden ? states[((int64_t)m * p.layers + l) * p.hidden + i] : 0) + kEncoding);
      }
    }
    set_vector(p.layers * kLayerVectors, model.output_norm, parameters, counter, first_pair);
    if (!P) return;
    for (int pair = 0; pair < members / 2; ++pair) {
      uint32_t global = (uint32_t)(first_pair + pair);
      embedding_noise.make(model.embedding, *counter, pair, global);
      head_noise.make(model.head, *counter, pair, global);
      for (int l = 0; l < p.layers; ++l)
        for (int i = 0; i < kLayerProducts; ++i)
          noise[l * kLayerProducts + i].make(model.layers[l].products[i], *counter, pair, global);
    }
  }

  void finish(int8_t* states) {
    for (int m = 0; m < members; ++m)
      for (int l = 0; l < p.layers; ++l) {
        const uint8_t* row = state.data() + ((int64_t)l * capacity + m) * hidden;
        for (int i = 0; i < p.hidden; ++i) states[((int64_t)m * p.layers + l) * p.hidden + i] = (int8_t)(row[i] - kEncoding);
      }
  }

  static i8x16 decode(const uint8_t* at) { return load<i8x16>(at) ^ (int8_t)kEncoding; }
  static void encode(uint8_t* at, i8x16 v) { store(at, v ^ (int8_t)kEncoding); }

  /* Section 7: t, two components an int32, the rounding last. */
  void project(const MatrixNoise& n, const uint8_t* in, int stride) {
    int32_t half = p.sigma_shift ? 1 << (p.sigma_shift - 1) : 0;
    for (int m = 0; m < members; ++m) {
      int16_t* out = (int16_t*)(t.data() + (int64_t)m * n.components);
      for (int k = 0; k < n.rank; ++k) {
        int32_t along = dot_row(in + (int64_t)m * stride, n.b_row(m / 2, k), n.fan_in) + n.b_start[m / 2 * n.rank + k];
        along = intlm_clamp(along, 1 << 23) * rank_multiplier;
        out[k] = (int16_t)intlm_clamp(intlm_rshift(along, 11), INTLM_MAX16);
      }
      out[n.rank] = (int16_t)half;
      if (n.rank % 2 == 0) out[n.rank + 1] = 0;
    }
  }

  template <int MB, int GB>
  inline void block(const Matrix& w, const MatrixNoise* n, const uint8_t* in, int stride, int m0, int g0, int16_t* out) {
    Sums acc[MB][GB];
    const int8_t* rows = w.packed.data() + (int64_t)g0 * 16 * w.fan_in;
    for (int g = 0; g < GB; ++g) {
      Sums begin = load<Sums>(w.start.data() + 16 * (g0 + g));
      for (int m = 0; m < MB; ++m) acc[m][g] = begin;
    }
    const uint8_t* from = in + (int64_t)m0 * stride;
    for (int k = 0; k < w.fan_in; k += 4) {
#pragma GCC unroll 8
      for (int m = 0; m < MB; ++m)
#pragma GCC unroll 8
        for (int g = 0; g < GB; ++g)
          acc[m][g] = dot4(acc[m][g], from + m * stride + k, rows + (int64_t)g * 16 * w.fan_in + k * 16);
    }
    const i16x16 multiplier = (i16x16){} + (int16_t)w.scale.multiplier;
#pragma GCC unroll 8
    for (int m = 0; m < MB; ++m)
#pragma GCC unroll 8
      for (int g = 0; g < GB; ++g) {
        i32x16 total = load<i32x16>(&acc[m][g]);
        if (P) {
          const int16_t* a = n->a_pairs((m0 + m) / 2) + 32 * (g0 + g);
          const int32_t* along = t.data() + (int64_t)(m0 + m) * n->components;
          i32x16 change = dot2(a, along[0]);
          for (int c = 1; c < n->components; ++c) change = dot2_add(change, a + (int64_t)c * 2 * n->width, along[c]);
          change >>= p.sigma_shift;
          total = m % 2 ? total - change : total + change;
        }
        store(out + (int64_t)(m0 + m) * y_stride + 16 * (g0 + g),
              mulhrs(narrow(rounding_shift(total, w.scale.shift)), multiplier));
      }
  }

  template <int MB>
  inline void members_block(const Matrix& w, const MatrixNoise* n, const uint8_t* in, int stride, int m0, int16_t* out) {
    int g = 0;
    for (; g + kGroups <= w.groups(); g += kGroups) block<MB, kGroups>(w, n, in, stride, m0, g, out);
    for (; g + kGroups / 2 <= w.groups() && kGroups > 2; g += kGroups / 2) block<MB, (kGroups + 1) / 2>(w, n, in, stride, m0, g, out);
    for (; g < w.groups(); ++g) block<MB, 1>(w, n, in, stride, m0, g, out);
  }

  /* in: encoded [members][stride]. out: int16 [members][y_stride], rescaled. */
  void product(const Matrix& w, const MatrixNoise* n, const uint8_t* in, int stride, int16_t* out) {
    if (P) project(*n, in, stride);
    int m = 0;
    for (; m + kMembers <= members; m += kMembers) members_block<kMembers>(w, n, in, stride, m, out);
    for (; m + 2 <= members; m += 2) members_block<2>(w, n, in, stride, m, out);
    if (!P && m < members) members_block<1>(w, n, in, stride, m, out);
  }

  /* Section 5.3, every member: x to normed. */
  void norm(int row) {
    for (int m = 0; m < members; ++m) {
      const int8_t *in = x.data() + (int64_t)m * hidden, *w = vector_row(row, m);
      uint8_t* out = normed.data() + (int64_t)m * hidden;
      int16_t gain = intlm_reciprocal[intlm_mean(sum_magnitudes(in, hidden), mean_multiplier)];
      for (int i = 0; i < hidden; i += 16) {
        i16x16 scaled = widen(load<i8x16>(in + i)) * widen(load<i8x16>(w + i));
        encode(out + i, narrow8(mulhrs(scaled, (i16x16){} + gain)));
      }
    }
  }

  void embed(const int8_t* parameters, const uint16_t* tokens) {
    for (int m = 0; m < members; m += P ? 2 : 1) {
      const int token = tokens[m];
      const int8_t* row = parameters + model.embedding.offset + (int64_t)token * p.hidden;
      int8_t* out = x.data() + (int64_t)m * hidden;
      if (!P) {
        std::copy(row, row + p.hidden, out);
        continue;
      }
      int32_t a[256];
      for (int k = 0; k < p.rank; ++k) a[k] = embedding_noise.a_row(m / 2, k)[token] * rank_multiplier;
      for (int i = 0; i < p.hidden; i += 16) {
        i32x16 sum = {};
        for (int k = 0; k < p.rank; ++k) sum += a[k] * widen(widen(load<i8x16>(embedding_noise.b_row(m / 2, k) + i)));
        i16x16 change = narrow(rounding_shift(sum, 11 + p.sigma_shift));
        const i16x16 most = (i16x16){} + (int16_t)(2 * INTLM_MAX8);  // more saturates whatever it is added to
        change = change > most ? most : change;
        change = change < -most ? -most : change;
        const i16x16 base = widen(load<i8x16>(row + i));  // the next parameter stands behind the last row
        store(out + i, narrow8(base + change));
        store(out + hidden + i, narrow8(base - change));
      }
      std::fill(out + p.hidden, out + hidden, 0);
      std::fill(out + hidden + p.hidden, out + 2 * hidden, 0);
    }
  }

  /* Section 5.2 for every member; logits are left in y0. */
  void step(const int8_t* parameters, const uint16_t* tokens) {
    for (int m = 0; m < members; ++m)
      if (tokens[m] == 0)
        for (int l = 0; l < p.layers; ++l) std::memset(state.data() + ((int64_t)l * capacity + m) * hidden, kEncoding, hidden);
    embed(parameters, tokens);
    const i16x16 one = (i16x16){} + (int16_t)INTLM_GATE_ONE, unit = (i16x16){} + (int16_t)INTLM_GATE_MULTIPLIER;
    for (int l = 0; l < p.layers; ++l) {
      const Layer& layer = model.layers[l];
      const MatrixNoise* n = P ? noise.data() + (int64_t)l * kLayerProducts : nullptr;
      auto of = [&](int i) { return P ? n + i : nullptr; };
      uint8_t* h = state.data() + (int64_t)l * capacity * hidden;
      norm(l * kLayerVectors + kCellNorm);
      product(layer.products[kGateInput], of(kGateInput), normed.data(), hidden, y0.data());
      product(layer.products[kGateState], of(kGateState), h, hidden, y1.data());
      for (int m = 0; m < members; ++m) {
        const int8_t* bias = vector_row(l * kLayerVectors + kGateBias, m);
        for (int i = 0; i < hidden; i += 16) {
          int64_t at = (int64_t)m * y_stride + i, own = (int64_t)m * hidden + i;
          i8x16 open = narrow8(load<i16x16>(y0.data() + at) + load<i16x16>(y1.data() + at) + widen(load<i8x16>(bias + i)));
          if (table) open = lookup(open, intlm_sigmoid);
          i16x16 share = widen(open) + one;
          store(gate.data() + own, share);
          encode(reset.data() + own, narrow8(mulhrs(share * widen(decode(h + own)), unit)));
        }
      }
      product(layer.products[kCandidateInput], of(kCandidateInput), normed.data(), hidden, y0.data());
      product(layer.products[kCandidateState], of(kCandidateState), reset.data(), hidden, y1.data());
      for (int m = 0; m < members; ++m) {
        const int8_t* bias = vector_row(l * kLayerVectors + kCandidateBias, m);
        for (int i = 0; i < hidden; i += 16) {
          int64_t at = (int64_t)m * y_stride + i, own = (int64_t)m * hidden + i;
          i8x16 found = narrow8(load<i16x16>(y0.data() + at) + load<i16x16>(y1.data() + at) + widen(load<i8x16>(bias + i)));
          if (table) found = lookup(found, intlm_tanh);
          i16x16 share = load<i16x16>(gate.data() + own);
          i16x16 next = mulhrs((one + one - share) * widen(decode(h + own)) + share * widen(found), unit);
          encode(h + own, narrow8(next));
          if (table) next = (next + (int16_t)(1 << (INTLM_STATE_SHIFT - 1))) >> (int16_t)INTLM_STATE_SHIFT;
          int8_t* residual = x.data() + own;
          store(residual, narrow8(widen(load<i8x16>(residual)) + next));
        }
      }
      norm(l * kLayerVectors + kFeedForwardNorm);
      product(layer.products[kUp], of(kUp), normed.data(), hidden, y0.data());
      for (int m = 0; m < members; ++m)
        for (int i = 0; i < feed_forward; i += 16)
          encode(wide.data() + (int64_t)m * feed_forward + i, narrow8(load<i16x16>(y0.data() + (int64_t)m * y_stride + i)));
      product(layer.products[kDown], of(kDown), wide.data(), feed_forward, y0.data());
      for (int m = 0; m < members; ++m)
        for (int i = 0; i < hidden; i += 16) {
          int8_t* residual = x.data() + (int64_t)m * hidden + i;
          store(residual, narrow8(widen(load<i8x16>(residual)) + load<i16x16>(y0.data() + (int64_t)m * y_stride + i)));
        }
    }
    norm(p.layers * kLayerVectors);
    product(model.head, P ? &head_noise : nullptr, normed.data(), hidden, y0.data());
  }
};

/* ---- Loss (section 6) ---- */

static int32_t log_sum_exp2(int16_t* logits, int vocab) {
  for (int i = vocab; i < pad16(vocab); ++i) logits[i] = -32768;  // its term is zero
#if INTLM_AVX512
  const int whole = pad16(vocab);
  auto part = [&](int i) {
    return i + 32 <= whole ? _mm512_loadu_si512(logits + i)
                           : _mm512_inserti64x4(_mm512_set1_epi16(-32768), _mm256_loadu_si256((const __m256i*)(logits + i)), 0);
  };
  __m512i largest = _mm512_set1_epi16(-32768);
  for (int i = 0; i < whole; i += 32) largest = _mm512_max_epi16(largest, part(i));
  __m256i m256 = _mm256_max_epi16(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64(largest, 1));
  __m128i m128 = _mm_max_epi16(_mm256_castsi256_si128(m256), _mm256_extracti128_si256(m256, 1));
  /* minpos finds the least unsigned value: that of 32767 - x, for the largest x. */
  const int32_t top = 32767 - _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_sub_epi16(_mm_set1_epi16(32767), m128))) % 65536;
  largest = _mm512_set1_epi16((int16_t)top);
  /* EXP2 in three planes of bytes: a permutation looks 128 entries up at once. */
  static const struct Planes {
    alignas(64) uint8_t byte[3][256];
    uint8_t one[256];
    Planes() {
      for (int i = 0; i < 256; ++i)
        for (int j = 0; j < 3; ++j) byte[j][i] = (uint8_t)((uint32_t)intlm_exp2[i] >> (8 * j));
    }
  } planes;
  const __m512i low8 = _mm512_set1_epi32(0xFF), mid8 = _mm512_set1_epi32(0xFF00), high8 = _mm512_set1_epi32(0xFF0000);
  const __m512i unit = _mm512_set1_epi32(1);
  uint64_t sum = 0;
  for (int begin = 0; begin < whole; begin += 2048) {
    __m512i acc = _mm512_setzero_si512();
    for (int i = begin; i < std::min(begin + 2048, whole); i += 32) {
      __m512i below = _mm512_sub_epi16(largest, part(i));
      __mmask64 upper = _mm512_movepi8_mask(below);
      __m512i found[3];
      for (int j = 0; j < 3; ++j) {
        const uint8_t* plane = planes.byte[j];
        __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(plane), below, _mm512_load_si512(plane + 64));
        __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(plane + 128), below, _mm512_load_si512(plane + 192));
        found[j] = _mm512_mask_blend_epi8(upper, low, high);
      }
      /* 2^24 itself, at index 0, does not fit three bytes: there the planes hold zero. */
      __m512i even = _mm512_or_si512(_mm512_or_si512(_mm512_and_si512(found[0], low8), _mm512_and_si512(_mm512_slli_epi32(found[1], 8), mid8)),
                                     _mm512_and_si512(_mm512_slli_epi32(found[2], 16), high8));
      __m512i odd = _mm512_or_si512(_mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(found[0], 16), low8), _mm512_and_si512(_mm512_srli_epi32(found[1], 8), mid8)),
                                    _mm512_and_si512(found[2], high8));
      even = _mm512_mask_mov_epi32(even, _mm512_testn_epi32_mask(even, even), _mm512_set1_epi32(1 << 24));
      odd = _mm512_mask_mov_epi32(odd, _mm512_testn_epi32_mask(odd, odd), _mm512_set1_epi32(1 << 24));
      __m512i q_even = _mm512_and_si512(_mm512_srli_epi32(below, 8), low8), q_odd = _mm512_srli_epi32(below, 24);
      even = _mm512_srlv_epi32(_mm512_add_epi32(even, _mm512_srli_epi32(_mm512_sllv_epi32(unit, q_even), 1)), q_even);
      odd = _mm512_srlv_epi32(_mm512_add_epi32(odd, _mm512_srli_epi32(_mm512_sllv_epi32(unit, q_odd), 1)), q_odd);
      acc = _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
    }
    alignas(64) uint32_t lanes[16];
    _mm512_store_si512(lanes, acc);
    for (uint32_t lane : lanes) sum += lane;
  }
#else
  int32_t top = logits[0];
  for (int i = 1; i < vocab; ++i) top = std::max<int32_t>(top, logits[i]);
  uint64_t sum = 0;
  for (int i = 0; i < vocab; ++i) sum += intlm_exp2_term((uint32_t)(top - logits[i]), intlm_exp2);
#endif
  return intlm_log_sum(top, sum, intlm_log2);
}

/* ---- The three calls ---- */

static Counter noise_counter(const Problem& p, uint32_t epoch) { return {{p.seed[0], p.seed[1], 0, 0}, epoch}; }

static void evaluate(const Problem& p, const int8_t* parameters, const uint16_t* tokens, int64_t length,
                     const int8_t* states, uint32_t epoch, int32_t* losses, int8_t* next) {
  Model model(p);
  model.pack(parameters);
  const Counter counter = noise_counter(p, epoch);
  const int64_t per_thread = (p.pairs + p.threads - 1) / p.threads;
  const int pairs = (int)std::min<int64_t>(kTilePairs, per_thread);
  const int64_t tiles = (p.pairs + pairs - 1) / pairs, row = (int64_t)p.layers * p.hidden;
  std::vector<std::unique_ptr<Tile<true>>> own(p.threads);
  parallel(tiles, p.threads, [&](int64_t index, int worker) {
    if (!own[worker]) own[worker].reset(new Tile<true>(p, model, 2 * pairs));
    Tile<true>& tile = *own[worker];
    const int64_t first = index * pairs;
    const int count = 2 * (int)std::min<int64_t>(pairs, p.pairs - first);
    tile.start(parameters, &counter, first, count, states + 2 * first * row);
    int32_t* total = losses + 2 * first;
    std::fill(total, total + count, 0);
    uint16_t reading[2 * kTilePairs];
    for (int64_t at = 0; at < length; ++at) {
      auto text = [&](int m) { return tokens + (first + m / 2) / p.group * (length + 1) + at; };
      for (int m = 0; m < count; ++m) reading[m] = text(m)[0];
      tile.step(parameters, reading);
      for (int m = 0; m < count; ++m) {
        int16_t* logits = tile.y0.data() + (int64_t)m * tile.y_stride;
        const int32_t chosen = logits[text(m)[1]];
        total[m] += log_sum_exp2(logits, p.vocab) - chosen;
      }
    }
    tile.finish(next + 2 * first * row);
  });
}

static void infer(const Problem& p, const int8_t* parameters, const uint16_t* tokens, int64_t batch, int64_t length,
                  const int8_t* states, int16_t* logits, int8_t* next) {
  Model model(p);
  model.pack(parameters);
  const int64_t per_thread = (batch + p.threads - 1) / p.threads;
  const int streams = (int)std::min<int64_t>(2 * kTilePairs, per_thread);
  const int64_t tiles = (batch + streams - 1) / streams, row = (int64_t)p.layers * p.hidden;
  std::vector<std::unique_ptr<Tile<false>>> own(p.threads);
  parallel(tiles, p.threads, [&](int64_t index, int worker) {
    if (!own[worker]) own[worker].reset(new Tile<false>(p, model, streams));
    Tile<false>& tile = *own[worker];
    const int64_t first = index * streams;
    const int count = (int)std::min<int64_t>(streams, batch - first);
    tile.start(parameters, nullptr, first, count, states + first * row);
    uint16_t reading[2 * kTilePairs];
    for (int64_t at = 0; at < length; ++at) {
      for (int m = 0; m < count; ++m) reading[m] = tokens[(first + m) * length + at];
      tile.step(parameters, reading);
      for (int m = 0; m < count; ++m) {
        const int16_t* found = tile.y0.data() + (int64_t)m * tile.y_stride;
        std::copy(found, found + p.vocab, logits + ((first + m) * length + at) * p.vocab);
      }
    }
    tile.finish(next + first * row);
  });
}

/* Section 9. Pairs are taken two by two: a lane's product is the sum over two of them. */
static void accumulate(const Problem& p, const int8_t* fitness, uint32_t epoch, int32_t* votes) {
  Model model(p);
  const Counter counter = noise_counter(p, epoch);
  constexpr int kPairs = 64;
  std::vector<const Matrix*> matrices{&model.embedding, &model.head};
  std::vector<const VectorParameter*> vectors{&model.output_norm};
  for (const Layer& layer : model.layers) {
    for (const Matrix& m : layer.products) matrices.push_back(&m);
    for (const VectorParameter& v : layer.vectors) vectors.push_back(&v);
  }
  const int64_t chunks = (p.pairs + kPairs - 1) / kPairs;
  const int workers = (int)std::min<int64_t>(p.threads, chunks);
  std::vector<Buffer<int32_t>> partial(workers);
  parallel(chunks, workers, [&](int64_t index, int worker) {
    Buffer<int32_t>& own = partial[worker];
    if (!own.size()) own = Buffer<int32_t>(model.size);
    const int64_t first = index * kPairs;
    const int count = (int)std::min<int64_t>(kPairs, p.pairs - first), twos = (count + 1) / 2;
    const int8_t* f = fitness + first;
    Buffer<int16_t> a, b;
    MatrixNoise n;
    for (const Matrix* m : matrices) {
      n.reserve(*m, p.rank, 1, false);
      const int in = pad16(m->fan_in), out = m->groups() * 16, terms = twos * p.rank;
      a.reserve((size_t)terms * 2 * out);
      b.reserve((size_t)terms * 2 * in);
      if (count % 2)  // the last pair of pairs has one: what is left of other matrices must not count
        std::memset(a.data(), 0, (size_t)terms * 2 * out * sizeof(int16_t));
      for (int pair = 0; pair < count; ++pair) {
        n.make(*m, counter, 0, (uint32_t)(first + pair));
        for (int k = 0; k < p.rank; ++k) {
          const int8_t *from_a = n.a_row(0, k), *from_b = n.b_row(0, k);
          int16_t* to_a = a.data() + ((int64_t)(pair / 2) * p.rank + k) * 2 + pair % 2;  // [out][terms][2]
          int16_t* to_b = b.data() + ((int64_t)(pair / 2) * p.rank + k) * 2 * in + pair % 2;  // [terms][in][2]
          for (int o = 0; o < out; ++o) to_a[(int64_t)o * terms * 2] = (int16_t)(f[pair] * from_a[o]);
          for (int i = 0; i < in; ++i) to_b[2 * i] = from_b[i];
        }
      }
      int32_t* z = own.data() + m->offset;
      auto rows = [&](auto height, int o, int i) {
        constexpr int OB = decltype(height)::value;
        i32x16 acc[OB] = {};
        for (int term = 0; term < terms; ++term) {
          const int16_t* row = b.data() + ((int64_t)term * in + i) * 2;
          for (int j = 0; j < OB; ++j) {
            int32_t two;
            std::memcpy(&two, a.data() + ((int64_t)(o + j) * terms + term) * 2, 4);
            acc[j] = dot2_add(acc[j], row, two);
          }
        }
        const int lanes = std::min(16, m->fan_in - i);
        for (int j = 0; j < OB; ++j)
          for (int l = 0; l < lanes; ++l) z[(int64_t)(o + j) * m->fan_in + i + l] += acc[j][l];
      };
      for (int i = 0; i < m->fan_in; i += 16) {
        int o = 0;
        for (; o + 8 <= m->fan_out; o += 8) rows(std::integral_constant<int, 8>{}, o, i);
        for (; o < m->fan_out; ++o) rows(std::integral_constant<int, 1>{}, o, i);
      }
    }
    Buffer<int8_t> z(drawn_bytes(blocks(p.hidden)));
    for (const VectorParameter* v : vectors)
      for (int pair = 0; pair < count; ++pair) {
        draw(counter, (uint32_t)(first + pair), v->number, blocks(p.hidden), z.data());
        for (int i = 0; i < p.hidden; ++i) own[v->offset + i] += 16 * f[pair] * z[i];
      }
  });
  std::fill(votes, votes + model.size, 0);
  for (auto& own : partial)
    if (own.size())
      for (int64_t i = 0; i < model.size; ++i) votes[i] += own[i];
}

/* ---- The machine's bounds, for `intlm bench` ---- */

/* Products of one register block after another, all in the nearest cache. */
static int64_t multiply(int64_t repetitions, int32_t* sink) {
  constexpr int kDepth = 256;
  Buffer<uint8_t> x(kMembers * kDepth);
  Buffer<int8_t> w(kGroups * 16 * kDepth);
  for (size_t i = 0; i < x.size(); ++i) x[i] = (uint8_t)(*sink + i);
  for (size_t i = 0; i < w.size(); ++i) w[i] = (int8_t)(*sink - i);
  Sums acc[kMembers][kGroups] = {};
  for (int64_t r = 0; r < repetitions; ++r)
    for (int k = 0; k < kDepth; k += 4)
#pragma GCC unroll 8
      for (int m = 0; m < kMembers; ++m)
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g)
          acc[m][g] = dot4(acc[m][g], x.data() + m * kDepth + k, w.data() + (g * kDepth + k) * 16);
  for (auto& row : acc)
    for (const Sums& sums : row) *sink ^= load<i32x16>(&sums)[*sink & 15];
  return repetitions * kDepth * kMembers * kGroups * 16;
}

static void read(const int8_t* buffer, int64_t bytes, int64_t repetitions, int32_t* sink) {
  i32x16 all[4] = {};
  for (int64_t r = 0; r < repetitions; ++r)
    for (int64_t i = 0; i + 256 <= bytes; i += 256)
      for (int j = 0; j < 4; ++j) all[j] += load<i32x16>(buffer + i + 64 * j);
  for (const i32x16& some : all) *sink ^= some[*sink & 15];
}

}  // namespace INTLM_NAMESPACE
