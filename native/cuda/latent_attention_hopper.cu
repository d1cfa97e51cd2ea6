// Absorbed attention by the warpgroup products of Hopper: one block has 64 query rows, two warpgroups that each own 256 of
// the 512 output columns, and a warp that fetches spans of 64 tokens. The first warpgroup scores a span and turns it into
// weights, which both multiply with their half of the same latents.
#include "gemm_hopper.cuh"
#include "latent_attention.cuh"
#include "tensor_map.h"

namespace perigee::cuda {

namespace {

constexpr uint32_t kRows = 64;
constexpr uint32_t kTileBytes = 64 * 128;  // 64 rows of 64 columns, 128-byte swizzle
constexpr uint32_t kKeyTiles = kKey / 64, kStages = 2;
constexpr uint32_t kSpanBytes = kKeyTiles * kTileBytes;
// A span arrives in parts of three tiles: products with the first begin while the others are on their way.
constexpr uint32_t kParts = 3;
constexpr uint32_t kThreads = 3 * 128;

// What lies in shared memory, by offset.
struct Shared {
  uint8_t query[kSpanBytes], spans[kStages][kSpanBytes], weights[kTileBytes];
  float rescale[kRows], inverse[kRows];
  uint64_t full[kStages][kParts], empty[kStages], query_full, query_empty, weights_empty;
  volatile uint64_t ahead;
};
constexpr uint32_t kSharedBytes = sizeof(Shared) + 1024;  // to start at a multiple of 1024

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using namespace hopper;

// What the consumers wrote to shared memory becomes visible to the products of the warpgroups.
__device__ void publish_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ void sync_consumers() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

__device__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Keeps what the compiler does with registers of a product on their side of it.
template <int N>
__device__ void hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ void finish_products(float (&d)[N]) {
  commit_products();
  wait_products<0>();
  hold(d);
}

// d (+)= weights . b for 64 rows, 16 tokens and 256 columns: rows of b in four tiles of 64 columns.
__device__ void multiply_values(float (&d)[128], uint64_t weights, uint32_t b, bool add) {
  const uint64_t tiles = describe(b) + (uint64_t{kTileBytes / 16 - 1} << 16);
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" PERIGEE_REGISTERS_0_63 ", " PERIGEE_REGISTERS_64_95
      ", " PERIGEE_REGISTERS_96_127 "}, %128, %129, add, 1, 1, 0, 1;\n}"
      : PERIGEE_32(d, 0), PERIGEE_32(d, 32), PERIGEE_32(d, 64), PERIGEE_32(d, 96)
      : "l"(weights), "l"(tiles), "r"(int(add)));
}

// One thread asks for what the runs need, as far ahead as there is room.
__device__ void fetch_runs(const LatentWork& work, Shared& shared, LatentRuns& runs, const CUtensorMap& queries,
                           const CUtensorMap& pages, uint32_t tile) {
  const uint32_t thread = threadIdx.x % 32;
  const PagedLatents& latents = work.args.latents;
  uint32_t met = 0, parity = 0;  // spans so far
  LatentRun run;
  for (; runs.next(run); parity ^= 1) {
    if (thread == 0) {
      wait_barrier(shared_address(&shared.query_empty), parity ^ 1);
      expect_bytes(shared_address(&shared.query_full), kSpanBytes);
      const uint32_t row = run.group * work.rows() + tile * kRows;
      for (uint32_t t = 0; t < kKeyTiles; t++)
        copy_box(shared_address(shared.query) + t * kTileBytes, queries, shared_address(&shared.query_full), t * 64,
                 row, 0);
    }
    const int32_t* table =
        latents.page_tables + uint64_t{latents.table_stride} * work.args.sequences[run.group * work.together];
    uint32_t row = 0;  // of the span this thread has looked up
    for (uint32_t span = run.begin; span < run.end; span++, met++) {
      if (const uint32_t ahead = (span - run.begin) % 32; ahead == 0) {
        const uint32_t token = min(span + thread, run.end - 1) * kSpan;
        row = table[token / latents.page_tokens] * latents.page_tokens + token % latents.page_tokens;
      }
      const uint32_t from = __shfl_sync(~0u, row, (span - run.begin) % 32);
      if (thread == 0) {
        const uint32_t stage = met % kStages;
        wait_barrier(shared_address(&shared.empty[stage]), (met / kStages & 1) ^ 1);
        // At first all blocks ask at once: for what is needed first, so that it does not come last.
        if (met == 1) wait_barrier(shared_address(&shared.full[0][0]), 0);
        for (uint32_t t = 0; t < kKeyTiles; t++) {
          const uint32_t full = shared_address(&shared.full[stage][t * kParts / kKeyTiles]);
          const uint32_t to = shared_address(shared.spans[stage]) + t * kTileBytes;
          if (t % (kKeyTiles / kParts) == 0) expect_bytes(full, kSpanBytes / kParts);
          copy_box(to, pages, full, t * 64, from, 0);
        }
      }
    }
  }
}

// Rows of a span behind the context may hold anything; as values they must be zeros.
__device__ void clear_rows(uint8_t* span, uint32_t valid) {
  for (uint32_t i = threadIdx.x; i < kKeyTiles * (kSpan - valid) * 8; i += 256) {
    const uint32_t tile = i / ((kSpan - valid) * 8), in_tile = i % ((kSpan - valid) * 8);
    *reinterpret_cast<uint4*>(span + tile * kTileBytes + valid * 128 + in_tile * 16) = uint4{};
  }
  publish_writes();
  sync_consumers();
}

// What a thread of the first warpgroup keeps of its two rows, 8 apart.
struct Softmax {
  int32_t limit[2];  // last visible position
  float top[2], sum[2];

