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

// Values of 32 rows of gate, then of up, for each column.
template <int C>
using Finished = float[8 * C][64];

template <int C>
struct GateUp {
  static constexpr int kParts = 4;  // 32 rows of gate, 32 of up
  Weights weights;
  Activations x;
  Rows mid;
  uint32_t units, steps, cols, count;
  const uint16_t* members;  // [count] pairs (token * used + k) that meet here, or null: tokens in order
  uint32_t used;
  Finished<C>* finished;  // of this team

  __device__ Source source(uint32_t unit, uint32_t part, uint32_t step, uint32_t* tile) const {
    *tile = step;
    return {part < 2 ? weights.gate : weights.up, weights.width, cols, 2 * unit + part % 2};
  }
  __device__ uint32_t tile(uint32_t step) const { return step; }
  template <int>
  __device__ Columns<C> columns(uint32_t, uint32_t lane) const {
    Columns<C> columns = columns_in_order<C>(count, lane);
    if (members) {
      for (int c = 0; c < C; c++) {
        columns.of_g[c] = members[columns.of_g[c]] / used;
        for (int i = 0; i < 2; i++) columns.of_t[c][i] = members[columns.of_t[c][i]] / used;
      }
    }
    return columns;
  }
  __device__ void begin() const {
    if (members) return;  // has waited to know them
    wait_for_previous();
    let_next_start();
  }
  __device__ void take(uint32_t, uint32_t part, uint32_t column, uint32_t row, float value) const {
    (*finished)[column][part * kTileRows + row] = value;
  }
  __device__ void finish(uint32_t unit, const Team& team) const {
    team.meet();
    const uint32_t lane = threadIdx.x % 32, at = lane % 8 * 4;
    for (uint32_t first = 4 * team.rank; first < count; first += 4 * team.width) {  // eight lanes a column
      const uint32_t column = min(first + lane / 8, count - 1);
      const float* values = (*finished)[column];
      const auto one = [values](uint32_t i) { return values[i] / (1.0f + expf(-values[i])) * values[32 + i]; };
      const uint32_t row = members ? members[column] : column;
      write_forms(mid, row, 32 * unit + at, {one(at), one(at + 1), one(at + 2), one(at + 3)});
      if (unit + 1 == units)
        for (uint32_t behind = mid.cols; behind < padded_cols(mid.cols); behind += 32)
          write_forms(mid, row, behind + at, {0.0f, 0.0f, 0.0f, 0.0f});
    }
  }
};

template <class F, int C>
__global__ void __launch_bounds__(32 * kMostWarps)
    gate_up_kernel(const Weights weights, const Activations x, const Rows mid, uint32_t count, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Finished<C> finished[kMostTeams];
  const Team team(cut);
  const GateUp<C> job = {
      weights, x,       mid, weights.width / 32,      (weights.hidden + F::kCols - 1) / F::kCols, weights.hidden,
      count,   nullptr, 1,   &finished[team.in_block]};
  run<F, C>(job, team, shared);
}

// One pair (token, k) of the step for each y of the grid: the first that chose an expert does it for all that did.
template <class F>
__global__ void __launch_bounds__(32 * kMostWarps)
    routed_kernel(Weights weights, uint64_t gate_stride, uint64_t up_stride, const Activations x, const Rows mid,
                  const int32_t* chosen, const int32_t* slot_of, uint32_t used, uint32_t experts, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Finished<2> finished[kMostTeams];
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
  const Team team(cut);
  const uint32_t units = weights.width / 32, steps = (weights.hidden + F::kCols - 1) / F::kCols;
  if (count <= 8) {
    const GateUp<1> job = {
        weights,        x,     mid,     units, steps,
        weights.hidden, count, members, used,  reinterpret_cast<Finished<1>*>(&finished[team.in_block])};
    run<F, 1>(job, team, shared);
  } else {
    const GateUp<2> job = {weights,        x,     mid,     units, steps,
                           weights.hidden, count, members, used,  &finished[team.in_block]};
    run<F, 2>(job, team, shared);
  }
}

template <class F, int C>
cudaError_t start(cudaStream_t stream, const Weights& weights, const Rows& x, const Rows& mid, uint32_t n) {
  const Cut how = cut(weights.width / 32, (weights.hidden + F::kCols - 1) / F::kCols, kBytesOfWarp<F, C>);
  CUDA_TRY(launch({how.grid(), how.threads(), how.warps() * kBytesOfWarp<F, C>, stream}, gate_up_kernel<F, C>, weights,
                  activations(x), mid, n, how));
  return cudaSuccess;
}

template <class F>
cudaError_t start_routed(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts) {
  const Weights weights = {experts.gate->packed, experts.up->packed, experts.gate->rows, experts.gate->cols};
  const uint32_t units = weights.width / 32, pairs = n * experts.used;
  Cut how = cut(units * std::min(pairs, kFewRows), (weights.hidden + F::kCols - 1) / F::kCols, kBytesOfWarp<F, 2>);
  how.teams = units;
  CUDA_TRY(launch({how.grid(pairs), how.threads(), how.warps() * kBytesOfWarp<F, 2>, stream}, routed_kernel<F>, weights,
                  experts.gate->stride, experts.up->stride, activations(x), experts.mid, experts.chosen,
                  experts.slot_of, experts.used, experts.experts, how));
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
  return with_format(gate.type, [&](auto format) {
    using F = decltype(format);
    return n <= 8 ? start<F, 1>(stream, weights, x, mid, n) : start<F, 2>(stream, weights, x, mid, n);
  });
}

cudaError_t gate_up_routed(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts) {
  if (!alike(*experts.gate, *experts.up)) CUDA_TRY(cudaErrorInvalidValue);
  return with_format(experts.gate->type,
                     [&](auto format) { return start_routed<decltype(format)>(stream, x, n, experts); });
}

cudaError_t prepare_gate_up_few() {
  return for_all_formats([](auto format) -> cudaError_t {
    using F = decltype(format);
    CUDA_TRY(allow_shared_memory(gate_up_kernel<F, 1>));
    CUDA_TRY(allow_shared_memory(gate_up_kernel<F, 2>));
    CUDA_TRY(allow_shared_memory(routed_kernel<F>));
    return cudaSuccess;
  });
}

}  // namespace perigee::cuda
