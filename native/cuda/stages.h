// The small stages between products: norms, rotation, routing, and handing work to the CPU and back.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include "../../engine/tensor.h"
#include "rows.h"

namespace perigee::cuda {

// Where the GPU and the CPU ranks meet (engine/exchange.h): device addresses of mapped host memory.
struct ExchangeView {
  float* h;          // [n][hidden]
  int32_t* chosen;   // [n][used]; -1: the GPU does this one
  float* weight;     // [n][used]
  const float* sum;  // [n][hidden] written by the CPU
  uint32_t* asked;   // number of the MoE layer handed over last, from 1; written here
  uint32_t* done;    // the same of the layer finished; written by the CPU
  uint32_t* failed;  // written here when waiting took too long
};

// Waiting until the CPU has finished layer `number`, `milliseconds` at most: then `failed` is set, and every later wait
// returns at once.
struct Await {
  ExchangeView exchange = {};
  uint32_t number = 0;  // of the MoE layer; 0: nothing is waited for
  uint32_t milliseconds = 0;
};

// What hands a layer over: h and the choice are copied, experts with resident[e] >= 0 become -1, and `asked` is set last.
struct HandOver {
  ExchangeView to = {};
  uint32_t number = 0;                // of the MoE layer; 0: nothing is handed over
  const int32_t* resident = nullptr;  // [experts] or null
};

// x += a + b (each may be null), then out = RMSNorm(x) * weight in the forms `out` has. x [n][hidden]. `b` may lie in
// mapped host memory: it is read once the CPU is done with what `b_after` names. With rows [m], only those rows of x are
// normed, to out's rows 0..m, and nothing is added. hidden <= 8192.
struct AddNorm {
  float* x;
  const float *a, *b;   // [n][hidden]
  const float* weight;  // [hidden]
  float eps;
  uint32_t n;
  const int32_t* rows;  // [n] or null
  Rows out;
  Await b_after = {};
};
cudaError_t add_norm(cudaStream_t stream, const AddNorm& args);

// From qkv [n][q_rank + kv_rank + rope_dim]: query = RMSNorm of its first q_rank values (none with q_rank 0); the
// normed latent and the roped key go to their place in the pages, as bf16.
struct Latents {
  const float* qkv;
  const float *q_norm, *kv_norm;  // [q_rank], [kv_rank]
  float eps;
  const float* rope;                     // [context][rope_dim / 2][2]
  const int32_t *sequences, *positions;  // [n]; a negative position is not stored
  const int32_t* page_tables;            // [sequences][table_stride]
  uint32_t table_stride, page_tokens, q_rank, kv_rank, rope_dim, n;
  bf16* pages;  // of the layer
  Rows query;   // of q_rank columns
};
cudaError_t store_latents(cudaStream_t stream, const Latents& args);

// q[t][h] as bf16 with its last rope_dim values roped, for PromptAttention.
cudaError_t rope_queries(cudaStream_t stream, const float* q, const float* rope, const int32_t* positions, uint32_t n,
                         uint32_t heads, uint32_t nope_dim, uint32_t rope_dim, bf16* out);

// Experts of each token: scores = W h in float, gating, bias for the choice only, groups, weights (engine/router.h).
struct Router {
  const void* w;  // [experts][hidden] as in the file: F32, F16 or BF16
  DType type;
  const float* bias;  // [experts]
  const float* h;     // [n][hidden]
  uint32_t n, hidden, experts, used, groups, groups_used;
  bool sigmoid, normalize;
  float weight_scale;
  float* scores;      // [n][experts] what the tap RouterScores holds
  int32_t* chosen;    // [n][used], best first; ties: the lower index first
  float* weight;      // [n][used]
  uint32_t* counts;   // [experts] += 1 for each choice: which experts are popular
  uint32_t* arrived;  // [1] as in Publish
  HandOver hand_over = {};
};
cudaError_t route(cudaStream_t stream, const Router& args);

// Tokens sorted by expert for grouped products, those of one expert in ascending order of token * used + k. Experts outside
// 0 .. experts - 1 are left out.
struct Groups {
  const int32_t* chosen;  // [n][used]
  uint32_t n, used, experts;
  int32_t* begin;     // [experts + 1]
  int32_t* token_of;  // [n * used] token of each sorted slot
  int32_t* slot_of;   // [n * used] sorted slot of token * used + k; -1: left out
  // [experts] the group 0 .. experts - 1 that an expert's tokens form, negative: left out; null: its own number.
  const int32_t* group_of = nullptr;
};
cudaError_t group_by_expert(cudaStream_t stream, const Groups& args);

// mid[i] = silu(gate[i]) * up[i]: rows [n][2 * width], gate first, to bf16 [n][width].
cudaError_t silu_mul(cudaStream_t stream, const bf16* gate_up, uint32_t n, uint32_t width, bf16* mid);
// The same of two float arrays [n][width], in the forms `mid` has.
cudaError_t silu_mul(cudaStream_t stream, const float* gate, const float* up, uint32_t n, const Rows& mid);

// sum[t] = sum over k, in order, of weight[t][k] * y[slot_of[t * used + k]]; negative slots are left out. y [slots][hidden] bf16.
cudaError_t gather_experts(cudaStream_t stream, const bf16* y, const int32_t* slot_of, const float* weight, uint32_t n,
                           uint32_t used, uint32_t hidden, float* sum);

// Rows in further forms: from f32 to whatever else `rows` has.
cudaError_t fill_forms(cudaStream_t stream, const Rows& rows, uint32_t n);

// Hands layer `number` over by itself; route() does it as well, sooner.
struct Publish {
  ExchangeView to;
  const float* h;         // [n][hidden]
  const int32_t* chosen;  // [n][used]
  const float* weight;
  const int32_t* resident;  // [experts] or null
  uint32_t n, hidden, used, number;
  uint32_t* arrived;  // [1] zero before and after: blocks that are done
};
cudaError_t publish(cudaStream_t stream, const Publish& args);

// Waits by itself; add_norm() does it as well, sooner.
cudaError_t await_experts(cudaStream_t stream, const ExchangeView& exchange, uint32_t number, uint32_t milliseconds);

}  // namespace perigee::cuda
