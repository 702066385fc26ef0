/* The engine: a tile of members goes through all layers and all tokens with its noise made once, in cache.
 *
 * Compiled once for each instruction set, in a namespace of its own. Products are blocks of members times vectors of
 * outputs held in registers; when their sums are there, the perturbation is added, they are rescaled, and what the
 * model does with them next (a gate, a residual) is done before they leave the registers. Section numbers are those
 * of docs/numerics.md.
 */
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels.h"
#include "scales.h"
#include "simd.h"

namespace INTLM_NAMESPACE {

using intlm::Problem;

constexpr int kSlack = 64;  // bytes that a load may read past a buffer's end
constexpr int kTilePairs = 12;
/* Vectors of sums that the registers hold beside their operands, and vectors of outputs taken together. */
#if INTLM_AVX512
constexpr int kSums = 24, kUnits = 2;
#elif defined(__aarch64__) || INTLM_AVX2
constexpr int kSums = 6, kUnits = 1;
#else
constexpr int kSums = 4, kUnits = 1;
#endif

static inline int blocks(int n) { return (n + 15) / 16; }
static inline int units(int n) { return (n + kLanes - 1) / kLanes; }
static inline int padded(int n) { return units(n) * kLanes; }

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

enum Vector { kGateBias, kCandidateBias, kLayerVectors };
enum Product { kGateInput, kGateState, kCandidateInput, kCandidateState, kUp, kDown, kLayerProducts };

struct Matrix {
  int fan_out = 0, fan_in = 0;
  uint32_t number = 0;
  int64_t offset = 0;  // in the flat parameters
  intlm_rescale_t scale = {0, 0};
  int64_t at = -1;                 // in the prepared parameters
  const int8_t* packed = nullptr;  // [panels][fan_in / kDepth][units of one][kParts][16][kDepth], outputs in the order of `column`
  const int32_t* start = nullptr;  // [units][kParts][16]: the rounding, less the encoding's constant part
  /* A panel is kUnits units of outputs, but for a last one of a single unit. */
  int panels() const { return (units(fan_out) + kUnits - 1) / kUnits; }
  bool whole(int panel) const { return (panel + 1) * kUnits <= units(fan_out); }
  int64_t packed_bytes() const { return (int64_t)padded(fan_out) * fan_in; }
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
  std::vector<Layer> layers;
  int64_t size = 0;           // parameters
  int64_t prepared_size = 0;  // bytes of what `prepare` makes of them: themselves, then the matrices packed

  explicit Model(const Problem& p) : layers(p.layers) {
    uint32_t number = 0;
    auto matrix = [&](Matrix& m, int fan_out, int fan_in) {
      m.fan_out = fan_out, m.fan_in = fan_in, m.number = number++, m.offset = size;
      size += (int64_t)fan_out * fan_in;
    };
    auto vector = [&](VectorParameter& v) { v.number = number++, v.offset = size, size += p.hidden; };
    matrix(embedding, p.vocab, p.hidden);
    for (Layer& layer : layers) {
      matrix(layer.products[kGateInput], p.hidden, p.hidden);
      matrix(layer.products[kGateState], p.hidden, p.hidden);
      vector(layer.vectors[kGateBias]);
      matrix(layer.products[kCandidateInput], p.hidden, p.hidden);
      matrix(layer.products[kCandidateState], p.hidden, p.hidden);
      vector(layer.vectors[kCandidateBias]);
      matrix(layer.products[kUp], p.feed_forward, p.hidden);
      matrix(layer.products[kDown], p.hidden, p.feed_forward);
      for (int i = 0; i < kLayerProducts; ++i) {
        bool state = i == kGateState || i == kCandidateState;
        Matrix& m = layer.products[i];
        m.scale = intlm_activation_rescale(m.fan_in, state && p.table ? INTLM_STATE_SHIFT : 0);
      }
    }
    matrix(head, p.vocab, p.hidden);
    head.scale = intlm_logit_rescale(p.hidden);
    prepared_size = (size + 63) / 64 * 64;
    for (Matrix* m : packed_matrices()) {
      m->at = prepared_size;
      prepared_size += m->packed_bytes() + padded(m->fan_out) * (int64_t)sizeof(int32_t);
    }
  }

  void bind(const int8_t* prepared) {
    for (Matrix* m : packed_matrices()) {
      m->packed = prepared + m->at;
      m->start = (const int32_t*)(m->packed + m->packed_bytes());
    }
  }

  void prepare(const int8_t* parameters, int8_t* prepared, int threads) {
    std::copy(parameters, parameters + size, prepared);
    auto matrices = packed_matrices();
    parallel((int64_t)matrices.size(), threads, [&](int64_t index, int) { pack(*matrices[index], parameters, prepared); });
  }

 private:
  std::vector<Matrix*> packed_matrices() {
    std::vector<Matrix*> found{&head};
    for (Layer& layer : layers)
      for (Matrix& m : layer.products) found.push_back(&m);
    return found;
  }