  // Scores become weights, relative to `top`; what is already summed must be multiplied with rescale.
  __device__ void weigh(float (&s)[32], int32_t position, float scale_log2, float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (limit[half] < position + int32_t(kSpan) - 1) {
#pragma unroll
        for (int i = 0; i < 16; i++) {
          const int32_t column = 8 * (i / 2) + 2 * (threadIdx.x % 4) + i % 2;
          float& score = s[4 * (i / 2) + 2 * half + i % 2];
          if (position + column > limit[half]) score = -INFINITY;
        }
      }
      float most = -INFINITY;
#pragma unroll
      for (int i = 0; i < 16; i++) most = fmaxf(most, s[4 * (i / 2) + 2 * half + i % 2]);
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2)) * scale_log2;
      rescale[half] = 1.0f;
      if (most > top[half] + kHeadroom) {
        rescale[half] = exp2_fast(top[half] - most);
        top[half] = most;
      }
      const float base = top[half] == -INFINITY ? 0.0f : top[half];
      float added = 0;
#pragma unroll
      for (int i = 0; i < 16; i++) {
        float& score = s[4 * (i / 2) + 2 * half + i % 2];
        score = exp2_fast(fmaf(score, scale_log2, -base));
        added += score;
      }
      sum[half] = sum[half] * rescale[half] + added;
    }
  }

  __device__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
  }
};

