// Random experts in every kind of host memory, steps that choose among them, and their sums in doubles.
#pragma once
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <numeric>
#include <random>
#include <vector>

#include "../../engine/quant/dequantize.h"
#include "../../native/cuda/streaming.h"
#include "harness.cuh"

namespace check {

using namespace perigee;
using namespace perigee::cuda;

inline std::mt19937 random_bits(11);

inline float wide_to_float(bf16 x) {
  uint16_t bits;
  memcpy(&bits, &x, 2);
  return bf16_to_float(bits);
}

// Random blocks whose scales make weights of about 0.05.
inline void fill_blocks(DType type, uint8_t* at, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) at[i] = random_bits();
  const uint32_t size = block_shape(type).bytes;
  for (size_t b = 0; b + size <= bytes; b += size) {
    if (type == DType::Q4_K) {
      const uint16_t d[2] = {0x0c00, 0x1000};  // 2^-12, 2^-11
      memcpy(at + b, d, 4);
    } else if (type == DType::Q6_K) {
      const uint16_t d = 0x0080;  // 2^-17
      memcpy(at + b + 208, &d, 2);
    } else if (type == DType::Q8_0) {
      const uint16_t d = 0x1000;
      memcpy(at + b, &d, 2);
    } else {  // BF16
      const uint16_t v = 0x3c00 | (at[b] & 0xff) | (at[b + 1] & 0x80) << 8;
      memcpy(at + b, &v, 2);
    }
  }
}

enum class Source { Pinned, File, Staged };

// One matrix of every expert: what a file holds, and the parts of three ranks in memory of some kind.
struct ExpertSet {
  DType type;
  uint32_t rows, cols;
  std::vector<uint8_t> bytes;  // [experts][rows][row_bytes]
};

inline ExpertSet make_experts(DType type, uint32_t experts, uint32_t rows, uint32_t cols) {
  ExpertSet set = {type, rows, cols, {}};
  set.bytes.resize(size_t(experts) * rows * row_bytes(type, cols));
  fill_blocks(type, set.bytes.data(), set.bytes.size());
  return set;
}

inline uint8_t* host_memory(Source source, size_t bytes, const uint8_t* content) {
  if (source == Source::File) {
    char path[] = "/tmp/perigee-stream-XXXXXX";
    const int file = mkstemp(path);
    unlink(path);
    for (size_t done = 0; done < bytes;) done += write(file, content + done, bytes - done);
    void* at = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    return static_cast<uint8_t*>(at);
  }
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(at, content, bytes);
  return static_cast<uint8_t*>(at);
}

// A length that reaches into what is not mapped: such a range cannot be pinned.
constexpr uint64_t kUnmapped = uint64_t{1} << 45;

inline void attach(ExpertStream& stream, uint32_t layer, ExpertMatrix which, const ExpertSet& set, uint32_t experts,
                   Source source) {
  const uint32_t ranks = 3, share = (set.rows / ranks + 15) / 16 * 16;
  const uint64_t row = row_bytes(set.type, set.cols);
  for (uint32_t r = 0; r < ranks; r++) {
    const uint32_t begin = r * share, rows = std::min(share, set.rows - begin);
    std::vector<uint8_t> own(size_t(experts) * rows * row);
    std::vector<uint64_t> offsets(experts);
    for (uint32_t e = 0; e < experts; e++) {
      offsets[e] = (experts - 1 - e) * rows * row;
      memcpy(own.data() + offsets[e], set.bytes.data() + (size_t(e) * set.rows + begin) * row, rows * row);
    }
    const uint8_t* memory = host_memory(source, own.size(), own.data());
    stream.attach(
        layer, which,
        {set.type, begin, rows, set.cols, memory, source == Source::Staged ? kUnmapped : own.size(), offsets});
  }
}

struct RoutedStep {
  uint32_t n, used, hidden;
  std::vector<bf16> x;
  std::vector<int32_t> chosen;
  std::vector<float> weight;
  RoutedMany on_device;
};

inline RoutedStep make_step(uint32_t n, uint32_t used, uint32_t hidden, uint32_t experts, bool few_experts) {
  RoutedStep s = {n, used, hidden, {}, {}, {}, {}};
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < size_t(n) * hidden; i++) s.x.push_back(__float2bfloat16(normal(random_bits)));
  std::vector<int32_t> all(experts);
  std::iota(all.begin(), all.end(), 0);
  for (uint32_t t = 0; t < n; t++) {
    std::shuffle(all.begin(), few_experts ? all.begin() + used + 1 : all.end(), random_bits);
    for (uint32_t k = 0; k < used; k++) {
      s.chosen.push_back(t % 13 == 5 && k == 1 ? -1 : all[k]);
      s.weight.push_back(0.1f + 0.1f * k);
    }
  }
  s.on_device = {upload(s.x), upload(s.chosen), upload(s.weight), n, device<float>(size_t(n) * hidden)};
  return s;
}

inline std::vector<double> routed(const RoutedStep& s, const ExpertSet (&sets)[3], uint32_t width) {
  std::vector<double> sum(size_t(s.n) * s.hidden);
  const auto matrix = [&](const ExpertSet& set, int32_t e) {
    std::vector<float> w(size_t(set.rows) * set.cols);
    const uint64_t row = row_bytes(set.type, set.cols);
    for (uint32_t r = 0; r < set.rows; r++)
      dequantize_row(set.type, set.bytes.data() + (size_t(e) * set.rows + r) * row, set.cols, &w[size_t(r) * set.cols]);
    return w;
  };
  const uint32_t experts = sets[0].bytes.size() / (sets[0].rows * row_bytes(sets[0].type, sets[0].cols));
  for (uint32_t e = 0; e < experts; e++) {
    const auto gate = matrix(sets[0], e), up = matrix(sets[1], e), down = matrix(sets[2], e);
    std::vector<double> mid(width);
    for (uint32_t slot = 0; slot < s.n * s.used; slot++) {
      if (s.chosen[slot] != int32_t(e)) continue;
      const uint32_t t = slot / s.used;
      for (uint32_t i = 0; i < width; i++) {
        double g = 0, u = 0;
        for (uint32_t c = 0; c < s.hidden; c++) {
          const double x = wide_to_float(s.x[size_t(t) * s.hidden + c]);
          g += x * gate[size_t(i) * s.hidden + c];
          u += x * up[size_t(i) * s.hidden + c];
        }
        mid[i] = g / (1 + exp(-g)) * u;
      }
      for (uint32_t c = 0; c < s.hidden; c++) {
        double y = 0;
        for (uint32_t i = 0; i < width; i++) y += mid[i] * down[size_t(c) * width + i];
        sum[size_t(t) * s.hidden + c] += double(s.weight[slot]) * y;
      }
    }
  }
  return sum;
}

}  // namespace check