  static void pack(const Matrix& m, const int8_t* parameters, int8_t* prepared) {
    int8_t* out = prepared + m.at;
    int32_t* start = (int32_t*)(out + m.packed_bytes());
    for (int panel = 0; panel < m.panels(); ++panel) {
      const int vectors = m.whole(panel) ? kUnits * kParts : kParts;
      const int8_t* rows[kUnits * kLanes];
      for (int v = 0; v < vectors; ++v)
        for (int lane = 0; lane < 16; ++lane) {
          const int o = (panel * kUnits + v / kParts) * kLanes + column(v % kParts, lane);
          const int8_t* row = o < m.fan_out ? parameters + m.offset + (int64_t)o * m.fan_in : nullptr;
          *start++ = (m.scale.shift ? 1 << (m.scale.shift - 1) : 0) - (row ? kEncoding * sum_row(row, m.fan_in) : 0);
          rows[16 * v + lane] = row;
        }
      for (int k = 0; k < m.fan_in; k += kDepth)
        for (int i = 0; i < 16 * vectors; ++i, out += kDepth)
          if (rows[i]) std::memcpy(out, rows[i] + k, kDepth);
          else std::memset(out, 0, kDepth);
    }
  }
};

/* ---- Noise (sections 4 and 7) ---- */

struct Counter {
  uint32_t key[4], epoch;
};

/* V a vector of counters. */
template <class V>
INTLM_DEFINE_THREEFRY(V, threefry)

/* The noise of blocks begin .. begin + count - 1 of (epoch, pair, number); out has room for `drawn_bytes(count)`. */
static void draw(const Counter& c, uint32_t pair, uint32_t number, int begin, int count, int8_t* out) {
  /* Lane (l, i) of four lanes l of four holds block 4 i + l, so that the transposed words come out in order. */
  u32x16 lanes;
  for (int l = 0; l < 16; ++l) lanes[l] = 4 * (l % 4) + l / 4;
  for (int first = 0; first < count; first += 16) {
    alignas(64) uint32_t words[64];
#if defined(__AVX2__) && !INTLM_AVX512
    for (int half = 0; half < 2; ++half) {
      const u32x8 index = load<u32x8>((const char*)&lanes + 32 * half) + (uint32_t)(begin + first);
      u32x8 x[4] = {(u32x8){} + c.epoch, (u32x8){} + pair, (u32x8){} + number, index};
      threefry(c.key, x);
      const __m256i low01 = _mm256_unpacklo_epi32((__m256i)x[0], (__m256i)x[1]), low23 = _mm256_unpacklo_epi32((__m256i)x[2], (__m256i)x[3]);
      const __m256i high01 = _mm256_unpackhi_epi32((__m256i)x[0], (__m256i)x[1]), high23 = _mm256_unpackhi_epi32((__m256i)x[2], (__m256i)x[3]);
      store(words + 8 * half, _mm256_unpacklo_epi64(low01, low23));
      store(words + 8 * half + 16, _mm256_unpackhi_epi64(low01, low23));
      store(words + 8 * half + 32, _mm256_unpacklo_epi64(high01, high23));
      store(words + 8 * half + 48, _mm256_unpackhi_epi64(high01, high23));
    }
#else
    u32x16 x[4] = {(u32x16){} + c.epoch, (u32x16){} + pair, (u32x16){} + number, lanes + (uint32_t)(begin + first)};
    threefry(c.key, x);
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
#endif
    for (int i = 0; i < 4 && first + 4 * i < count; ++i)
      quantile64((const uint8_t*)(words + 16 * i), out + 16 * (first + 4 * i));
  }
}

/* Bytes that `draw` may write for count blocks. */
static inline size_t drawn_bytes(int count) { return (size_t)(count + 3) / 4 * 64; }

/* A matrix's noise for the pairs of a tile. */
struct MatrixNoise {
  int rank = 0, fan_in = 0, b_width = 0, width = 0;
  int64_t stride = 0;       // bytes of one pair
  Buffer<int8_t> raw;       // [pairs][rank][B, A], each padded to 16
  int members = 0;          // of a row of b_start
  Buffer<int32_t> b_start;  // [rank][members], what takes the encoding's constant part away

  void reserve(const Matrix& m, int rank_, int pairs) {
    rank = rank_, fan_in = m.fan_in, b_width = blocks(m.fan_in) * 16, width = b_width + blocks(m.fan_out) * 16;
    stride = drawn_bytes(m.noise_bytes(rank) / 16);
    raw.reserve(stride * pairs);
  }

  const int8_t* b_row(int pair, int k) const { return raw.data() + pair * stride + (int64_t)k * width; }
  const int8_t* a_row(int pair, int k) const { return b_row(pair, k) + b_width; }

  void make(const Matrix& m, const Counter& counter, int pair, uint32_t global) {
    draw(counter, global, m.number, 0, m.noise_bytes(rank) / 16, raw.data() + pair * stride);
  }

  /* What products with B need, for this many pairs; the last vector of sixteen members is whole. */
  void start(int pairs) {
    members = (2 * pairs + 15) & ~15;
    b_start.reserve((size_t)rank * members);
    for (int k = 0; k < rank; ++k)
      for (int pair = 0; pair < pairs; ++pair)
        for (int s = 0; s < 2; ++s) b_start[k * members + 2 * pair + s] = kEncoding ? -kEncoding * sum_row(b_row(pair, k), fan_in) : 0;
  }
};

/* ---- The tile ---- */

/* A worker and those that go through its tile with it, each making its share of every product's outputs. */
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

template <bool P>
struct Tile {
  const Problem& p;
  const Model& model;
  const int8_t* parameters;
  /* Members. With a perturbation a whole number of blocks goes through every product, those that are not there too. */
  int capacity;
  int hidden, feed_forward, vocab;  // padded
  int32_t rank_multiplier, mean_multiplier;
  MatrixNoise embedding_noise, head_noise;
  std::vector<MatrixNoise> noise;  // [layers * products]
  Buffer<int8_t> vectors;          // [layers * kLayerVectors][members or 1][hidden]
  Buffer<int8_t> x;                // [members][hidden], the residual stream
  Buffer<Encoded> normed;          // encoded: [parts][members][hidden]
  Buffer<Encoded> reset, wide;     // encoded: [members][hidden], [members][feed_forward]
  Buffer<Encoded> state;           // encoded: [layers][members][hidden]
  Buffer<int16_t> y, gate;         // [members][hidden]
  Buffer<int16_t> logits;          // [members][vocab]
  Buffer<int32_t> t;               // [(rank + 1) / 2][t_stride], pairs of int16
  int t_stride;
  int members = 0;

