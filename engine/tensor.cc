#include "tensor.h"

#include "quant/activation.h"
#include "quant/blocks.h"

namespace perigee {

BlockShape block_shape(DType type) {
  switch (type) {
    case DType::F32:
      return {1, 4};
    case DType::F16:
      return {1, 2};
    case DType::BF16:
      return {1, 2};
    case DType::Q4_0:
      return {32, sizeof(BlockQ4_0)};
    case DType::Q4_1:
      return {32, sizeof(BlockQ4_1)};
    case DType::Q5_0:
      return {32, sizeof(BlockQ5_0)};
    case DType::Q5_1:
      return {32, sizeof(BlockQ5_1)};
    case DType::Q8_0:
      return {32, sizeof(BlockQ8_0)};
    case DType::IQ4_NL:
      return {32, sizeof(BlockIQ4_NL)};
    case DType::Q2_K:
      return {256, sizeof(BlockQ2_K)};
    case DType::Q3_K:
      return {256, sizeof(BlockQ3_K)};
    case DType::Q4_K:
      return {256, sizeof(BlockQ4_K)};
    case DType::Q5_K:
      return {256, sizeof(BlockQ5_K)};
    case DType::Q6_K:
      return {256, sizeof(BlockQ6_K)};
    case DType::IQ4_XS:
      return {256, sizeof(BlockIQ4_XS)};
  }
  return {0, 0};
}

size_t row_bytes(DType type, uint32_t cols) {
  const BlockShape shape = block_shape(type);
  return shape.elements == 0 ? 0 : size_t(cols / shape.elements) * shape.bytes;
}

Activation activation_for(DType type, bool exact) {
  const uint32_t elements = block_shape(type).elements;
  if (exact || elements < 32) return Activation::F32;
  return elements == 32 ? Activation::Q8_0 : Activation::Q8_K;
}

size_t activation_row_bytes(Activation kind, uint32_t cols) {
  switch (kind) {
    case Activation::F32:
      return (size_t(cols) * 4 + 15) & ~size_t(15);
    case Activation::Q8_0:
      return q8_0_row_bytes(cols);
    case Activation::Q8_K:
      return q8_k_row_bytes(cols);
  }
  return 0;
}

}  // namespace perigee