// Both warpgroups, so that the code of what they have in common is there once: launches find it in no cache.
__device__ void consume_runs(const LatentWork& work, Shared& shared, LatentRuns& runs, uint32_t lane, uint32_t tile) {
  const bool scores = threadIdx.x < 128;
  const uint32_t row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const bool elected = threadIdx.x % 32 == 0;
  const float scale_log2 = work.args.scale * 1.4426950408889634f;
  const uint32_t column = scores ? 0 : 256;
  uint32_t met = 0, parity = 0;
  LatentRun run;
  float o[128];
  for (; runs.next(run); parity ^= 1) {
    Softmax softmax;
    const uint32_t length = group_tokens(work, run.group);
    if (scores) {
      for (int half = 0; half < 2; half++)
        softmax.limit[half] = row_limit(work, run.group, tile * kRows + row + 8 * half);
      softmax.top[0] = softmax.top[1] = -INFINITY;
      softmax.sum[0] = softmax.sum[1] = 0;
      wait_barrier(shared_address(&shared.query_full), parity);
    }
    for (uint32_t span = run.begin; span < run.end; span++, met++) {
      const uint32_t stage = met % kStages;
      uint8_t* latents = shared.spans[stage];
      if (!scores || length < (span + 1) * kSpan)
        for (uint32_t part = 0; part < kParts; part++)
          wait_barrier(shared_address(&shared.full[stage][part]), met / kStages & 1);
      if (length < (span + 1) * kSpan) clear_rows(latents, length - span * kSpan);

      float rescale[2];
      if (scores) {
        float s[32];
        const uint64_t a = describe(shared_address(shared.query)), b = describe(shared_address(latents));
#pragma unroll
        for (uint32_t part = 0; part < kParts; part++) {
          wait_barrier(shared_address(&shared.full[stage][part]), met / kStages & 1);
          hold(s);
          begin_products();
#pragma unroll
          for (uint32_t k = 0; k < kSpanBytes / kParts / kTileBytes * 4; k++) {
            const uint32_t offset = (part * kSpanBytes / kParts + k / 4 * kTileBytes + k % 4 * 32) >> 4;
            multiply_16<64>(s, a + offset, b + offset, part > 0 || k > 0);
          }
        }
        finish_products(s);
        if (span + 1 == run.end && elected) arrive(shared_address(&shared.query_empty));
        softmax.weigh(s, span * kSpan, scale_log2, rescale);
        wait_barrier(shared_address(&shared.weights_empty), (met & 1) ^ 1);
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
          for (int i = 0; i < 8; i++) {
            const uint32_t r = row + 8 * half, at = r * 128 + ((i * 16 + quad * 4) ^ (r % 8 * 16));
            *reinterpret_cast<__nv_bfloat162*>(shared.weights + at) =
                __floats2bfloat162_rn(s[4 * i + 2 * half], s[4 * i + 2 * half + 1]);
          }
          if (quad == 0) shared.rescale[row + 8 * half] = rescale[half];
        }
        publish_writes();
      }
      sync_consumers();
      if (!scores) {
        rescale[0] = shared.rescale[row];
        rescale[1] = shared.rescale[row + 8];
      }
      if (span > run.begin && __any_sync(~0u, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < 128; i++) o[i] *= rescale[i / 2 % 2];
      }
      hold(o);
      begin_products();
#pragma unroll
      for (uint32_t k = 0; k < kSpan / 16; k++)
        multiply_values(o, describe(shared_address(shared.weights) + k * 32),
                        shared_address(latents) + column / 64 * kTileBytes + k * 16 * 128, k > 0 || span > run.begin);
      finish_products(o);
      if (elected) {
        arrive(shared_address(&shared.empty[stage]));
        if (!scores) arrive(shared_address(&shared.weights_empty));
      }
    }

    float inverse[2];
    if (scores) {
      softmax.finish();
      for (int half = 0; half < 2; half++) {
        const uint32_t r = row + 8 * half;
        inverse[half] = softmax.sum[half] > 0 ? 1.0f / softmax.sum[half] : 0.0f;
        if (quad == 0) {
          shared.inverse[r] = inverse[half];
          if (!run.whole())
            work.parts.lse[part_row(work, lane, run.begin == 0, tile) + r] =
                softmax.sum[half] > 0 ? softmax.top[half] + log2f(softmax.sum[half]) : -INFINITY;
        }
      }
    }
    sync_consumers();
    if (!scores) {
      inverse[0] = shared.inverse[row];
      inverse[1] = shared.inverse[row + 8];
    }
    leave_rows<32>(work, run, lane, tile, row, column, o, inverse);
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    warpgroups_kernel(const __grid_constant__ LatentWork work, const __grid_constant__ CUtensorMap queries,
                      const __grid_constant__ CUtensorMap pages) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const uint32_t tile = blockIdx.x, lane = blockIdx.y, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; i++) {
      for (uint32_t part = 0; part < kParts; part++) init_barrier(shared_address(&shared.full[i][part]), 1);
      init_barrier(shared_address(&shared.empty[i]), 8);
    }
    init_barrier(shared_address(&shared.query_full), 1);
    init_barrier(shared_address(&shared.query_empty), 4);
    init_barrier(shared_address(&shared.weights_empty), 4);
    fence_barriers();
  }
  if (threadIdx.x == 256) {
    prefetch_map(queries);
    prefetch_map(pages);
    shared.ahead = read_ahead(work);
  }
  __syncthreads();
  wait_for_previous();
  asm volatile("prefetch.global.L2 [%0];" ::"l"(work.args.sequences));
  let_next_start();
  LatentRuns runs(work, lane);
  // Registers go to the warpgroups that hold the output.
  if (warp >= 8) {
    shrink_registers<40>();
    if (warp == 8) fetch_runs(work, shared, runs, queries, pages, tile);
    if (warp == 9 && lane == 0 && tile == 0) note_spreads(work, runs);
  } else {
    grow_registers<232>();
    consume_runs(work, shared, runs, lane, tile);
  }
#endif
}

}  // namespace

cudaError_t prepare_warpgroups() {
  CUDA_TRY(cudaFuncSetAttribute(warpgroups_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  return cudaSuccess;
}

cudaError_t run_warpgroups(cudaStream_t stream, const LatentWork& work) {
  CUtensorMap queries, pages;
  CUDA_TRY(map_rows(&queries, work.args.q, kKey, work.args.n * work.args.heads, kKey, 1, 0, 64, 64));
  // How many pages there are is not known here; only those in the tables are met.
  CUDA_TRY(map_rows(&pages, work.args.latents.pages, kKey, 0x7fffffff, kKey, 1, 0, 64, 64));
  CUDA_TRY(launch({dim3(work.tiles, work.lanes), dim3(kThreads), kSharedBytes, stream}, warpgroups_kernel, work,
                  queries, pages));
  return cudaSuccess;
}

}  // namespace perigee::cuda