  Tile(const Problem& problem, const Model& m, const int8_t* parameters_, int capacity_, int parts = 1)
      : p(problem), model(m), parameters(parameters_), capacity(P ? (capacity_ + 11) / 12 * 12 : capacity_), hidden(padded(p.hidden)),
        feed_forward(padded(p.feed_forward)), vocab((p.vocab + 63) & ~63), rank_multiplier(intlm_rank_multiplier(p.rank)),
        mean_multiplier(intlm_mean_multiplier(p.hidden)), t_stride((capacity + 15) & ~15) {
    const size_t rows = (size_t)p.layers * kLayerVectors, own = (size_t)capacity * hidden;
    vectors = Buffer<int8_t>(rows * (P ? capacity : 1) * hidden);
    x = Buffer<int8_t>(own);
    normed = Buffer<Encoded>(own * parts);
    reset = Buffer<Encoded>(own);
    wide = Buffer<Encoded>((size_t)capacity * feed_forward);
    state = Buffer<Encoded>((size_t)p.layers * own);
    y = Buffer<int16_t>(own);
    gate = Buffer<int16_t>(own);
    if (!P) return;
    logits = Buffer<int16_t>((size_t)capacity * vocab);
    t = Buffer<int32_t>((size_t)t_stride * ((p.rank + 1) / 2));
    embedding_noise.reserve(m.embedding, p.rank, capacity / 2);
    head_noise.reserve(m.head, p.rank, capacity / 2);
    noise.resize((size_t)p.layers * kLayerProducts);
    for (int l = 0; l < p.layers; ++l)
      for (int i = 0; i < kLayerProducts; ++i)
        noise[l * kLayerProducts + i].reserve(m.layers[l].products[i], p.rank, capacity / 2);
  }

  int8_t* vector_row(int row, int member) { return vectors.data() + ((int64_t)row * (P ? capacity : 1) + (P ? member : 0)) * hidden; }

  void set_vector(int row, const VectorParameter& v, const Counter* counter, int64_t first_pair) {
    const int8_t* w = parameters + v.offset;
    if (!P) {
      std::copy(w, w + p.hidden, vector_row(row, 0));
      return;
    }
    Buffer<int8_t> z(drawn_bytes(blocks(p.hidden)));
    for (int pair = 0; pair < members / 2; ++pair) {
      draw(*counter, (uint32_t)(first_pair + pair), v.number, 0, blocks(p.hidden), z.data());
      int8_t *plus = vector_row(row, 2 * pair), *minus = vector_row(row, 2 * pair + 1);
      for (int i = 0; i < p.hidden; ++i) {
        int32_t change = intlm_rshift(z[i], p.sigma_shift + INTLM_VECTOR_SHIFT);
        plus[i] = (int8_t)intlm_clamp(w[i] + change, INTLM_MAX8);
        minus[i] = (int8_t)intlm_clamp(w[i] - change, INTLM_MAX8);
      }
    }
  }

  /* Everything that a tile of members needs before its first token. states: [members][layers][hidden]. */
  void start(const Counter* counter, int64_t first_pair, int count, const int8_t* states) {
    members = count;
    for (int l = 0; l < p.layers; ++l)
      for (int m = 0; m < members; ++m) {
        Encoded* out = state.data() + ((int64_t)l * capacity + m) * hidden;
        const int8_t* in = states + ((int64_t)m * p.layers + l) * p.hidden;
        for (int i = 0; i < p.hidden; ++i) out[i] = (Encoded)(in[i] + kEncoding);
      }
    for (int l = 0; l < p.layers; ++l)
      for (int i = 0; i < kLayerVectors; ++i)
        set_vector(l * kLayerVectors + i, model.layers[l].vectors[i], counter, first_pair);
    if (!P) return;
    auto make = [&](MatrixNoise& n, const Matrix& m) {
      for (int pair = 0; pair < members / 2; ++pair) n.make(m, *counter, pair, (uint32_t)(first_pair + pair));
      n.start(members / 2);
    };
    make(embedding_noise, model.embedding);
    make(head_noise, model.head);
    for (int l = 0; l < p.layers; ++l)
      for (int i = 0; i < kLayerProducts; ++i) make(noise[l * kLayerProducts + i], model.layers[l].products[i]);
  }

  void finish(int8_t* states) {
    for (int m = 0; m < members; ++m)
      for (int l = 0; l < p.layers; ++l) {
        const Encoded* row = state.data() + ((int64_t)l * capacity + m) * hidden;
        for (int i = 0; i < p.hidden; ++i) states[((int64_t)m * p.layers + l) * p.hidden + i] = (int8_t)(row[i] - kEncoding);
      }
  }

  /* Section 7: every t, two a lane; the rounding stands beside an odd one's last. */
  void project(const MatrixNoise& n, const Encoded* in, int stride) {
    const Lanes half = broadcast(p.sigma_shift ? 1 << (p.sigma_shift - 1) : 0), multiplier = broadcast(rank_multiplier);
    for (int m = 0; m < members; m += 16)
      for (int k = 0; k < n.rank; ++k) {
        Lanes along = dot_rows(in + (int64_t)m * stride, stride, n.b_row(m / 2, k), n.stride, n.fan_in, std::min(16, members - m));
        if (kEncoding) along = along + load<Lanes>(n.b_start.data() + k * n.members + m);
        along = clamp(rounding_shift(clamp(along, 1 << 23) * multiplier, 11), INTLM_MAX16);
        int32_t* out = t.data() + (int64_t)(k / 2) * t_stride + m;
        store(out, k % 2 ? join(load<Lanes>(out), along) : join(along, half));
      }
  }

  /* What a product reads while bytes are stored, which for all the compiler knows may change anything not local. */
  struct Operands {
    const int8_t* packed;
    const int32_t* start;
    int fan_in, shift;
    int16_t multiplier;
    const Encoded* in;  // [members][stride], encoded
    int stride;
    const int8_t* a;  // A of the first pair, and from one pair and from one rank to the next
    int64_t next_pair, next_rank;
    const int32_t* along;  // t
    int t_stride, rank, sigma_shift;
  };

