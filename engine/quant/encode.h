// Float rows to weight blocks: the encodings `convert` writes. Slow and careful; the engine never encodes while it runs.
#pragma once
#include "../tensor.h"

namespace perigee {

// Whether encode_row knows `type`: F32 F16 BF16 Q8_0 Q4_0 Q5_0 Q5_1 Q4_K Q5_K Q6_K.
bool can_encode(DType type);

// One row of `cols` finite floats, a multiple of the type's block, to row_bytes(type, cols) bytes. The same input gives
// the same bytes everywhere: no libm, fixed order of sums.
void encode_row(DType type, const float* x, uint32_t cols, uint8_t* out);

}  // namespace perigee
