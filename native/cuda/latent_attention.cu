#include "latent_attention.cuh"

#include <algorithm>

namespace perigee::cuda {

namespace {

constexpr uint32_t kMostTokens = 256, kMostTileRows = 64;

// --- the parts of a context, merged by their log-sum-exp in the order of lanes ---------------------------------------

// A block merges a piece of a row: eight columns a thread, and parts that `turns` threads take in turns.
constexpr uint32_t kMergeThreads = 256, kBatch = 5;  // parts a thread has in flight
constexpr uint32_t kFewTurns = 4, kManyTurns = 32;   // for whole rows, and for eighths of a row
constexpr uint32_t kMostLanes = kManyTurns * kBatch;

struct MergeShared {
  alignas(16) float rows[kMergeThreads * 8];  // [turns][columns of the piece]
  float sums[kManyTurns], tops[kMergeThreads / 32];
};

__device__ void merge_piece(const LatentWork& work, uint32_t group, uint32_t row, uint32_t piece, uint32_t turns,
                            MergeShared& shared) {
  const uint32_t tile = row / work.tile_rows, in_tile = row % work.tile_rows, thread = threadIdx.x;
  const uint32_t column_threads = kMergeThreads / turns, width = 8 * column_threads;
  const uint32_t columns = thread % column_threads, first = thread / column_threads;
  const uint2 spread = work.parts.spread[group];
  const auto at = [&](uint32_t part) { return part_row(work, spread.x + part, part == 0, tile) + in_tile; };
  const bf16* rows = work.parts.rows + piece * width + 8 * columns;
  uint4 eight[kBatch];
  float weight[kBatch], top = -INFINITY;
#pragma unroll
  for (uint32_t i = 0; i < kBatch; i++) {
    const uint32_t part = first + i * turns;
    eight[i] = part < spread.y ? __ldcg(reinterpret_cast<const uint4*>(rows + at(part) * kLatent)) : uint4{};
    weight[i] = part < spread.y ? __ldcg(work.parts.lse + at(part)) : -INFINITY;
  }
#pragma unroll
  for (uint32_t i = 0; i < kBatch; i++) top = fmaxf(top, weight[i]);
#pragma unroll
  for (uint32_t d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
  if (thread % 32 == 0) shared.tops[thread / 32] = top;
  __syncthreads();
#pragma unroll
  for (uint32_t w = 0; w < kMergeThreads / 32; w++) top = fmaxf(top, shared.tops[w]);

  float added[8] = {}, sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kBatch; i++) {
    weight[i] = top == -INFINITY ? 0.0f : exp2_fast(weight[i] - top);
    sum += weight[i];
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&eight[i]);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 pair = __bfloat1622float2(pairs[j]);
      added[2 * j] += weight[i] * pair.x;
      added[2 * j + 1] += weight[i] * pair.y;
    }
  }
  if (columns == 0) shared.sums[first] = sum;
    // Eight values that lie together are two columns of each of four blocks of eight.
#pragma unroll
  for (int j = 0; j < 4; j++)
    *reinterpret_cast<float2*>(shared.rows + first * width + columns / 4 * 32 + 8 * j + columns % 4 * 2) = {
        added[2 * j], added[2 * j + 1]};
  __syncthreads();
  float* out = work.args.out + (uint64_t{group} * work.rows() + row) * kLatent + piece * width;
#pragma unroll 1
  for (uint32_t c = thread; c < width; c += kMergeThreads) {
    float total = 0, weights = 0;
#pragma unroll 4
    for (uint32_t i = 0; i < turns; i++) {
      total += shared.rows[i * width + c];
      weights += shared.sums[i];
    }
    out[c] = weights > 0 ? total / weights : 0.0f;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kMergeThreads) merge_kernel(const __grid_constant__ LatentWork work) {
  __shared__ uint32_t unfinished[kMostTokens], found[kMergeThreads / 32];
  __shared__ MergeShared shared;
  __shared__ volatile uint64_t ahead;
  const uint32_t warp = threadIdx.x / 32;
  if (threadIdx.x == 0) ahead = read_ahead(work);
  wait_for_previous();
  let_next_start();
  const uint32_t parts = threadIdx.x < work.groups ? work.parts.spread[threadIdx.x].y : 1;
  const uint32_t open = __ballot_sync(~0u, parts != 1);
  if (threadIdx.x % 32 == 0) found[warp] = __popc(open);
  const bool many = __syncthreads_or(parts > kFewTurns * kBatch);
  uint32_t count = 0, before = 0;
#pragma unroll 1
  for (uint32_t w = 0; w < kMergeThreads / 32; w++) {
    if (w == warp) before = count;
    count += found[w];
  }
  if (parts != 1) unfinished[before + __popc(open & ((1u << threadIdx.x % 32) - 1))] = threadIdx.x;
  __syncthreads();
  const uint32_t turns = many ? kManyTurns : kFewTurns, pieces = turns / kFewTurns;
#pragma unroll 1
  for (uint32_t i = blockIdx.x; i < count * work.rows() * pieces; i += gridDim.x) {
    const uint32_t group = unfinished[i / pieces / work.rows()], row = i / pieces % work.rows();
    if (group * work.rows() + row < work.args.n * work.args.heads)
      merge_piece(work, group, row, i % pieces, turns, shared);
  }
}
static_assert(kMostTokens <= kMergeThreads && kMergeThreads * 8 == kFewTurns * kLatent);

// --- any width: a block for each query row, a warp for every eighth token ---------------------------------------------

constexpr uint32_t kWarps = 8, kMostPerThread = 36;  // keys of up to 32 * 36 values

__global__ void __launch_bounds__(kWarps * 32) plain_kernel(const __grid_constant__ LatentAttention args) {
  extern __shared__ float merged[];  // [kWarps][kv_rank + 2]
  const uint32_t token = blockIdx.y, head = blockIdx.x, warp = threadIdx.x / 32, thread = threadIdx.x % 32;
  const PagedLatents& latents = args.latents;
  const uint32_t width = latents.kv_rank + latents.rope_dim;
  const uint64_t row = uint64_t{token} * args.heads + head;
  wait_for_previous();
  let_next_start();
  float q[kMostPerThread], o[kMostPerThread], top = -INFINITY, sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kMostPerThread; i++) {
    q[i] = i * 32 < width ? __bfloat162float(args.q[row * width + i * 32 + thread]) * args.scale : 0.0f;
    o[i] = 0;
  }
  const int32_t* table = latents.page_tables + uint64_t{latents.table_stride} * args.sequences[token];
  for (int32_t position = warp; position <= args.positions[token]; position += kWarps) {
    const uint32_t page = table[position / latents.page_tokens];
    const bf16* latent =
        latents.pages + (uint64_t{page} * latents.page_tokens + position % latents.page_tokens) * width;
    float k[kMostPerThread], score = 0;
#pragma unroll
    for (uint32_t i = 0; i < kMostPerThread; i++) {
      k[i] = i * 32 < width ? __bfloat162float(latent[i * 32 + thread]) : 0.0f;
      score += q[i] * k[i];
    }
    for (uint32_t d = 16; d > 0; d /= 2) score += __shfl_xor_sync(~0u, score, d);
    const float higher = fmaxf(top, score), shrink = __expf(top - higher), weight = __expf(score - higher);
    sum = sum * shrink + weight;
    top = higher;
#pragma unroll
    for (uint32_t i = 0; i < kMostPerThread; i++) o[i] = o[i] * shrink + weight * k[i];
  }