  /* Sums of MB members times UB vectors of outputs, perturbed and rescaled, each vector handed to
   * sink(member, first output, values). RANK: the rank, or 0 for any. */
  template <int MB, int UB, int RANK, class Sink>
  static inline void block(const Operands& operands, int m0, int u0, const Sink sink) {
    const Operands o = operands;
    Sums acc[MB][UB][kParts];
#pragma GCC unroll 8
    for (int u = 0; u < UB; ++u)
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        Sums begin = load<Sums>(o.start + 16 * ((u0 + u) * kParts + part));
#pragma GCC unroll 12
        for (int m = 0; m < MB; ++m) acc[m][u][part] = begin;
      }
    /* The perturbation first: it does not wait for the sums, so it is made while those of the last block end and
     * these begin. Where registers are few the sums start from it. */
    Lanes by[P ? MB : 1][UB][kParts];
    if (P) {
      const int rank = RANK ? RANK : o.rank;
      const int32_t half = o.sigma_shift ? 1 << (o.sigma_shift - 1) : 0;
#pragma GCC unroll 12
      for (int m = 0; m < MB; m += 2)
#pragma GCC unroll 8
        for (int u = 0; u < UB; ++u) {
          const int8_t* a = o.a + (m0 + m) / 2 * o.next_pair + (u0 + u) * kLanes;
          const int32_t* along = o.along + m0 + m;
          int k = 0;
          do {
            Lanes pairs[kParts];
            pair_up(a, k + 1 < rank ? a + o.next_rank : nullptr, pairs);
#pragma GCC unroll 2
            for (int s = 0; s < 2; ++s)
#pragma GCC unroll 2
              for (int part = 0; part < kParts; ++part) {
                Lanes& change = by[m + s][u][part];
                change = k ? dot2_add(change, pairs[part], along[s]) : dot2(pairs[part], along[s]);
                if (k + 2 >= rank) change = (rank % 2 ? change : change + broadcast(half)) >> o.sigma_shift;
              }
            a += 2 * o.next_rank, along += o.t_stride;
          } while ((k += 2) < rank);
#if INTLM_AVX2
          acc[m][u][0] = acc[m][u][0] + by[m][u][0], acc[m + 1][u][0] = acc[m + 1][u][0] - by[m + 1][u][0];
#endif
        }
#if !INTLM_AVX2
      asm volatile("" : "+m"(by));  // or the compiler moves it behind the sums
#endif
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
          if (P && !INTLM_AVX2) total[part] = m % 2 ? total[part] - by[m][u][part] : total[part] + by[m][u][part];
          if (o.shift) total[part] = total[part] >> o.shift;
        }
        sink(m0 + m, (u0 + u) * kLanes, mulhrs(narrow(total), multiplier));
      }
  }

  template <int UB, int RANK, class Sink>
  __attribute__((noinline)) static void every_member(const Operands& o, int members, int u, const Sink& sink) {
    constexpr int kMost = kSums / (UB * kParts);
    int m = 0;
    for (; m + (P ? 1 : kMost) <= members; m += kMost) block<kMost, UB, RANK>(o, m, u, sink);
    if (!P)
      for (; m < members; ++m) block<1, UB, RANK>(o, m, u, sink);
  }

  /* in: encoded [members][stride]. A panel of weights stays in the nearest cache while every member meets it. */
  template <class Sink>
  void product(Team& team, const Matrix& w, const MatrixNoise* n, const Encoded* in, int stride, const Sink& sink) {
    Operands o{w.packed, w.start, w.fan_in, w.scale.shift, (int16_t)w.scale.multiplier, in, stride};
    if (P) {
      team.watch.on(intlm::kProjection);
      project(*n, in, stride);
      o.a = n->a_row(0, 0), o.next_pair = n->stride, o.next_rank = n->width;
      o.along = t.data(), o.t_stride = t_stride, o.rank = n->rank, o.sigma_shift = p.sigma_shift;
    }
    team.watch.on(intlm::kProducts);
    for (int panel = team.from(w.panels()); panel < team.to(w.panels()); ++panel)
      if (const int u = panel * kUnits; w.whole(panel))
        P && p.rank == 1 ? every_member<kUnits, 1>(o, members, u, sink) : every_member<kUnits, 0>(o, members, u, sink);
      else
        P && p.rank == 1 ? every_member<1, 1>(o, members, u, sink) : every_member<1, 0>(o, members, u, sink);
  }

  /* Section 5.3, every member: x to this worker's normed. */
  const Encoded* norm(Team& team) {
    team.watch.on(intlm::kNorm);
    Encoded* own = normed.data() + (int64_t)team.part * capacity * hidden;
    for (int m0 = 0; m0 < members; m0 += 16) {
      const int count = std::min(16, members - m0);
      int32_t totals[16];
      store(totals, magnitudes(x.data() + (int64_t)m0 * hidden, hidden, p.hidden, count));
      for (int m = 0; m < count; ++m) {
        const int64_t at = (int64_t)(m0 + m) * hidden;
        const int16_t gain = intlm_reciprocal[intlm_mean(totals[m], mean_multiplier)];
        for (int i = 0; i < hidden; i += kLanes) {
          const Wide scaled = widen(load<Narrow>(x.data() + at + i)) << (int16_t)INTLM_ONE_BITS;
          encode(own + at + i, mulhrs(scaled, (Wide){} + gain));
        }
      }
    }
    return own;
  }

  void embed(const uint16_t* tokens) {
    for (int m = 0; m < members; m += P ? 2 : 1) {
      const int token = tokens[m];
      const int8_t* row = parameters + model.embedding.offset + (int64_t)token * p.hidden;
      int8_t* out = x.data() + (int64_t)m * hidden;
      if (!P) {
        std::copy(row, row + p.hidden, out);
        continue;
      }
      for (int i = 0; i < p.hidden; i += kLanes) {
        Lanes changes[kParts] = {}, pairs[kParts];
        for (int k = 0; k < p.rank; k += 2) {
          auto along = [&](int which) { return which < p.rank ? embedding_noise.a_row(m / 2, which)[token] * rank_multiplier : 0; };
          const int8_t* b = embedding_noise.b_row(m / 2, k) + i;
          pair_up(b, k + 1 < p.rank ? b + embedding_noise.width : nullptr, pairs);
          const int32_t two = (along(k) & 0xFFFF) | (int32_t)((uint32_t)along(k + 1) << 16);
          for (int part = 0; part < kParts; ++part) changes[part] = dot2_add(changes[part], pairs[part], two);
        }
        for (Lanes& part : changes) part = clamp(rounding_shift(part, 11 + p.sigma_shift), 2 * INTLM_MAX8);  // more saturates whatever it is added to
        const Wide base = widen(load<Narrow>(row + i)), change = narrow(changes);
        store(out + i, narrow8(base + change));
        store(out + hidden + i, narrow8(base - change));
      }
    }
  }

  /* Section 5.2 for every member, up to the logits, which go to sink(member, first, values). */
  template <class Sink>
  void step(Team& team, const uint16_t* tokens, const Sink& sink) {
    if (team.part == 0) {
      team.watch.on(intlm::kEmbedding);
      for (int m = 0; m < members; ++m)
        if (tokens[m] == 0)
          for (int l = 0; l < p.layers; ++l) std::fill_n(state.data() + ((int64_t)l * capacity + m) * hidden, hidden, (Encoded)kEncoding);
      embed(tokens);
    }
    team.meet();
    const Wide one = (Wide){} + (int16_t)INTLM_GATE_ONE, unit = (Wide){} + (int16_t)INTLM_GATE_MULTIPLIER;
    /* Sinks hold copies of what they use: see Operands. */
    const int64_t width = hidden, wide_width = feed_forward, bias_width = P ? hidden : 0;
    int16_t *const kept = y.data(), *const shares = gate.data();
    Encoded *const opened = reset.data(), *const up = wide.data();
    int8_t* const residual = x.data();
    const bool table = p.table;
    auto squash = [=](Wide v, const int8_t* by) { return table ? widen(lookup(narrow8(v), by)) : clamp8(v); };
    auto keep = [=](int m, int first, Wide found) { store(kept + m * width + first, found); };
    for (int l = 0; l < p.layers; ++l) {
      const Layer& layer = model.layers[l];
      const MatrixNoise* n = P ? noise.data() + (int64_t)l * kLayerProducts : nullptr;
      auto of = [&](int i) { return P ? n + i : nullptr; };
      Encoded* h = state.data() + (int64_t)l * capacity * hidden;
      const int8_t* gate_bias = vector_row(l * kLayerVectors + kGateBias, 0);
      const int8_t* candidate_bias = vector_row(l * kLayerVectors + kCandidateBias, 0);
      const Encoded* in = norm(team);
      product(team, layer.products[kGateInput], of(kGateInput), in, hidden, keep);
      product(team, layer.products[kGateState], of(kGateState), h, hidden, [=](int m, int first, Wide found) {
        const int64_t at = m * width + first;
        const Wide open = found + load<Wide>(kept + at) + widen(load<Narrow>(gate_bias + m * bias_width + first));
        const Wide share = squash(open, intlm_sigmoid) + one;
        store(shares + at, share);
        encode(opened + at, mulhrs(share * decode(h + at), unit));
      });
      product(team, layer.products[kCandidateInput], of(kCandidateInput), in, hidden, keep);
      team.meet();
      product(team, layer.products[kCandidateState], of(kCandidateState), opened, hidden, [=](int m, int first, Wide found) {
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
      product(team, layer.products[kUp], of(kUp), in, hidden,
              [=](int m, int first, Wide found) { encode(up + m * wide_width + first, found > 0 ? found : -found); });
      team.meet();
      product(team, layer.products[kDown], of(kDown), up, feed_forward, [=](int m, int first, Wide found) {
        const int64_t at = m * width + first;
        store(residual + at, narrow8(widen(load<Narrow>(residual + at)) + found));
      });
      team.meet();
    }
    product(team, model.head, P ? &head_noise : nullptr, norm(team), hidden, sink);
    team.meet();
  }
};

/* ---- Loss (section 6) ---- */

/* logits has room for a whole number of 64, those beyond the vocabulary to be overwritten. */
constexpr int kLossLanes = INTLM_AVX512 ? 64 : kLanes;

#if defined(__AVX2__)
/* The largest of eight int16 values. The instruction finds the least unsigned one: that of 32767 - x, for the largest x. */
static inline int32_t top_of(__m128i v) {
  return 32767 - _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_sub_epi16(_mm_set1_epi16(32767), v))) % 65536;
}
#endif

