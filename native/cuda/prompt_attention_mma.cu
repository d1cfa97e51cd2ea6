// Prompt attention with mma.sync: eight warps of 16 queries, tiles of 64 keys, two in flight. Queries live in registers, so
// that 80 KB of shared memory do: the most that sm_86, 89 and 120 let two stages have.
#include "mma.cuh"
#include "prompt_attention.cuh"

namespace perigee::cuda {
namespace {

constexpr int kKeys = 64, kThreads = 256;
constexpr int kKeyWidth = kNope + kRope;
constexpr int kKeyBytes = kKeys * kKeyWidth * 2, kValueBytes = kKeys * kValue * 2;
constexpr int kStageBytes = kKeyBytes + kValueBytes, kSharedBytes = 2 * kStageBytes;
static_assert(kSharedBytes >= kQueries * kKeyWidth * 2, "the queries pass through the stages");

// Zeros where nothing is: rows behind the end and columns behind the head's width.
__device__ void copy_16(uint32_t to, const bf16* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0));
}
__device__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int pending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 16-byte chunk `chunk` of a row of `chunks`: the chunks of eight neighbouring rows lie in different banks.
template <int chunks>
__device__ uint32_t swizzled(uint32_t base, int row, int chunk) {
  return base + (row * chunks + (chunk ^ (row & 7))) * 16;
}

