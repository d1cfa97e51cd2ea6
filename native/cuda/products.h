// Matrix products: y = W x for few rows at the speed of memory, for many at the speed of the tensor cores.
//
// All calls only enqueue, allocate nothing and may be captured into a graph. `n` is the number of activation rows.
#pragma once
#include "matrix.h"

namespace perigee::cuda {

// One output of a launch. Several matrices that meet the same rows go into one.
struct Output {
  const Matrix* w;
  float* y;           // [n][stride], columns 0..w->rows
  uint32_t y_stride;  // floats
  bool add;           // y += instead of y =
};
constexpr uint32_t kMostOutputs = 4;

// n <= kFewRows. Quantized weights meet x.q, float ones x.f32.
cudaError_t multiply_few(cudaStream_t stream, const Rows& x, uint32_t n, const Output* outputs, uint32_t count);

// mid = silu(gate . x) * (up . x), written in the forms that `mid` has; n <= kFewRows.
cudaError_t gate_up_few(cudaStream_t stream, const Rows& x, uint32_t n, const Matrix& gate, const Matrix& up,
                        const Rows& mid);

// Routed experts that lie in device memory, n <= kFewRows tokens.
struct RoutedFew {
  const Matrix *gate, *up, *down;  // [slots] experts resident on the device
  const int32_t* slot_of;          // [experts] slot of an expert; -1: it is not here, its part is left out
  const int32_t* chosen;           // [n][used] experts; negative: none
  const float* weight;             // [n][used]
  uint32_t used, experts;
  Rows mid;    // [n * used][expert width] work space, quantized and float forms
  float* sum;  // [n][hidden] sum over k of weight * down . mid; written also where all are left out (zeros)
};
cudaError_t route_few(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts);

// absorbed[t][h] = [k_b[h] . q_nope | rope(q_rope)], bf16. k_b: count heads of kv_rank x nope_dim.
struct AbsorbFew {
  const Matrix* k_b;
  const float* q;            // [n][heads][nope_dim + rope_dim]
  const float* rope;         // [context][rope_dim / 2][2] cos, sin
  const int32_t* positions;  // [n]
  uint32_t nope_dim, rope_dim;
  bf16* absorbed;  // [n][heads][kv_rank + rope_dim]
};
cudaError_t absorb_few(cudaStream_t stream, uint32_t n, const AbsorbFew& args);

// values[t][h] = v_b[h] . latent[t][h], as rows of heads * value_dim. v_b: count heads of value_dim x kv_rank.
cudaError_t expand_few(cudaStream_t stream, uint32_t n, const Matrix& v_b,
                       const float* latent /* [n][heads][kv_rank] */, const Rows& values);

// y[m][n] (+)= a[m][k] . b[n][k] in bf16 with float sums. Any m, n; k a multiple of 32; rows 16-byte aligned.
struct Gemm {
  const bf16* a;
  uint32_t m, k, a_stride;  // elements from row to row
  const bf16* b;            // [n][b_stride]
  uint32_t n, b_stride;
  float* y;      // float output, or null
  bf16* y_wide;  // bf16 output, or null
  uint32_t y_stride;
  bool add;  // float output only
  // `batch` equal products, each pointer that many elements further: heads.
  uint32_t batch = 1;
  uint64_t a_next = 0, b_next = 0, y_next = 0;
};
cudaError_t gemm(cudaStream_t stream, const Gemm& args);

// Products of sorted rows with each one's own expert: rows begin[e] .. begin[e + 1] of a meet b + e * b_next. begin[0] need
// not be 0, nor begin[groups] be `slots`: groups may be met a few at a time. Rows of other groups are left alone.
struct GroupedGemm {
  const bf16* a;          // [slots][k]
  const int32_t* row_of;  // [slots] row of `a` that a sorted slot reads, or null: the slot itself
  const int32_t* begin;   // [groups + 1] on the device
  uint32_t groups, slots, k, n;
  const bf16* b;  // [groups][n][k]
  uint64_t b_next;
  bf16* y;            // [slots][n]
  uint32_t rows = 0;  // about how many rows these groups have together, for choosing tiles; 0: `slots`
};
cudaError_t gemm_grouped(cudaStream_t stream, const GroupedGemm& args);

// What `multiply` needs to hold a matrix as bf16.
uint64_t wide_bytes(const Matrix& w);

// Up to so many rows multiply() reads in their quantized forms where weights are quantized, from more on as bf16: two products
// of few rows cost less than to unpack the weights first (K2's shapes of Q4_K and Q8_0 on an H200), three cost more. Float
// weights it meets as floats up to kFewRows.
constexpr uint32_t kQuantizedRows = 2 * kFewRows;

// Any n: multiply_few, or unpacking into `space` (at least wide_bytes of the largest output) and gemm.
cudaError_t multiply(cudaStream_t stream, const Rows& x, uint32_t n, const Output* outputs, uint32_t count,
                     bf16* space);

// Called once before anything above, for each device: raises kernel attributes. `device` is the current one.
cudaError_t prepare_products(int device);

}  // namespace perigee::cuda