static int32_t log_sum_exp2(int16_t* logits, int vocab) {
  const int whole = (vocab + kLossLanes - 1) / kLossLanes * kLossLanes;
  for (int i = vocab; i < whole; ++i) logits[i] = -32768;  // its term is zero
#if INTLM_AVX512
  __m512i largest = _mm512_set1_epi16(-32768);
  for (int i = 0; i < whole; i += 32) largest = _mm512_max_epi16(largest, _mm512_loadu_si512(logits + i));
  __m256i m256 = _mm256_max_epi16(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64(largest, 1));
  __m128i m128 = _mm_max_epi16(_mm256_castsi256_si128(m256), _mm256_extracti128_si256(m256, 1));
  const int32_t top = top_of(m128);
  largest = _mm512_set1_epi16((int16_t)top);
  /* EXP2 in three planes of bytes: a permutation looks 128 entries up at once. */
  static const struct Planes {
    alignas(64) uint8_t byte[3][256];
    Planes() {
      for (int i = 0; i < 256; ++i)
        for (int j = 0; j < 3; ++j) byte[j][i] = (uint8_t)((uint32_t)intlm_exp2[i] >> (8 * j));
    }
  } planes;
  const __m512i low8 = _mm512_set1_epi16(0xFF), high8 = _mm512_set1_epi16((int16_t)0xFF00), one8 = _mm512_set1_epi8(1);
  const __m512i one = _mm512_set1_epi32(1), zero = _mm512_setzero_si512();
  uint64_t sum = 0;
  for (int begin = 0; begin < whole; begin += 2048) {
    __m512i acc = zero;
    for (int i = begin; i < std::min(begin + 2048, whole); i += 64) {
      /* The low bytes of 64 differences together, as indices, and the high ones, in the same order. */
      const __m512i first = _mm512_sub_epi16(largest, _mm512_loadu_si512(logits + i));
      const __m512i second = _mm512_sub_epi16(largest, _mm512_loadu_si512(logits + i + 32));
      const __m512i index = _mm512_ternarylogic_epi32(low8, first, _mm512_slli_epi16(second, 8), 0xEA);
      const __m512i shift = _mm512_ternarylogic_epi32(high8, second, _mm512_srli_epi16(first, 8), 0xEA);
      const __mmask64 upper = _mm512_movepi8_mask(index);
      __m512i b[4], e[4], q[4];
      for (int j = 0; j < 3; ++j) {
        const uint8_t* plane = planes.byte[j];
        __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(plane), index, _mm512_load_si512(plane + 64));
        __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(plane + 128), index, _mm512_load_si512(plane + 192));
        b[j] = _mm512_mask_blend_epi8(upper, low, high);
      }
      b[3] = _mm512_maskz_mov_epi8(_mm512_testn_epi8_mask(index, index), one8);  // 2^24, at index 0
      const __m512i low01 = _mm512_unpacklo_epi8(b[0], b[1]), low23 = _mm512_unpacklo_epi8(b[2], b[3]);
      const __m512i high01 = _mm512_unpackhi_epi8(b[0], b[1]), high23 = _mm512_unpackhi_epi8(b[2], b[3]);
      const __m512i low_q = _mm512_unpacklo_epi8(shift, zero), high_q = _mm512_unpackhi_epi8(shift, zero);
      e[0] = _mm512_unpacklo_epi16(low01, low23), q[0] = _mm512_unpacklo_epi16(low_q, zero);
      e[1] = _mm512_unpackhi_epi16(low01, low23), q[1] = _mm512_unpackhi_epi16(low_q, zero);
      e[2] = _mm512_unpacklo_epi16(high01, high23), q[2] = _mm512_unpacklo_epi16(high_q, zero);
      e[3] = _mm512_unpackhi_epi16(high01, high23), q[3] = _mm512_unpackhi_epi16(high_q, zero);
      for (int j = 0; j < 4; ++j) {
        const __m512i rounding = _mm512_srli_epi32(_mm512_sllv_epi32(one, q[j]), 1);
        acc = _mm512_add_epi32(acc, _mm512_srlv_epi32(_mm512_add_epi32(e[j], rounding), q[j]));
      }
    }
    const __m512i lanes = _mm512_add_epi64(_mm512_and_si512(acc, _mm512_set1_epi64(0xFFFFFFFF)), _mm512_srli_epi64(acc, 32));
    sum += (uint64_t)_mm512_reduce_add_epi64(lanes);
  }
