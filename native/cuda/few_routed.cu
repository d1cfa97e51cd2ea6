// Routed experts in device memory: their gate and up products (few_gate_up.cu), then one pass over down for each token, in
// which a team owns 16 rows of the sum and goes through the token's experts in order of k: no partial sums meet in memory,
// and a token's sum does not depend on what else is in the step. An expert of two tokens is read twice here, the second
// time mostly from the cache.
#include "few.h"
#include "few_team.cuh"

namespace perigee::cuda {
namespace {

constexpr uint32_t kMostUsed = 64;

// The experts of a token that are here, in order of k.
struct Present {
  int32_t pair[kMostUsed], slot[kMostUsed];
  uint32_t experts;
};

// All threads of the block. What is read here was written before gate_up_routed, which this kernel follows and which starts
// it only after its own wait: so the first weights are on their way while that one still runs.
__device__ void find_present(Present& present, const RoutedFew& args) {
  if (threadIdx.x < 32) {
    uint32_t experts = 0;
    for (uint32_t begin = 0; begin < args.used; begin += 32) {
      const uint32_t k = begin + threadIdx.x, pair = blockIdx.y * args.used + k;
      const int32_t expert = k < args.used ? __ldcg(args.chosen + pair) : -1;
      const int32_t slot = expert >= 0 && uint32_t(expert) < args.experts ? __ldcg(args.slot_of + expert) : -1;
      const uint32_t here = __ballot_sync(~0u, slot >= 0);
      if (slot >= 0) {
        const uint32_t place = experts + __popc(here & ((1u << threadIdx.x) - 1));
        present.pair[place] = pair, present.slot[place] = slot;
      }
      experts += __popc(here);
    }
    if (threadIdx.x == 0) present.experts = experts;
  }
  __syncthreads();
}

struct Down : InOrder {  // steps: `tiles` of each expert, one expert after the other
  static constexpr int kParts = 1;
  const uint8_t* packed;
  uint64_t stride;
  const float* weight;
  float* sum;  // of this token
  uint32_t rows, tiles;
  const Present* present;

  __device__ Source source(uint32_t unit, uint32_t, uint32_t step, uint32_t* tile) const {
    const uint32_t expert = step / tiles;
    *tile = step - expert * tiles;
    return {packed + present->slot[expert] * stride, rows, cols, unit};
  }
  __device__ Meeting meeting(uint32_t step, uint32_t token) const {
    const uint32_t expert = step / tiles;
    const int32_t pair = token == 0 ? present->pair[expert] : -1;
    return {pair, step - expert * tiles, pair < 0 ? 0.0f : weight[pair]};
  }
  template <class F, int N>
  __device__ void stage(uint8_t* to, uint32_t first, uint32_t some) const {
    F::template stage<N>(to, *this, first, some);
  }
  __device__ void take(uint32_t unit, uint32_t, uint32_t, uint32_t row, float value) const {
    const uint32_t at = unit * kTileRows + row;
    if (at < rows) sum[at] = value;
  }
  __device__ void finish(uint32_t, const Team&) const {}
};

template <class F>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    down_kernel(const Matrix down, const Activations mid, const __grid_constant__ RoutedFew args, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Present present;
  find_present(present, args);
  Down job;
  job.tiles = (down.cols + F::kCols - 1) / F::kCols;
  job.x = mid, job.units = (down.rows + kTileRows - 1) / kTileRows, job.steps = present.experts * job.tiles;
  job.cols = down.cols, job.count = 1;
  job.packed = down.packed, job.stride = down.stride, job.weight = args.weight;
  job.sum = args.sum + uint64_t(blockIdx.y) * down.rows;
  job.rows = down.rows, job.present = &present;
  run<F, F::kLeast>(job, cut, shared);
}

template <class F>
cudaError_t start(cudaStream_t stream, uint32_t n, const RoutedFew& args) {
  const Matrix& down = *args.down;
  const uint32_t tiles = (down.cols + F::kCols - 1) / F::kCols;
  const Cut how = cut(cut_of<F, F::kLeast>((down.rows + kTileRows - 1) / kTileRows, 1, args.used * tiles));
  CUDA_TRY(
      launch({how.grid(n), how.threads(), how.bytes, stream}, down_kernel<F>, down, activations(args.mid), args, how));
  return cudaSuccess;
}

}  // namespace

cudaError_t route_few(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts) {
  if (n == 0 || n > kFewRows || experts.used > kMostUsed) CUDA_TRY(cudaErrorInvalidValue);
  CUDA_TRY(gate_up_routed(stream, x, n, experts));
  return with_format(experts.down->type, [&](auto format) { return start<decltype(format)>(stream, n, experts); });
}

cudaError_t prepare_route_few() {
  return for_all_kernels([](auto format, auto) { return allow_shared_memory(down_kernel<decltype(format)>); });
}

}  // namespace perigee::cuda
