/* The model's parameters (section 5.1), their scales (sections 2, 5.3 and 7), and the buffers that hold all memory.
 */
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels.h"
#include "operations.h"

namespace INTLM_TARGET {

using intlm::Problem;

constexpr int kSlack = 64;  // bytes that a load may read past a buffer's end

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

static uint32_t isqrt(uint64_t x) {
  uint64_t root = 0;
  for (int bit = 31; bit >= 0; --bit) {
    uint64_t trial = root | ((uint64_t)1 << bit);
    if (trial * trial <= x) root = trial;
  }
  return (uint32_t)root;
}

/* oddroot(2^bits, n); bits <= 62. */
static int32_t odd_root(int bits, uint32_t n) {
  return (int32_t)(2 * isqrt(((uint64_t)1 << bits) / ((uint64_t)4 * n)) + 1);
}

/* act(n): unit 256, bits 11; logit(n): unit 16, bits 15. */
static intlm_rescale_t rescale_of(uint32_t fan_in, uint32_t unit, int bits, int extra_shift = 0) {
  int shift = 0;
  while ((unit << (2 * shift)) < fan_in) ++shift;
  return {shift + extra_shift, odd_root(2 * (bits + shift), fan_in)};
}

static int32_t mean_multiplier(uint32_t count) { return (int32_t)((((uint32_t)1 << 25) / count + 1) >> 1); }

enum Vector { kGateBias, kCandidateBias, kLayerVectors };
enum Product { kGateInput, kGateState, kCandidateInput, kCandidateState, kUp, kDown, kLayerProducts };

struct Matrix {
  int fan_out = 0, fan_in = 0;
  uint32_t number = 0;
  int64_t offset = 0;  // in the flat parameters
  intlm_rescale_t scale = {0, 0};
  int64_t at = -1;  // in the prepared parameters
  /* [panels][fan_in / kDepth][units of one][kParts][16][kDepth], outputs in the order of `column`. */
  const int8_t* packed = nullptr;
  const int32_t* start = nullptr;  // [units][kParts][16]: the rounding minus the encoding's constant part
  /* A panel is kUnits units of outputs, except a last one of a single unit. */
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
  int64_t prepared_size = 0;  // bytes that `prepare` writes: the parameters, then the packed matrices

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
        m.scale = rescale_of(m.fan_in, 256, 11, state && p.table ? INTLM_STATE_SHIFT : 0);
      }
    }
    matrix(head, p.vocab, p.hidden);
    head.scale = rescale_of(p.hidden, 16, 15);
    prepared_size = (size + 63) / 64 * 64;
    for (Matrix* m : packed_matrices()) {
      m->at = prepared_size;
      prepared_size += m->packed_bytes() + padded(m->fan_out) * (int64_t)sizeof(int32_t);
    }
  }

  template <class Each>
  void each_matrix(const Each& each) const {
    each(embedding), each(head);
    for (const Layer& layer : layers)
      for (const Matrix& m : layer.products) each(m);
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
    parallel((int64_t)matrices.size(), threads,
             [&](int64_t index, int) { pack(*matrices[index], parameters, prepared); });
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

}  // namespace INTLM_TARGET