__device__ void load_matrices(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
__device__ void load_transposed(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
// Rows of `from` [.][row_stride], as chunks first .. first + count of shared rows of `chunks`; `width` columns exist.
template <int chunks, int first, int count, int rows>
__device__ void load_rows(uint32_t to, const bf16* from, uint64_t row_stride, int width, int limit) {
  const int chunk = threadIdx.x % count;
#pragma unroll
  for (int row = threadIdx.x / count; row < rows; row += kThreads / count) {
    const bool exists = row < limit && chunk * 8 < width;
    copy_16(swizzled<chunks>(to, row, first + chunk), exists ? from + row * row_stride + chunk * 8 : from, exists);
  }
}

__device__ void load_tile(const PromptAttention& a, uint32_t head, int first, int limit, uint32_t stage) {
  const uint64_t key = first;
  load_rows<24, 0, 16, kKeys>(stage, a.k_nope + (key * a.heads + head) * a.nope_dim, uint64_t(a.heads) * a.nope_dim,
                              a.nope_dim, limit - first);
  load_rows<24, 16, 8, kKeys>(stage, a.k_rope + key * a.k_rope_stride, a.k_rope_stride, a.rope_dim, limit - first);
  load_rows<16, 0, 16, kKeys>(stage + kKeyBytes, a.v + (key * a.heads + head) * a.value_dim,
                              uint64_t(a.heads) * a.value_dim, a.value_dim, limit - first);
}

__global__ __launch_bounds__(kThreads, 1) void prompt_mma_kernel(const PromptAttention a, const PromptOrder order) {
  extern __shared__ __align__(128) uint8_t shared[];
  wait_for_previous();
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const PromptTile tile = prompt_tile(order, blockIdx.x);
  const int rows = min(kQueries, static_cast<int>(a.n - tile.first_row));

  const bf16* q = a.q + (uint64_t(tile.first_row) * a.heads + tile.head) * (a.nope_dim + a.rope_dim);
  const uint64_t q_stride = uint64_t(a.heads) * (a.nope_dim + a.rope_dim);
  load_rows<24, 0, 16, kQueries>(base, q, q_stride, a.nope_dim, rows);
  load_rows<24, 16, 8, kQueries>(base, q + a.nope_dim, q_stride, a.rope_dim, rows);
  commit();
  wait_copies<0>();
  __syncthreads();
  uint32_t query[kKeyWidth / 16][4];
#pragma unroll
  for (int k = 0; k < kKeyWidth / 16; k++)
    load_matrices(query[k], swizzled<24>(base, warp * 16 + lane % 16, 2 * k + lane / 16));
  __syncthreads();

  // This lane's rows are `row` and `row + 8`, its columns 8 j + 2 (lane % 4) and the next one.
  const int row = tile.first_row + warp * 16 + lane / 4;
  const int sees[2] = {visible_keys(a, row), visible_keys(a, row + 8)};
  const int least = visible_keys(a, tile.first_row + warp * 16),
            most = visible_keys(a, tile.first_row + warp * 16 + 15);
  const int limit = visible_keys(a, tile.first_row + rows - 1);
  const float to_log2 = a.scale * 1.44269504f;
  RowState state[2];
  float out[kValue / 8][4] = {};

  load_tile(a, tile.head, 0, limit, base);
  commit();
  for (int first = 0, stage = 0; first < limit; first += kKeys, stage ^= 1) {
    wait_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before
    if (first + kKeys < limit) load_tile(a, tile.head, first + kKeys, limit, base + (stage ^ 1) * kStageBytes);
    commit();
    if (first < most) {
      const uint32_t keys = base + stage * kStageBytes, values = keys + kKeyBytes;
      float s[kKeys / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kKeyWidth / 16; k++)
#pragma unroll
        for (int j = 0; j < kKeys / 16; j++) {
          uint32_t b[4];
          load_matrices(b, swizzled<24>(keys, 16 * j + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
          multiply_add(s[2 * j], query[k], b[0], b[1]);
          multiply_add(s[2 * j + 1], query[k], b[2], b[3]);
        }
      if (first + kKeys > least)
#pragma unroll
        for (int j = 0; j < kKeys / 8; j++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            if (first + 8 * j + lane % 4 * 2 + i % 2 >= sees[i / 2]) s[j][i] = -INFINITY;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float tile_max = -INFINITY, subtract;
#pragma unroll
        for (int j = 0; j < kKeys / 8; j++) tile_max = fmaxf(tile_max, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        const float keep = state[half].raise(quad_max(tile_max), to_log2, &subtract);
#pragma unroll
        for (int j = 0; j < kKeys / 8; j++)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; i++)
            state[half].sum += s[j][i] = exp2_fast(fmaf(s[j][i], to_log2, -subtract));
#pragma unroll
        for (int j = 0; j < kValue / 8; j++) out[j][2 * half] *= keep, out[j][2 * half + 1] *= keep;
      }
#pragma unroll
      for (int k = 0; k < kKeys / 16; k++) {
        const uint32_t p[4] = {pack_bf16(s[2 * k][0], s[2 * k][1]), pack_bf16(s[2 * k][2], s[2 * k][3]),
                               pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]),
                               pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < kValue / 16; j++) {
          uint32_t b[4];
          load_transposed(b, swizzled<16>(values, 16 * k + lane % 16, 2 * j + lane / 16));
          multiply_add(out[2 * j], p, b[0], b[1]);
          multiply_add(out[2 * j + 1], p, b[2], b[3]);
        }
      }
    }
  }
  wait_copies<0>();
  let_next_start();

#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float sum = quad_sum(state[half].sum);
    const uint32_t at = row + 8 * half;
    if (at >= a.n) continue;
    const RowEnd end = end_row(a, at, tile.head, state[half].max, sum, lane % 4 == 0);
    float* to = a.out + (uint64_t(at) * a.heads + tile.head) * a.value_dim;
#pragma unroll
    for (int j = 0; j < kValue / 8; j++)
      if (8 * j < a.value_dim) put(a, to + 8 * j + lane % 4 * 2, end, out[j][2 * half], out[j][2 * half + 1]);
  }
}

}  // namespace

cudaError_t prepare_prompt_mma() {
  CUDA_TRY(cudaFuncSetAttribute(prompt_mma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  return cudaSuccess;
}

cudaError_t attend_prompt_mma(cudaStream_t stream, const PromptAttention& a) {
  PromptOrder order;
  CUDA_TRY(prompt_order(a, &order));
  CUDA_TRY(launch({order.tiles * a.heads, kThreads, kSharedBytes, stream}, prompt_mma_kernel, a, order));
  return cudaSuccess;
}

}  // namespace perigee::cuda