  const uint32_t stride = latents.kv_rank + 2;
#pragma unroll
  for (uint32_t i = 0; i < kMostPerThread; i++)
    if (i * 32 < latents.kv_rank) merged[warp * stride + i * 32 + thread] = o[i];
  if (thread == 0) {
    merged[warp * stride + latents.kv_rank] = top;
    merged[warp * stride + latents.kv_rank + 1] = sum;
  }
  __syncthreads();
  float highest = -INFINITY, total = 0, weights[kWarps];
  for (uint32_t w = 0; w < kWarps; w++) highest = fmaxf(highest, merged[w * stride + latents.kv_rank]);
#pragma unroll
  for (uint32_t w = 0; w < kWarps; w++) {
    weights[w] = highest == -INFINITY ? 0.0f : __expf(merged[w * stride + latents.kv_rank] - highest);
    total += weights[w] * merged[w * stride + latents.kv_rank + 1];
  }
  for (uint32_t c = threadIdx.x; c < latents.kv_rank; c += kWarps * 32) {
    float value = 0;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; w++) value += weights[w] * merged[w * stride + c];
    args.out[row * latents.kv_rank + c] = total > 0 ? value / total : 0.0f;
  }
}

cudaError_t run_plain(cudaStream_t stream, const LatentAttention& args) {
  const PagedLatents& latents = args.latents;
  if (latents.kv_rank + latents.rope_dim > 32 * kMostPerThread) return cudaErrorInvalidValue;
  CUDA_TRY(launch({dim3(args.heads, args.n), dim3(kWarps * 32), kWarps * (latents.kv_rank + 2) * sizeof(float), stream},
                  plain_kernel, args));
  return cudaSuccess;
}

