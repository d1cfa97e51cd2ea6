// What a weight matrix is: GGUF block types, row sizes, and a view of one rank's rows.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace perigee {

// Weight storage types. Values are ggml's type ids, so a GGUF tensor info carries over unchanged.
enum class DType : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ4_NL = 20,
  IQ4_XS = 23,
  BF16 = 30,
};
constexpr uint32_t kDTypeCount = 31;  // one past the largest id

// How an activation row is stored while it meets a weight row.
//   F32   float activations: F32/F16/BF16 weights, and every type under --exact-activations
//   Q8_0  32-element blocks: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL
//   Q8_K  256-element superblocks: Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS
enum class Activation : uint32_t { F32 = 0, Q8_0 = 1, Q8_K = 2 };

struct BlockShape {
  uint32_t elements, bytes;
};

// Elements and bytes of one block of `type`; {0, 0} for a type the engine does not read.
BlockShape block_shape(DType type);

// Bytes of one weight row of `cols` elements; cols must be a multiple of the block's elements.
size_t row_bytes(DType type, uint32_t cols);

// The activation storage that weight rows of `type` are multiplied with.
Activation activation_for(DType type, bool exact);

// Bytes of one activation row of `cols` elements, a multiple of 16 (layout: quant/activation.h).
size_t activation_row_bytes(Activation kind, uint32_t cols);

}  // namespace perigee