#elif INTLM_AVX2
  Wide largest = load<Wide>(logits);
  for (int i = 16; i < whole; i += 16) largest = (Wide)_mm256_max_epi16((__m256i)largest, (__m256i)load<Wide>(logits + i));
  const __m128i m128 = _mm_max_epi16(_mm256_castsi256_si128((__m256i)largest), _mm256_extracti128_si256((__m256i)largest, 1));
  const int32_t top = top_of(m128);
  const __m256i tops = _mm256_set1_epi32(top), one = _mm256_set1_epi32(1), most = _mm256_set1_epi32(26);
  uint64_t sum = 0;
  for (int begin = 0; begin < whole; begin += 1024) {  // a lane holds the sum of 128 terms of at most 2^24
    __m256i acc = _mm256_setzero_si256();
    for (int i = begin; i < std::min(begin + 1024, whole); i += 8) {
      const __m256i below = _mm256_sub_epi32(tops, _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)(logits + i))));
      const __m256i found = _mm256_i32gather_epi32((const int*)intlm_exp2, _mm256_and_si256(below, _mm256_set1_epi32(255)), 4);
      const __m256i shift = _mm256_min_epi32(_mm256_srli_epi32(below, 8), most);
      const __m256i rounding = _mm256_srli_epi32(_mm256_sllv_epi32(one, shift), 1);
      acc = _mm256_add_epi32(acc, _mm256_srlv_epi32(_mm256_add_epi32(found, rounding), shift));
    }
    uint32_t lanes[8];
    store(lanes, acc);
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

/* ---- The calls ---- */

static int64_t prepared_size(const Problem& p) { return Model(p).prepared_size; }

static void prepare(const Problem& p, const int8_t* parameters, int8_t* prepared) {
  Model(p).prepare(parameters, prepared, p.threads);
}

static Counter noise_counter(const Problem& p, uint32_t epoch) { return {{p.seed[0], p.seed[1], 0, 0}, epoch}; }

