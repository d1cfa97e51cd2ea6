// Random weight blocks of every type.
#pragma once
#include <stddef.h>
#include <string.h>

#include <random>
#include <vector>

#include "../../engine/quant/blocks.h"
#include "../../engine/quant/half.h"
#include "../../engine/tensor.h"

namespace check {

using namespace perigee;

struct Format {
  DType type;
  const char* name;
  std::vector<size_t> halves;  // places of half fields in a block
};
inline const Format kFormats[] = {
    {DType::F32, "F32", {}},
    {DType::F16, "F16", {0}},
    {DType::BF16, "BF16", {}},
    {DType::Q4_0, "Q4_0", {offsetof(BlockQ4_0, d)}},
    {DType::Q4_1, "Q4_1", {offsetof(BlockQ4_1, d), offsetof(BlockQ4_1, m)}},
    {DType::Q5_0, "Q5_0", {offsetof(BlockQ5_0, d)}},
    {DType::Q5_1, "Q5_1", {offsetof(BlockQ5_1, d), offsetof(BlockQ5_1, m)}},
    {DType::Q8_0, "Q8_0", {offsetof(BlockQ8_0, d)}},
    {DType::IQ4_NL, "IQ4_NL", {offsetof(BlockIQ4_NL, d)}},
    {DType::Q2_K, "Q2_K", {offsetof(BlockQ2_K, d), offsetof(BlockQ2_K, dmin)}},
    {DType::Q3_K, "Q3_K", {offsetof(BlockQ3_K, d)}},
    {DType::Q4_K, "Q4_K", {offsetof(BlockQ4_K, d), offsetof(BlockQ4_K, dmin)}},
    {DType::Q5_K, "Q5_K", {offsetof(BlockQ5_K, d), offsetof(BlockQ5_K, dmin)}},
    {DType::Q6_K, "Q6_K", {offsetof(BlockQ6_K, d)}},
    {DType::IQ4_XS, "IQ4_XS", {offsetof(BlockIQ4_XS, d)}},
};

// Random blocks whose scales are sane numbers; floats are sane as well.
inline std::vector<uint8_t> random_blocks(const Format& format, uint32_t rows, uint32_t cols) {
  std::mt19937 random(rows + cols);
  std::normal_distribution<float> normal;
  std::vector<uint8_t> raw(rows * row_bytes(format.type, cols));
  for (size_t i = 0; i + 4 <= raw.size(); i += 4) {
    const uint32_t word = random();
    memcpy(&raw[i], &word, 4);
  }
  const size_t bytes = block_shape(format.type).bytes;
  for (size_t block = 0; block < raw.size(); block += bytes) {
    for (const size_t at : format.halves) {
      const uint16_t bits = float_to_half(0.01f * normal(random));
      memcpy(&raw[block + at], &bits, sizeof bits);
    }
    if (format.type == DType::F32) {
      const float value = normal(random);
      memcpy(&raw[block], &value, sizeof value);
    }
    if (format.type == DType::BF16) {
      const uint16_t bits = 0x3c00 | (random() & 0x83ff);  // magnitudes from 2^-7 to 2
      memcpy(&raw[block], &bits, sizeof bits);
    }
  }
  return raw;
}

}  // namespace check
