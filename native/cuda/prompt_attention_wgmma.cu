// Prompt attention on sm_90a. A warp fetches tiles of 128 keys; two warpgroups of 64 queries each multiply. While one
// warpgroup takes exponents the other has the tensor cores; within a warpgroup the products with the values of one tile
// run beside the products with the keys of the next.
#include "gemm_hopper.cuh"
#include "prompt_attention.cuh"
#include "tensor_map.h"

namespace perigee::cuda {
namespace {

constexpr int kKeys = 128, kStages = 2, kThreads = 384;
constexpr int kPanelBytes = kKeys * 128;  // 64 columns of 128 rows
constexpr int kKeyBytes = 3 * kPanelBytes, kValueBytes = 2 * kPanelBytes;
constexpr int kQueryPanelBytes = 64 * 128, kQueryBytes = 3 * kQueryPanelBytes;  // of a warpgroup
constexpr int kSwizzle = 1024;                                                  // alignment of panels
constexpr int kSharedBytes = kSwizzle + 2 * kQueryBytes + kStages * (kKeyBytes + kValueBytes);

struct Maps {
  CUtensorMap q, k_nope, k_rope, v;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using namespace hopper;

// Shared addresses.
struct Buffers {
  uint32_t queries, keys, values;
};
struct Barriers {
  uint32_t base;
  static constexpr int kCount = 1 + 4 * kStages;
  __device__ uint32_t queries() const { return base; }
  __device__ uint32_t keys(int stage) const { return base + 8 * (1 + stage); }
  __device__ uint32_t values(int stage) const { return base + 8 * (1 + kStages + stage); }
  __device__ uint32_t keys_free(int stage) const { return base + 8 * (1 + 2 * kStages + stage); }
  __device__ uint32_t values_free(int stage) const { return base + 8 * (1 + 3 * kStages + stage); }
};

__device__ void fetch(const Maps& maps, const Buffers& at, const Barriers& b, const PromptTile& tile, int limit) {
  expect_bytes(b.queries(), 2 * kQueryBytes);
  for (int group = 0; group < 2; group++)
    for (int panel = 0; panel < 3; panel++)
      copy_box(at.queries + group * kQueryBytes + panel * kQueryPanelBytes, maps.q, b.queries(), 64 * panel,
               tile.first_row + 64 * group, tile.head);
  for (int i = 0; i * kKeys < limit; i++) {
    const int stage = i % kStages, parity = i / kStages % 2, first = i * kKeys;
    const uint32_t keys = at.keys + stage * kKeyBytes, values = at.values + stage * kValueBytes;
    wait_barrier(b.keys_free(stage), parity ^ 1);
    expect_bytes(b.keys(stage), kKeyBytes);
    copy_box(keys, maps.k_nope, b.keys(stage), 0, first, tile.head);
    copy_box(keys + kPanelBytes, maps.k_nope, b.keys(stage), 64, first, tile.head);
    copy_box(keys + 2 * kPanelBytes, maps.k_rope, b.keys(stage), 0, first, 0);
    wait_barrier(b.values_free(stage), parity ^ 1);
    expect_bytes(b.values(stage), kValueBytes);
    copy_box(values, maps.v, b.values(stage), 0, first, tile.head);
    copy_box(values + kPanelBytes, maps.v, b.values(stage), 64, first, tile.head);
  }
}

__device__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Turns of the two warpgroups at the tensor cores.
__device__ void await_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); }
__device__ void pass_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); }

