// Routed experts in device memory: their gate and up products (few_gate_up.cu), then one pass over down in which a team owns
// 16 rows of the sum and goes through all experts of the step, so that no partial sums meet in memory.
#include "few.h"
#include "few_team.cuh"

namespace perigee::cuda {
namespace {

constexpr uint32_t kMostPairs = 256;

// The experts of a step that are here, in the order of their first pair (token * used + k).
struct Present {
  int32_t chosen[kMostPairs];  // of each pair, -1 where it is left out
  int16_t first[kMostPairs];   // first pair with the same expert
  int16_t place[kMostPairs];   // of a first pair: its expert's place below
  int32_t slot[kMostPairs];
  int16_t some_pair[kMostPairs];
  int16_t pair_of[kMostPairs][kFewRows];  // [expert][token], -1: the token has not chosen it
  uint32_t experts;
};

// All threads of the block. What is read here was written before gate_up_routed, which this kernel follows and which starts
// it only after its own wait: so the first weights are on their way while that one still runs.
__device__ void find_present(Present& present, const int32_t* chosen, const int32_t* slot_of, uint32_t pairs,
                             uint32_t used, uint32_t experts) {
  for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x) {
    const int32_t expert = __ldcg(chosen + i);
    present.chosen[i] = expert >= 0 && uint32_t(expert) < experts && __ldcg(slot_of + expert) >= 0 ? expert : -1;
  }
  for (uint32_t i = threadIdx.x; i < pairs * kFewRows; i += blockDim.x)
    present.pair_of[i / kFewRows][i % kFewRows] = -1;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x) {
    uint32_t first = 0;
    while (present.chosen[first] != present.chosen[i]) first++;
    present.first[i] = first;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    uint32_t count = 0;
    for (uint32_t begin = 0; begin < pairs; begin += 32) {
      const uint32_t i = begin + threadIdx.x;
      const bool is_first = i < pairs && present.chosen[i] >= 0 && present.first[i] == int32_t(i);
      const uint32_t all = __ballot_sync(~0u, is_first);
      if (is_first) {
        const uint32_t place = count + __popc(all & ((1u << threadIdx.x) - 1));
        present.place[i] = place;
        present.slot[place] = __ldcg(slot_of + present.chosen[i]);
        present.some_pair[place] = i;
      }
      count += __popc(all);
    }
    if (threadIdx.x == 0) present.experts = count;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x)
    if (present.chosen[i] >= 0) present.pair_of[present.place[present.first[i]]][i / used] = i;
  __syncthreads();
}

struct Down : InOrder {  // steps: `tiles` of each expert, one expert after the other
  static constexpr int kParts = 1;
  const uint8_t* packed;
  uint64_t stride;
  const float* weight;
  float* sum;
  uint32_t rows, tiles;
  const Present* present;

  __device__ Source source(uint32_t unit, uint32_t, uint32_t step, uint32_t* tile) const {
    const uint32_t expert = step / tiles;
    *tile = step - expert * tiles;
    return {packed + present->slot[expert] * stride, rows, cols, unit};
  }
  __device__ Meeting meeting(uint32_t step, uint32_t token) const {
    const uint32_t expert = step / tiles;
    const int32_t pair = token < count ? present->pair_of[expert][token] : -1;
    return {pair, step - expert * tiles, pair < 0 ? 0.0f : weight[pair]};
  }
  template <class F, int N>
  __device__ void stage(uint8_t* to, uint32_t first, uint32_t some) const {
    F::template stage<N>(to, *this, first, some);
  }
  __device__ void take(uint32_t unit, uint32_t, uint32_t token, uint32_t row, float value) const {
    const uint32_t at = unit * kTileRows + row;
    if (at < rows) sum[uint64_t(token) * rows + at] = value;
  }
  __device__ void finish(uint32_t, const Team&) const {}
};

template <class F, int N>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    down_kernel(const Matrix down, const Activations mid, const __grid_constant__ RoutedFew args, uint32_t n, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Present present;
  find_present(present, args.chosen, args.slot_of, n * args.used, args.used, args.experts);
  Down job;
  job.tiles = (down.cols + F::kCols - 1) / F::kCols;
  job.x = mid, job.units = (down.rows + kTileRows - 1) / kTileRows, job.steps = present.experts * job.tiles;
  job.cols = down.cols, job.count = n;
  job.packed = down.packed, job.stride = down.stride, job.weight = args.weight, job.sum = args.sum;
  job.rows = down.rows, job.present = &present;
  run<F, N>(job, cut, shared);
}

template <class F, int N>
cudaError_t start(cudaStream_t stream, uint32_t n, const RoutedFew& args) {
  const Matrix& down = *args.down;
  const uint32_t tiles = (down.cols + F::kCols - 1) / F::kCols;
  const Cut how = cut(cut_of<F, N>((down.rows + kTileRows - 1) / kTileRows, 1, n * args.used * tiles));
  CUDA_TRY(launch({how.grid(), how.threads(), how.bytes, stream}, down_kernel<F, N>, down, activations(args.mid), args,
                  n, how));
  return cudaSuccess;
}

}  // namespace

cudaError_t route_few(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts) {
  if (n == 0 || n > kFewRows || n * experts.used > kMostPairs) CUDA_TRY(cudaErrorInvalidValue);
  CUDA_TRY(gate_up_routed(stream, x, n, experts));
  return with_kernel(experts.down->type, n, [&](auto format, auto tokens) {
    return start<decltype(format), decltype(tokens)::value>(stream, n, experts);
  });
}

cudaError_t prepare_route_few() {
  return for_all_kernels([](auto format, auto tokens) {
    return allow_shared_memory(down_kernel<decltype(format), decltype(tokens)::value>);
  });
}

}  // namespace perigee::cuda