// --- what is asked for, dealt out ---------------------------------------------------------------------------------------

int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

constexpr uint64_t kSpreadBytes = kMostTokens * sizeof(uint2);

LatentWork deal(const LatentAttention& args, uint32_t tile_rows) {
  LatentWork work = {};
  work.args = args;
  work.together = args.pairs ? 2 : 1;
  work.groups = (args.n + work.together - 1) / work.together;
  work.tile_rows = tile_rows;
  work.tiles = (work.rows() + tile_rows - 1) / tile_rows;
  const uint32_t spans = work.groups * (args.most_positions / kSpan + 1);
  work.lanes = std::max(1u, std::min({multiprocessors() / work.tiles, spans, kMostLanes}));
  const uint64_t rows = uint64_t{work.lanes} * 2 * work.tiles * tile_rows;
  work.parts.spread = static_cast<uint2*>(args.space);
  work.parts.rows = reinterpret_cast<bf16*>(static_cast<uint8_t*>(args.space) + kSpreadBytes);
  work.parts.lse = reinterpret_cast<float*>(work.parts.rows + rows * kLatent);
  return work;
}

}  // namespace

uint64_t latent_attention_space(uint32_t, uint32_t heads, uint32_t) {
  // At most one block a multiprocessor, or one lane of tiles.
  const uint64_t tiles = std::max<uint64_t>(multiprocessors(), 2 * heads / 32 + 1);
  return kSpreadBytes + tiles * 2 * kMostTileRows * (kLatent * sizeof(bf16) + sizeof(float));
}

cudaError_t attend_latents_by(LatentKernel kernel, cudaStream_t stream, const LatentAttention& args) {
  if (args.n == 0) return cudaSuccess;
  if (args.n > kMostTokens) return cudaErrorInvalidValue;
  if (kernel == LatentKernel::Plain) return run_plain(stream, args);
  const bool warpgroups = kernel == LatentKernel::Warpgroups;
  const LatentWork work = deal(args, kernel == LatentKernel::NarrowWarps ? 32 : kMostTileRows);
  CUDA_TRY(warpgroups ? run_warpgroups(stream, work) : run_warps(stream, work));
  const uint32_t merges =
      std::min<uint32_t>(work.groups * work.rows() * (kManyTurns / kFewTurns), 4 * multiprocessors());
  CUDA_TRY(launch({dim3(merges), dim3(kMergeThreads), 0, stream}, merge_kernel, work));
  return cudaSuccess;
}

cudaError_t attend_latents(cudaStream_t stream, const LatentAttention& args) {
  const PagedLatents& latents = args.latents;
  if (latents.kv_rank != kLatent || latents.rope_dim != kRope || latents.page_tokens % kSpan != 0)
    return attend_latents_by(LatentKernel::Plain, stream, args);
  int device = 0, major = 0;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  if (major == 9) return attend_latents_by(LatentKernel::Warpgroups, stream, args);
  return attend_latents_by(wide_warps_fit() ? LatentKernel::Warps : LatentKernel::NarrowWarps, stream, args);
}

cudaError_t prepare_latent_attention(int device) {
  int major = 0;
  CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  // The merge runs between kernels that want all of the shared memory: another division of it would have to be waited for.
  CUDA_TRY(cudaFuncSetAttribute(merge_kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                cudaSharedmemCarveoutMaxShared));
  if (major == 9) CUDA_TRY(prepare_warpgroups());
  return prepare_warps();
}

}  // namespace perigee::cuda
