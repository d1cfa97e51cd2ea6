// mid = silu(gate . x) * (up . x): a team owns 32 columns of mid, which is a group of the quantized form, so it can also
// quantize them. The same for routed experts, whose columns are the tokens that chose one.
#include "few.h"
#include "few_team.cuh"
#include "forms.cuh"

namespace perigee::cuda {
namespace {

struct Weights {
  const uint8_t *gate, *up;
  uint32_t width, hidden;  // of each: width x hidden
};

// Values of 32 rows of gate, then of up, for each token.
template <int N>
using Finished = float[N][64];

template <int N>
struct GateUp : InOrder {
  static constexpr int kParts = 4;  // 32 rows of gate, 32 of up
  Weights weights;
  Rows mid;
  const uint16_t* members;  // [count] pairs (token * used + k) that meet here, or null: tokens in order
  uint32_t used;
  Finished<N>* finished;  // of this team

  __device__ Source source(uint32_t unit, uint32_t part, uint32_t step, uint32_t* tile) const {
    *tile = step;
    return {part < 2 ? weights.gate : weights.up, weights.width, cols, 2 * unit + part % 2};
  }
  __device__ Meeting meeting(uint32_t step, uint32_t token) const {
    const Meeting in_order = InOrder::meeting(step, token);
    return members && token < count ? Meeting{int32_t(members[token] / used), step, 1.0f} : in_order;
  }
  __device__ void begin() const {
    if (!members) InOrder::begin();  // else it has waited to know them
  }
  template <class F, int>
  __device__ void stage(uint8_t* to, uint32_t first, uint32_t some) const {
    F::template stage<N>(to, *this, first, some);
  }
  __device__ void take(uint32_t, uint32_t part, uint32_t token, uint32_t row, float value) const {
    (*finished)[token][part * kTileRows + row] = value;
  }
  __device__ void finish(uint32_t unit, const Team& team) const {
    team.meet();
    const uint32_t lane = threadIdx.x % 32, at = lane % 8 * 4;
    for (uint32_t first = 4 * team.rank; first < count; first += 4 * team.width) {  // eight lanes a token
      const uint32_t token = min(first + lane / 8, count - 1);
      const float* values = (*finished)[token];
      const auto one = [values](uint32_t i) { return values[i] / (1.0f + expf(-values[i])) * values[32 + i]; };
      const uint32_t row = members ? members[token] : token;
      write_forms(mid, row, 32 * unit + at, {one(at), one(at + 1), one(at + 2), one(at + 3)});
      if (unit + 1 == units)
        for (uint32_t behind = mid.cols; behind < padded_cols(mid.cols); behind += 32)
          write_forms(mid, row, behind + at, {0.0f, 0.0f, 0.0f, 0.0f});
    }
  }
};

template <class F, int N>
__device__ GateUp<N> job_of(const Weights& weights, const Activations& x, const Rows& mid, uint32_t count,
                            Finished<N>* finished) {
  GateUp<N> job;
  job.x = x, job.units = weights.width / 32, job.steps = (weights.hidden + F::kCols - 1) / F::kCols;
  job.cols = weights.hidden, job.count = count;
  job.weights = weights, job.mid = mid, job.members = nullptr, job.used = 1, job.finished = finished;
  return job;
}

template <class F, int N>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    gate_up_kernel(const Weights weights, const Activations x, const Rows mid, uint32_t count, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ __align__(16) Finished<N> finished[kMostTeams];
  const GateUp<N> job = job_of<F, N>(weights, x, mid, count, &finished[threadIdx.x / 32 / cut.width]);
  run<F, N>(job, cut, shared);
}

// One pair (token, k) of the step for each y of the grid: the first that chose an expert does it for all that did.
template <class F>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    routed_kernel(Weights weights, uint64_t gate_stride, uint64_t up_stride, const Activations x, const Rows mid,
                  const int32_t* chosen, const int32_t* slot_of, uint32_t used, uint32_t experts, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ __align__(16) Finished<16> finished[kMostTeams];
  __shared__ uint16_t members[kFewRows];
  wait_for_previous();
  let_next_start();
  const int32_t expert = chosen[blockIdx.y];
  if (expert < 0 || uint32_t(expert) >= experts || slot_of[expert] < 0) return;
  const uint32_t lane = threadIdx.x % 32;
  uint32_t count = 0;
  for (uint32_t begin = 0; begin < gridDim.y; begin += 32) {
    const uint32_t pair = begin + lane;
    const uint32_t same = __ballot_sync(~0u, pair < gridDim.y && chosen[pair] == expert);
    if (begin + 32 > blockIdx.y && begin <= blockIdx.y) {
      if (same & ((1u << blockIdx.y % 32) - 1)) return;
    } else if (begin < blockIdx.y && same) {
      return;
    }
    if (threadIdx.x < 32 && same >> lane & 1) {
      const uint32_t at = count + __popc(same & ((1u << lane) - 1));
      if (at < kFewRows) members[at] = pair;
    }
    count += __popc(same);
  }
  count = min(count, kFewRows);
  __syncthreads();
  const uint64_t slot = slot_of[expert];
  weights.gate += slot * gate_stride, weights.up += slot * up_stride;
  const auto meet = [&](auto tokens) {
    constexpr int N = decltype(tokens)::value;
    auto* of_team = reinterpret_cast<Finished<N>*>(&finished[threadIdx.x / 32 / cut.width]);
    GateUp<N> job = job_of<F, N>(weights, x, mid, count, of_team);
    job.members = members, job.used = used;
    run<F, N>(job, refit<F, N>(cut, job.steps), shared);
  };
  if (count <= F::kLeast) meet(std::integral_constant<int, F::kLeast>());
  else if (count <= 4) meet(std::integral_constant<int, 4>());
  else if (count <= 8) meet(std::integral_constant<int, 8>());
  else meet(std::integral_constant<int, 16>());
}

template <class F, int N>
cudaError_t start(cudaStream_t stream, const Weights& weights, const Rows& x, const Rows& mid, uint32_t n) {
  const Cut how = cut(cut_of<F, N>(weights.width / 32, 4, (weights.hidden + F::kCols - 1) / F::kCols));
  CUDA_TRY(launch({how.grid(), how.threads(), how.bytes, stream}, gate_up_kernel<F, N>, weights, activations(x), mid, n,
                  how));
  return cudaSuccess;
}

// Cut for as many tokens as might meet one expert; mostly it is one or two.
template <class F, int N>
cudaError_t start_routed(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts) {
  const Weights weights = {experts.gate->packed, experts.up->packed, experts.gate->rows, experts.gate->cols};
  const uint32_t units = weights.width / 32, pairs = n * experts.used;
  Cut how = cut(cut_of<F, N>(units * std::min(pairs, kFewRows), 4, (weights.hidden + F::kCols - 1) / F::kCols));
  how.teams = units;
  CUDA_TRY(launch({how.grid(pairs), how.threads(), how.bytes, stream}, routed_kernel<F>, weights, experts.gate->stride,
                  experts.up->stride, activations(x), experts.mid, experts.chosen, experts.slot_of, experts.used,
                  experts.experts, how));
  return cudaSuccess;
}

bool alike(const Matrix& gate, const Matrix& up) {
  return gate.type == up.type && gate.rows == up.rows && gate.cols == up.cols && gate.rows % 32 == 0;
}

}  // namespace

cudaError_t gate_up_few(cudaStream_t stream, const Rows& x, uint32_t n, const Matrix& gate, const Matrix& up,
                        const Rows& mid) {
  if (n == 0 || n > kFewRows || !alike(gate, up)) CUDA_TRY(cudaErrorInvalidValue);
  const Weights weights = {gate.packed, up.packed, gate.rows, gate.cols};
  return with_kernel(gate.type, n, [&](auto format, auto tokens) {
    return start<decltype(format), decltype(tokens)::value>(stream, weights, x, mid, n);
  });
}

cudaError_t gate_up_routed(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts) {
  if (!alike(*experts.gate, *experts.up)) CUDA_TRY(cudaErrorInvalidValue);
  return with_kernel(experts.gate->type, n, [&](auto format, auto tokens) {
    return start_routed<decltype(format), decltype(tokens)::value>(stream, x, n, experts);
  });
}

cudaError_t prepare_gate_up_few() {
  return for_all_kernels([](auto format, auto tokens) -> cudaError_t {
    using F = decltype(format);
    CUDA_TRY(allow_shared_memory(gate_up_kernel<F, decltype(tokens)::value>));
    CUDA_TRY(allow_shared_memory(routed_kernel<F>));
    return cudaSuccess;
  });
}

}  // namespace perigee::cuda