static void evaluate(const Problem& p, const int8_t* parameters, const uint16_t* tokens, const uint16_t* targets,
                     int64_t length, int log_targets, const int8_t* states, uint32_t epoch, uint32_t first_pair,
                     int32_t* losses, int8_t* next) {
  Model model(p);
  Buffer<int8_t> prepared(model.prepared_size);
  model.prepare(parameters, prepared.data(), p.threads);
  model.bind(prepared.data());
  const Counter counter = noise_counter(p, epoch);
  const int64_t per_thread = (p.pairs + p.threads - 1) / p.threads;
  const int pairs = (int)std::min<int64_t>(kTilePairs, per_thread);
  const int64_t tiles = (p.pairs + pairs - 1) / pairs, row = (int64_t)p.layers * p.hidden;
  std::vector<std::unique_ptr<Tile<true>>> own(p.threads);
  parallel(tiles, p.threads, [&](int64_t index, int worker) {
    Team alone;
    if (!own[worker]) own[worker].reset(new Tile<true>(p, model, prepared.data(), 2 * pairs));
    Tile<true>& tile = *own[worker];
    const int64_t first = index * pairs;
    const int count = 2 * (int)std::min<int64_t>(pairs, p.pairs - first);
    alone.watch.on(intlm::kNoise);
    tile.start(&counter, first_pair + first, count, states + 2 * first * row);
    int32_t* total = losses + 2 * first;
    std::fill(total, total + count, 0);
    uint16_t reading[2 * kTilePairs];
    int64_t text[2 * kTilePairs];
    for (int m = 0; m < count; ++m) text[m] = (first + m / 2) / p.group * length;
    for (int64_t at = 0; at < length; ++at) {
      for (int m = 0; m < count; ++m) reading[m] = tokens[text[m] + at];
      int16_t* const out = tile.logits.data();
      const int64_t width = tile.vocab;
      tile.step(alone, reading, [=](int m, int from, Wide found) { store(out + m * width + from, found); });
      alone.watch.on(intlm::kLoss);
      for (int m = 0; m < count; ++m) {
        int16_t* logits = tile.logits.data() + (int64_t)m * tile.vocab;
        const uint16_t* follow = targets + ((text[m] + at) << log_targets);
        int32_t chosen = 0;
        for (int k = 0; k < 1 << log_targets; ++k) chosen += logits[follow[k]];
        total[m] += log_sum_exp2(logits, p.vocab) - intlm_rshift(chosen, log_targets);
      }
    }
    alone.watch.on(intlm::kCopies);
    tile.finish(next + 2 * first * row);
  });
}

/* Where logits go that are a product's vectors of outputs: to a row of the vocabulary's width. */
static inline void put_logits(int16_t* row, int vocab, int first, Wide found) {
  if (first + kLanes <= vocab) store(row + first, found);
  else std::memcpy(row + first, &found, (vocab - first) * sizeof(int16_t));
}

/* Workers for one tile: as many as have weights enough to read between two meetings. */
static int team_size(const Problem& p, const Model& model) {
  return (int)std::min<int64_t>(p.threads, 1 + model.size / (1 << 18));
}

static void infer(const Problem& p, const int8_t* prepared, const uint16_t* tokens, int64_t batch, int64_t length,
                  const int8_t* states, int16_t* logits, int8_t* next) {
  Model model(p);
  model.bind(prepared);
  const int64_t row = (int64_t)p.layers * p.hidden;
  auto read = [&](Tile<false>& tile, Team& team, int64_t first) {
    uint16_t reading[2 * kTilePairs];
    for (int64_t at = 0; at < length; ++at) {
      for (int m = 0; m < tile.members; ++m) reading[m] = tokens[(first + m) * length + at];
      int16_t* const out = logits + (first * length + at) * p.vocab;
      const int64_t width = length * p.vocab;
      const int vocab = p.vocab;
      tile.step(team, reading, [=](int m, int from, Wide found) { put_logits(out + m * width, vocab, from, found); });
    }
  };
  const int parts = team_size(p, model);
  if (batch < parts) {
    Tile<false> tile(p, model, prepared, (int)batch, parts);
    tile.start(nullptr, 0, (int)batch, states);
    intlm::Barrier barrier(parts);
    parallel(parts, parts, [&](int64_t index, int) {
      Team team{(int)index, parts, &barrier};
      read(tile, team, 0);
    });
    tile.finish(next);
    return;
  }
  const int64_t per_thread = (batch + p.threads - 1) / p.threads;
  const int streams = (int)std::min<int64_t>(2 * kTilePairs, per_thread);
  const int64_t tiles = (batch + streams - 1) / streams;
  std::vector<std::unique_ptr<Tile<false>>> own(p.threads);
  parallel(tiles, p.threads, [&](int64_t index, int worker) {
    Team alone;
    if (!own[worker]) own[worker].reset(new Tile<false>(p, model, prepared, streams));
    Tile<false>& tile = *own[worker];
    const int64_t first = index * streams;
    tile.start(nullptr, 0, (int)std::min<int64_t>(streams, batch - first), states + first * row);
    read(tile, alone, first);
    alone.watch.on(intlm::kCopies);
    tile.finish(next + first * row);
  });
}

/* Section 10: `count` tokens of one stream, the first drawn from `logits`, which are left as those of the next. */
static void generate(const Problem& p, const int8_t* prepared, const uint32_t* key, uint32_t position, int32_t inverse,
                     int32_t top_k, int64_t count, int16_t* logits, int8_t* states, int32_t* tokens) {
  Model model(p);
  model.bind(prepared);
  const int parts = team_size(p, model);
  Tile<false> tile(p, model, prepared, 1, parts);
  tile.start(nullptr, 0, 1, states);
  intlm::Barrier barrier(parts);
  parallel(parts, parts, [&](int64_t index, int) {
    Team team{(int)index, parts, &barrier};
    uint16_t token = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (team.part == 0) {
        uint32_t word[4] = {position + (uint32_t)i, 0, 0, 0};
        intlm_threefry(key, word);
        tokens[i] = intlm_sample(logits, p.vocab, word[0], inverse, top_k, intlm_exp2);
        token = (uint16_t)tokens[i];
      }
      const int vocab = p.vocab;
      tile.step(team, &token, [=](int, int from, Wide found) { put_logits(logits, vocab, from, found); });
    }
  });
  tile.finish(states);
}

/* ---- Votes (section 9) ---- */

