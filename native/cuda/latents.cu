// From the first projections to what attention reads: normed queries, latents and roped keys in their pages, roped queries.
#include "forms.cuh"
#include "launch.cuh"
#include "norms.cuh"
#include "stages.h"

namespace perigee::cuda {
namespace {

// Two neighbouring pairs turned by {cos, sin, cos, sin}.
__device__ float4 rotated(float4 v, float4 turn) {
  return {v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x, v.z * turn.z - v.w * turn.w,
          v.z * turn.w + v.w * turn.z};
}

// Block (token, 0) norms and stores the latent and ropes the key, block (token, 1) norms the query.
template <int kPer>
__global__ void __launch_bounds__(1024) latents_kernel(const Latents args) {
  const bool query = blockIdx.y == 1;
  const uint32_t token = blockIdx.x, cols = query ? args.q_rank : args.kv_rank;
  const float* norm = query ? args.q_norm : args.kv_norm;
  float4 weight[kPer], x[kPer];
#pragma unroll
  for (int p = 0; p < kPer; p++) weight[p] = load_or_zero(norm, column_of(p), cols);
  wait_for_previous();
  let_next_start();
  const float* row =
      args.qkv + size_t(token) * (args.q_rank + args.kv_rank + args.rope_dim) + (query ? 0 : args.q_rank);
#pragma unroll
  for (int p = 0; p < kPer; p++) x[p] = load_or_zero(row, column_of(p), cols);
  const float scale = norm_scale<kPer>(x, cols, args.eps);
  if (query) {
#pragma unroll
    for (int p = 0; p < kPer; p++)
      if (column_of(p) < padded_cols(cols))
        write_forms(args.query, token, column_of(p), normed(x[p], scale, weight[p]));
    return;
  }
  const int32_t position = args.positions[token];
  if (position < 0) return;
  const int32_t* pages = args.page_tables + size_t(args.sequences[token]) * args.table_stride;
  const uint32_t page = position / args.page_tokens, place = position % args.page_tokens;
  bf16* to = args.pages + (size_t(pages[page]) * args.page_tokens + place) * (args.kv_rank + args.rope_dim);
#pragma unroll
  for (int p = 0; p < kPer; p++)
    if (column_of(p) < cols) store_wide(to + column_of(p), normed(x[p], scale, weight[p]));
  for (uint32_t c = 4 * threadIdx.x; c < args.rope_dim; c += 4 * blockDim.x) {
    const float4 turn = *reinterpret_cast<const float4*>(args.rope + size_t(position) * args.rope_dim + c);
    store_wide(to + cols + c, rotated(*reinterpret_cast<const float4*>(row + cols + c), turn));
  }
}

__global__ void __launch_bounds__(256)
    rope_queries_kernel(const float* q, const float* rope, const int32_t* positions, size_t vectors, uint32_t heads,
                        uint32_t nope_dim, uint32_t rope_dim, bf16* out) {
  wait_for_previous();
  let_next_start();
  const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
  if (i >= vectors) return;
  const uint32_t width = (nope_dim + rope_dim) / 4;
  const size_t row = i / width;
  const uint32_t c = 4 * (i - row * width);
  float4 v = reinterpret_cast<const float4*>(q)[i];
  const int32_t position = positions[row / heads];
  if (c >= nope_dim && position >= 0)
    v = rotated(v, *reinterpret_cast<const float4*>(rope + size_t(position) * rope_dim + (c - nope_dim)));
  store_wide(out + 4 * i, v);
}

}  // namespace

cudaError_t store_latents(cudaStream_t stream, const Latents& args) {
  if (args.n == 0) return cudaSuccess;
  const uint32_t widest = args.q_rank > args.kv_rank ? args.q_rank : args.kv_rank;
  const RowShape shape = row_shape(padded_cols(widest) / 4);
  const Launch how = {{args.n, args.q_rank ? 2u : 1u}, shape.threads, 0, stream};
  if (shape.per == 1) CUDA_TRY(launch(how, latents_kernel<1>, args));
  if (shape.per == 2) CUDA_TRY(launch(how, latents_kernel<2>, args));
  if (shape.per > 2) CUDA_TRY(cudaErrorInvalidValue);
  return cudaSuccess;
}

cudaError_t rope_queries(cudaStream_t stream, const float* q, const float* rope, const int32_t* positions, uint32_t n,
                         uint32_t heads, uint32_t nope_dim, uint32_t rope_dim, bf16* out) {
  const size_t vectors = size_t(n) * heads * ((nope_dim + rope_dim) / 4);
  if (vectors == 0) return cudaSuccess;
  CUDA_TRY(launch({static_cast<uint32_t>((vectors + 255) / 256), 256, 0, stream}, rope_queries_kernel, q, rope,
                  positions, vectors, heads, nope_dim, rope_dim, out));
  return cudaSuccess;
}

}  // namespace perigee::cuda