// Keeps uses of registers that a product reads or writes on their side of it.
template <int count>
__device__ void hold(float (&r)[count]) {
#pragma unroll
  for (int i = 0; i < count; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <int count>
__device__ void hold(uint32_t (&r)[count]) {
#pragma unroll
  for (int i = 0; i < count; i++) asm volatile("" : "+r"(r[i])::"memory");
}

// d[64][128] += a[64][16] . b[16][128]: `a` in registers, b's rows in two panels of 64 columns, kPanelBytes apart.
__device__ void multiply_rows(float (&d)[64], const uint32_t* a, uint32_t b) {
  const uint64_t panels = describe(b) + (uint64_t(kPanelBytes / 16 - 1) << 16);
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PERIGEE_REGISTERS_0_63
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : PERIGEE_32(d, 0), PERIGEE_32(d, 32)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(panels));
}

// s = q . k over the tile's 192 columns.
__device__ void score(float (&s)[64], uint32_t queries, uint32_t keys) {
#pragma unroll
  for (int k = 0; k < 12; k++)
    multiply_16<128>(s, describe(queries + k / 4 * kQueryPanelBytes + k % 4 * 32),
                     describe(keys + k / 4 * kPanelBytes + k % 4 * 32), k > 0);
}
// out += p . v over the tile's 128 keys.
__device__ void gather_values(float (&out)[64], const uint32_t (&p)[32], uint32_t values) {
#pragma unroll
  for (int k = 0; k < 8; k++) multiply_rows(out, p + 4 * k, values + k * 16 * 128);
}

// Of a lane's two rows: how many keys they see, what their earlier sums are to be multiplied with.
struct Softmax {
  RowState state[2];
  int sees[2], least;  // the least of the warpgroup
  float to_log2;

  __device__ void take(float (&s)[64], int first, float (&keep)[2]) {
    if (first + kKeys > least) {
      const int column = first + threadIdx.x % 4 * 2;
#pragma unroll
      for (int i = 0; i < 64; i++)
        if (column + i / 4 * 8 + i % 2 >= sees[i / 2 % 2]) s[i] = -INFINITY;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = -INFINITY, subtract;
#pragma unroll
      for (int j = 0; j < 16; j++) most = fmaxf(most, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
      keep[half] = state[half].raise(quad_max(most), to_log2, &subtract);
#pragma unroll
      for (int j = 0; j < 16; j++)
#pragma unroll
        for (int i = 4 * j + 2 * half; i < 4 * j + 2 * half + 2; i++)
          state[half].sum += s[i] = exp2_fast(fmaf(s[i], to_log2, -subtract));
    }
  }
};

__device__ void pack(uint32_t (&p)[32], const float (&s)[64]) {
#pragma unroll
  for (int i = 0; i < 32; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

__device__ void consume(const PromptAttention& a, const Buffers& at, const Barriers& b, const PromptTile& tile,
                        int limit) {
  const int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int first_row = tile.first_row + 64 * group, row = first_row + 16 * warp + lane / 4;
  Softmax softmax = {
      {}, {visible_keys(a, row), visible_keys(a, row + 8)}, visible_keys(a, first_row), a.scale * 1.44269504f};
  const auto release = [&](uint32_t barrier) {
    if (lane == 0) arrive(barrier);
  };
  const uint32_t queries = at.queries + group * kQueryBytes;
  float out[64] = {}, s[64], keep[2];
  uint32_t p[32];

  if (limit > 0) {
    if (group == 1) pass_turn(1);  // the first turn is group 0's
    wait_barrier(b.queries(), 0);
    wait_barrier(b.keys(0), 0);
    await_turn(group);
    begin_products();
    score(s, queries, at.keys);
    commit_products();
    pass_turn(group);
    wait_products<0>();
    hold(s);
    release(b.keys_free(0));
    softmax.take(s, 0, keep);
    pack(p, s);
  }
  int i = 1;
  for (; i * kKeys < limit; i++) {
    const int stage = i % kStages, parity = i / kStages % 2, before = (i - 1) % kStages,
              before_parity = (i - 1) / kStages % 2;
    wait_barrier(b.keys(stage), parity);
    await_turn(group);
    hold(s), hold(out), hold(p);
    begin_products();
    score(s, queries, at.keys + stage * kKeyBytes);
    commit_products();
    wait_barrier(b.values(before), before_parity);
    begin_products();
    gather_values(out, p, at.values + before * kValueBytes);
    commit_products();
    pass_turn(group);
    wait_products<1>();
    hold(s);
    release(b.keys_free(stage));
    softmax.take(s, i * kKeys, keep);
    wait_products<0>();
    hold(out), hold(p);
    release(b.values_free(before));
    pack(p, s);
#pragma unroll
    for (int j = 0; j < 64; j++) out[j] *= keep[j / 2 % 2];
  }
  if (limit > 0) {
    const int last = (i - 1) % kStages;
    wait_barrier(b.values(last), (i - 1) / kStages % 2);
    hold(out), hold(p);
    begin_products();
    gather_values(out, p, at.values + last * kValueBytes);
    commit_products();
    wait_products<0>();
    hold(out);
  }
  let_next_start();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float sum = quad_sum(softmax.state[half].sum);
    const uint32_t to_row = row + 8 * half;
    if (to_row >= a.n) continue;
    const RowEnd end = end_row(a, to_row, tile.head, softmax.state[half].max, sum, lane % 4 == 0);
    float* to = a.out + (uint64_t(to_row) * a.heads + tile.head) * kValue + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; j++) put(a, to + 8 * j, end, out[4 * j + 2 * half], out[4 * j + 2 * half + 1]);
  }
}

#endif

__global__ __launch_bounds__(kThreads, 1) void prompt_wgmma_kernel(const __grid_constant__ Maps maps,
                                                                   const __grid_constant__ PromptAttention a,
                                                                   const PromptOrder order) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t barrier_words[Barriers::kCount];
  const Barriers barriers = {shared_address(barrier_words)};
  wait_for_previous();
  const uint32_t base = (shared_address(shared) + kSwizzle - 1) & ~(kSwizzle - 1);
  const Buffers at = {base, base + 2 * kQueryBytes, base + 2 * kQueryBytes + kStages * kKeyBytes};
  const PromptTile tile = prompt_tile(order, blockIdx.x);
  const int limit = visible_keys(a, min(tile.first_row + kQueries, a.n) - 1);
  if (threadIdx.x == 0) {
    init_barrier(barriers.queries(), 1);
    for (int i = 0; i < kStages; i++) {
      init_barrier(barriers.keys(i), 1), init_barrier(barriers.values(i), 1);
      init_barrier(barriers.keys_free(i), 8), init_barrier(barriers.values_free(i), 8);  // warps
    }
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0 && limit > 0) fetch(maps, at, barriers, tile, limit);
    return;
  }
  grow_registers<240>();
  consume(a, at, barriers, tile, limit);
#endif
}

