// Products of tokens sorted by expert with weights as they are packed: what experts of few tokens each are multiplied by.
#pragma once
#include "matrix.h"

namespace perigee::cuda {

// Rows begin[e] .. begin[e + 1] of y = W_e a; with `gate`: silu(gate_e a) * (W_e a).
struct PackedGroups {
  const bf16* a;          // [slots][w->cols]
  const int32_t* row_of;  // [slots] row of `a` that a sorted slot reads, or null: the slot itself
  const int32_t* begin;   // [w->count + 1] on the device
  const Matrix *w, *gate;
  bf16* y;        // [slots][w->rows]
  uint32_t rows;  // of all groups together, at most
};
cudaError_t multiply_packed_groups(cudaStream_t stream, const PackedGroups& args);

// Whether weights can be taken so: quantized, and `gate` (or null) like `w`.
bool takes_packed_groups(const Matrix& w, const Matrix* gate);

// Once for each device, which is the current one.
cudaError_t prepare_packed_groups();

}  // namespace perigee::cuda