/* Two rows of int8 values as int16 pairs, each times its own factor; count rounded up to sixteen. */
static void zip(const int8_t* first, int32_t f0, const int8_t* second, int32_t f1, int count, int32_t* out) {
  for (int i = 0; i < count; i += 16) store(out + i, zip(first + i, f0, second + i, f1));
}

/* Adds the products of pairs a[terms][outputs] and b[terms][inputs] to OB rows and IB vectors of z. */
template <int OB, int IB>
static inline void outer(const int32_t* a, int64_t a_stride, const int32_t* b, int64_t b_stride, int terms, int32_t* z, int64_t z_stride) {
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

/* What one worker keeps from one slab of votes to the next. */
struct Ballot {
  static constexpr int kPairs = 128, kRows = 256;  // pairs whose noise is held at once; outputs of a slab
  Buffer<int8_t> drawn[2];
  Buffer<int32_t> a, b, z;

  /* Rows from `first` of a matrix: Z = sum over pairs of f A B^T. B is drawn anew for every slab. */
  void matrix(const Problem& p, const Counter& counter, const int8_t* fitness, const Matrix& m, int first,
              uint32_t first_pair, int32_t* votes) {
    const int rows = std::min(kRows, m.fan_out - first), b_blocks = blocks(m.fan_in), width = b_blocks + blocks(m.fan_out);
    const int64_t a_stride = kRows + 16, in = 16 * b_blocks;  // not a power of two: rows must not share a place in the cache
    a.reserve((size_t)kPairs / 2 * p.rank * a_stride), b.reserve((size_t)kPairs / 2 * p.rank * in), z.reserve((size_t)kRows * in);
    std::fill(z.data(), z.data() + kRows * in, 0);
    for (Buffer<int8_t>& d : drawn) d.reserve(p.rank * (drawn_bytes(b_blocks) + drawn_bytes(kRows / 16)));
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
            int8_t* to = drawn[s].data() + k * (drawn_bytes(b_blocks) + drawn_bytes(kRows / 16));
            draw(counter, global, m.number, k * width, b_blocks, to);
            draw(counter, global, m.number, k * width + b_blocks + first / 16, blocks(rows), to + drawn_bytes(b_blocks));
          }
        for (int k = 0; k < p.rank; ++k, ++terms) {
          const int64_t at = k * (drawn_bytes(b_blocks) + drawn_bytes(kRows / 16));
          zip(drawn[0].data() + at, 1, drawn[1].data() + at, 1, m.fan_in, b.data() + terms * in);
          const int64_t from = at + drawn_bytes(b_blocks);
          zip(drawn[0].data() + from, f[0], drawn[1].data() + from, other, rows, a.data() + terms * a_stride);
        }
      }
      watch.on(intlm::kVotes);
      int i = 0;
      auto columns = [&](auto vectors) {
        constexpr int IB = decltype(vectors)::value, OB = kSums >= 24 ? 8 : 4;
        for (int o = 0; o < rows; o += OB)
          outer<OB, IB>(a.data() + o, a_stride, b.data() + i, in, terms, z.data() + o * in + i, in);
      };
      if (kSums >= 24)
        for (; i + 32 <= in; i += 32) columns(std::integral_constant<int, 2>{});
      for (; i < in; i += 16) columns(std::integral_constant<int, 1>{});
    }
    for (int o = 0; o < rows; ++o)
      std::copy_n(z.data() + o * in, m.fan_in, votes + m.offset + (int64_t)(first + o) * m.fan_in);
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
        store(z.data() + i, load<i32x16>(z.data() + i) + 16 * fitness[pair] * widen(widen(load<i8x16>(drawn[0].data() + i))));
    }
    std::copy_n(z.data(), p.hidden, votes + v.offset);
  }

  intlm::Stopwatch watch{intlm::kVotes};
};

static void accumulate(const Problem& p, const int8_t* fitness, uint32_t epoch, uint32_t first_pair, int32_t* votes) {
  const Model model(p);
  const Counter counter = noise_counter(p, epoch);
  struct Slab {
    const Matrix* matrix;
    const VectorParameter* vector;
    int first;
  };
  std::vector<Slab> slabs;
  auto add = [&](const Matrix& m) {
    for (int first = 0; first < m.fan_out; first += Ballot::kRows) slabs.push_back({&m, nullptr, first});
  };
  add(model.embedding), add(model.head);
  for (const Layer& layer : model.layers)
    for (const Matrix& m : layer.products) add(m);
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

/* ---- The machine's bounds, for `intlm bench` ---- */

/* Byte products in registers, as many sums side by side as hide how long one takes. */
static int64_t multiply(int32_t* sink) {
  constexpr int kChains = INTLM_AVX512 ? 12 : 6, kTurns = 2048;
  Buffer<int32_t> start(16 * kChains);
  for (size_t i = 0; i < start.size(); ++i) start[i] = (*sink + (int32_t)i) & 0x7F7F7F7F;
  Sums x = load<Sums>(start.data()), acc[kChains];
  const Sums w = load<Sums>(start.data() + 16);
#pragma GCC unroll 12
  for (int j = 0; j < kChains; ++j) acc[j] = load<Sums>(start.data() + 16 * j);
  for (int turn = 0; turn < kTurns; ++turn)
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) multiply_bytes(acc[j], x, w);
#pragma GCC unroll 12
  for (int j = 0; j < kChains; ++j) store(start.data() + 16 * j, acc[j]);
  *sink ^= start[*sink & 15];
  return kTurns * kChains * 64;
}

static void read(const int8_t* buffer, int64_t bytes, int32_t* sink) {
  Lanes all[4] = {};
  for (int64_t i = 0; i + 256 <= bytes; i += 256)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) all[j] = all[j] + load<Lanes>(buffer + i + 64 * j);
  int32_t kept[16];
  store(kept, all[0] + all[1] + (all[2] + all[3]));
  *sink ^= kept[*sink & 15];
}

}  // namespace INTLM_NAMESPACE