// [rows][heads][width], a head as a matrix of its own.
cudaError_t map_heads(CUtensorMap* map, const bf16* base, uint32_t width, uint32_t heads, uint32_t rows,
                      uint32_t box_rows) {
  return map_rows(map, base, width, rows, uint64_t(heads) * width, heads, width, 64, box_rows);
}

}  // namespace

cudaError_t prepare_prompt_wgmma() {
  CUDA_TRY(cudaFuncSetAttribute(prompt_wgmma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  return cudaSuccess;
}

bool prompt_wgmma_serves(const PromptAttention& a) {
  cudaFuncAttributes attributes;
  return a.nope_dim == kNope && a.rope_dim == kRope && a.value_dim == kValue && a.keys > 0 &&
         cudaFuncGetAttributes(&attributes, prompt_wgmma_kernel) == cudaSuccess && attributes.ptxVersion == 90;
}

cudaError_t attend_prompt_wgmma(cudaStream_t stream, const PromptAttention& a) {
  PromptOrder order;
  CUDA_TRY(prompt_order(a, &order));
  Maps maps;
  CUDA_TRY(map_heads(&maps.q, a.q, kNope + kRope, a.heads, a.n, 64));
  CUDA_TRY(map_heads(&maps.k_nope, a.k_nope, kNope, a.heads, a.keys, kKeys));
  CUDA_TRY(map_heads(&maps.v, a.v, kValue, a.heads, a.keys, kKeys));
  CUDA_TRY(map_rows(&maps.k_rope, a.k_rope, kRope, a.keys, a.k_rope_stride, 1, 0, 64, kKeys));
  CUDA_TRY(launch({order.tiles * a.heads, kThreads, kSharedBytes, stream}, prompt_wgmma_kernel, maps, a, order));
  return cudaSuccess;
}

}  // namespace perigee::cuda
