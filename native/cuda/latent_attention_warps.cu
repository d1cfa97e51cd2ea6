// Absorbed attention by warp products (mma.sync), for every device from sm_80 on: a block of eight warps has a tile of query
// rows, 64 or 32 as shared memory allows, and meets 32 tokens a step. Row warps split the rows, column warps the tokens when
// scoring and the output columns when summing.
#include "latent_attention.cuh"
#include "mma.cuh"

namespace perigee::cuda {

namespace {

constexpr uint32_t kThreads = 256, kStep = 32;  // tokens
constexpr uint32_t kRowBytes = kKey * sizeof(bf16), kChunks = kRowBytes / 16;

template <int Rows>
struct Tile {
  static constexpr uint32_t kRowWarps = Rows / 16, kColumnWarps = 8 / kRowWarps;
  static constexpr uint32_t kColumns = kLatent / kColumnWarps;        // of the output, a warp
  static constexpr uint32_t kTokenBlocks = kStep / 8 / kColumnWarps;  // of 8 tokens, a warp
  static constexpr uint32_t kStages = Rows == 64 ? 2 : 1;

  struct Shared {
    uint8_t query[Rows * kRowBytes], latents[kStages][kStep * kRowBytes], weights[Rows * kStep * sizeof(bf16)];
    float most[kColumnWarps][Rows];  // largest score of a row; at the end the sums of weights
  };
};

// Chunks of 16 bytes are moved within 128 bytes so that equal columns of eight rows lie in different banks.
__device__ uint32_t swizzled(uint32_t row, uint32_t chunk) { return row * kRowBytes + ((chunk ^ (row % 8)) * 16); }
__device__ uint32_t swizzled_weight(uint32_t row, uint32_t chunk) { return row * 64 + ((chunk ^ (row / 2 % 4)) * 16); }

__device__ uint32_t address(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

// Copies 16 bytes, or writes zeros.
__device__ void copy_chunk(void* to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(to)), "l"(from), "r"(exists ? 16 : 0));
}
__device__ void finish_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ void load_matrices(uint32_t (&r)[4], const void* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address(at))
               : "memory");
}
__device__ void load_transposed(uint32_t (&r)[4], const void* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address(at))
               : "memory");
}
// Scores of a warp's 16 rows and its tokens, from `row` and `token` on.
template <int Blocks>
__device__ void score(const uint8_t* query, const uint8_t* latents, uint32_t row, uint32_t token,
                      float (&s)[4 * Blocks]) {
  const uint32_t thread = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4 * Blocks; i++) s[i] = 0;
#pragma unroll 3
  for (uint32_t chunk = 0; chunk < kChunks; chunk += 4) {  // 32 columns
    uint32_t a[2][4], b[4];
#pragma unroll
    for (int k = 0; k < 2; k++) load_matrices(a[k], query + swizzled(row + thread % 16, chunk + 2 * k + thread / 16));
    if constexpr (Blocks == 2) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        load_matrices(b, latents + swizzled(token + thread / 16 * 8 + thread % 8, chunk + 2 * k + thread / 8 % 2));
        multiply_add(s, a[k], b[0], b[1]);
        multiply_add(s + 4, a[k], b[2], b[3]);
      }
    } else {
      load_matrices(b, latents + swizzled(token + thread % 8, chunk + thread / 8));
      multiply_add(s, a[0], b[0], b[1]);
      multiply_add(s, a[1], b[2], b[3]);
    }
  }
}

template <int Rows>
__global__ void __launch_bounds__(kThreads, 1) warps_kernel(const __grid_constant__ LatentWork work) {
  using T = Tile<Rows>;
  constexpr uint32_t kBlocks = T::kTokenBlocks;
  extern __shared__ __align__(128) uint8_t raw[];
  auto& shared = *reinterpret_cast<typename T::Shared*>(raw);
  const uint32_t tile = blockIdx.x, lane = blockIdx.y, thread = threadIdx.x % 32, quad = thread % 4;
  const uint32_t row_warp = threadIdx.x / 32 % T::kRowWarps, column_warp = threadIdx.x / 32 / T::kRowWarps;
  const uint32_t first_row = row_warp * 16, row = first_row + thread / 4;
  const uint32_t token = column_warp * kBlocks * 8, column = column_warp * T::kColumns;
  const float scale_log2 = work.args.scale * 1.4426950408889634f;
  const PagedLatents& latents = work.args.latents;
  wait_for_previous();
  let_next_start();
  LatentRuns runs(work, lane);
  if (tile == 0 && lane == 0 && threadIdx.x < 32) note_spreads(work, runs);
  LatentRun run;
  float o[T::kColumns / 2];
  while (runs.next(run)) {
    const uint32_t length = group_tokens(work, run.group);
    const uint32_t begin = run.begin * kSpan, end = min(run.end * kSpan, length);
    const int32_t* table =
        latents.page_tables + uint64_t{latents.table_stride} * work.args.sequences[run.group * work.together];
    const auto page = [&](uint32_t at) { return at < end ? table[at / latents.page_tokens] : 0; };
    const auto fetch = [&](uint32_t at, int32_t from, uint32_t stage) {
      const uint8_t* rows = reinterpret_cast<const uint8_t*>(
          latents.pages + (uint64_t(from) * latents.page_tokens + at % latents.page_tokens) * kKey);
      for (uint32_t i = threadIdx.x; i < kStep * kChunks; i += kThreads)
        copy_chunk(shared.latents[stage] + swizzled(i / kChunks, i % kChunks), rows + i * 16, at + i / kChunks < end);
    };

    const uint32_t query_row = run.group * work.rows() + tile * Rows, query_rows = work.args.n * work.args.heads;
    for (uint32_t i = threadIdx.x; i < Rows * kChunks; i += kThreads) {
      const uint32_t r = min(query_row + i / kChunks, query_rows - 1);
      copy_chunk(shared.query + swizzled(i / kChunks, i % kChunks), work.args.q + uint64_t{r} * kKey + i % kChunks * 8,
                 true);
    }
    fetch(begin, page(begin), 0);
    int32_t next_page = page(begin + kStep);

    int32_t limit[2];
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int half = 0; half < 2; half++) limit[half] = row_limit(work, run.group, tile * Rows + row + 8 * half);
#pragma unroll
    for (int i = 0; i < int(T::kColumns / 2); i++) o[i] = 0;

    for (uint32_t at = begin, stage = 0; at < end; at += kStep, stage = (stage + 1) % T::kStages) {
      finish_copies();
      __syncthreads();
      if (T::kStages > 1 && at + kStep < end) {
        fetch(at + kStep, next_page, stage ^ 1);
        next_page = page(at + 2 * kStep);
      }
      float s[4 * kBlocks];
      score<kBlocks>(shared.query, shared.latents[stage], first_row, token, s);

      float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int i = 0; i < int(4 * kBlocks); i++) {
        const int half = i / 2 % 2;
        const int32_t position = at + token + i / 4 * 8 + quad * 2 + i % 2;
        s[i] = position > limit[half] ? -INFINITY : s[i] * scale_log2;
        most[half] = fmaxf(most[half], s[i]);
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        most[half] = fmaxf(most[half], __shfl_xor_sync(~0u, most[half], 1));
        most[half] = fmaxf(most[half], __shfl_xor_sync(~0u, most[half], 2));
        if (quad == 0) shared.most[column_warp][row + 8 * half] = most[half];
      }
      __syncthreads();
      float rescale[2] = {1.0f, 1.0f};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float all = -INFINITY;
        for (uint32_t w = 0; w < T::kColumnWarps; w++) all = fmaxf(all, shared.most[w][row + 8 * half]);
        if (all > top[half] + kHeadroom) {
          rescale[half] = exp2_fast(top[half] - all);
          top[half] = all;
        }
        const float base = top[half] == -INFINITY ? 0.0f : top[half];
        sum[half] *= rescale[half];
#pragma unroll
        for (int block = 0; block < int(kBlocks); block++) {
          const float x = exp2_fast(s[4 * block + 2 * half] - base), y = exp2_fast(s[4 * block + 2 * half + 1] - base);
          sum[half] += x + y;
          *reinterpret_cast<__nv_bfloat162*>(shared.weights + swizzled_weight(row + 8 * half, token / 8 + block) +
                                             quad * 4) = __floats2bfloat162_rn(x, y);
        }
      }
      if (__any_sync(~0u, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < int(T::kColumns / 2); i++) o[i] *= rescale[i / 2 % 2];
      }
      __syncthreads();

#pragma unroll
      for (uint32_t k = 0; k < kStep; k += 16) {
        uint32_t a[4], b[4];
        load_matrices(a, shared.weights + swizzled_weight(first_row + thread % 16, k / 8 + thread / 16));
#pragma unroll
        for (uint32_t c = 0; c < T::kColumns; c += 16) {
          load_transposed(b, shared.latents[stage] + swizzled(k + thread % 16, (column + c) / 8 + thread / 16));
          multiply_add(o + c / 2, a, b[0], b[1]);
          multiply_add(o + c / 2 + 4, a, b[2], b[3]);
        }
      }
      if (T::kStages == 1 && at + kStep < end) {
        __syncthreads();
        fetch(at + kStep, next_page, 0);
        next_page = page(at + 2 * kStep);
      }
    }

    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
    __syncthreads();
    if (quad == 0)
      for (int half = 0; half < 2; half++) shared.most[column_warp][row + 8 * half] = sum[half];
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float all = 0;
      for (uint32_t w = 0; w < T::kColumnWarps; w++) all += shared.most[w][row + 8 * half];
      inverse[half] = all > 0 ? 1.0f / all : 0.0f;
      if (!run.whole() && column_warp == 0 && quad == 0)
        work.parts.lse[part_row(work, lane, run.begin == 0, tile) + row + 8 * half] =
            all > 0 ? top[half] + log2f(all) : -INFINITY;
    }
    leave_rows<T::kColumns / 8>(work, run, lane, tile, row, column, o, inverse);
    __syncthreads();
  }
}

template <int Rows>
cudaError_t run_tiles(cudaStream_t stream, const LatentWork& work) {
  CUDA_TRY(launch({dim3(work.tiles, work.lanes), dim3(kThreads), sizeof(typename Tile<Rows>::Shared), stream},
                  warps_kernel<Rows>, work));
  return cudaSuccess;
}

template <int Rows>
cudaError_t prepare_tiles() {
  CUDA_TRY(cudaFuncSetAttribute(warps_kernel<Rows>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                sizeof(typename Tile<Rows>::Shared)));
  return cudaSuccess;
}

}  // namespace

bool wide_warps_fit() {
  int device = 0, shared = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return shared >= int(sizeof(Tile<64>::Shared));
}

cudaError_t prepare_warps() {
  if (wide_warps_fit()) CUDA_TRY(prepare_tiles<64>());
  return prepare_tiles<32>();
}

cudaError_t run_warps(cudaStream_t stream, const LatentWork& work) {
  return work.tile_rows == 64 ? run_tiles<64>(stream, work) : run_tiles<32>(stream, work);
}

}  // namespace perigee::cuda
