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

// Paired: a unit is 16 columns, and the unit of the neighbouring block in the cluster has the group's other half. Where there
// are fewer groups than multiprocessors, twice as many take part.
template <int N, bool kPaired>
struct GateUp : InOrder {
  static constexpr int kParts = kPaired ? 2 : 4;  // gate first
  Weights weights;
  Rows mid;
  const uint16_t* members;  // [count] pairs (token * used + k) that meet here, or null: tokens in order
  uint32_t used;
  Finished<N>* finished;  // of this team

  __device__ Source source(uint32_t unit, uint32_t part, uint32_t step, uint32_t* tile) const {
    *tile = step;
    const uint32_t half = kParts / 2;
    return {part < half ? weights.gate : weights.up, weights.width, cols, half * unit + part % half};
  }
  __device__ Meeting meeting(uint32_t step, uint32_t token) const {
    const Meeting in_order = InOrder::meeting(step, token);
    return members && token < count ? Meeting{int32_t(members[token] / used), step, 1.0f} : in_order;
  }
  __device__ void begin() const {
    if (!members) InOrder::begin();         // else it has waited to know them
    if constexpr (kPaired) meet_cluster();  // the first block has begun, and may be written to
  }
  template <class F, int>
  __device__ void stage(uint8_t* to, uint32_t first, uint32_t some) const {
    F::template stage<N>(to, *this, first, some);
  }
  __device__ void take(uint32_t unit, uint32_t part, uint32_t token, uint32_t row, float value) const {
    if constexpr (kPaired) store_in_first(&(*finished)[token][part * 32 + unit % 2 * kTileRows + row], value);
    else (*finished)[token][part * kTileRows + row] = value;
  }
  __device__ void finish(uint32_t unit, const Team& team) const {
    if constexpr (kPaired) {
      meet_cluster();
      if (unit % 2 == 0) write(unit / 2, team);
      meet_cluster();
    } else {
      team.meet();
      write(unit, team);
    }
  }
  __device__ void write(uint32_t group, const Team& team) const {
    const uint32_t lane = threadIdx.x % 32, at = lane % 8 * 4;
    for (uint32_t first = 4 * team.rank; first < count; first += 4 * team.width) {  // eight lanes a token
      const uint32_t token = min(first + lane / 8, count - 1);
      const float* values = (*finished)[token];
      const auto one = [values](uint32_t i) { return values[i] / (1.0f + expf(-values[i])) * values[32 + i]; };
      const uint32_t row = members ? members[token] : token;
      write_forms(mid, row, 32 * group + at, {one(at), one(at + 1), one(at + 2), one(at + 3)});
      if (32 * group + 32 == mid.cols)
        for (uint32_t behind = mid.cols; behind < padded_cols(mid.cols); behind += 32)
          write_forms(mid, row, behind + at, {0.0f, 0.0f, 0.0f, 0.0f});
    }
  }

  // Writes where `at` lies in the cluster's first block.
  static __device__ void store_in_first(float* at, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(there) : "r"(uint32_t(__cvta_generic_to_shared(at))));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value) : "memory");
#endif
  }
  static __device__ void meet_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }
};

template <class F, int N, bool kPaired>
__device__ GateUp<N, kPaired> job_of(const Weights& weights, const Activations& x, const Rows& mid, uint32_t count,
                                     Finished<N>* finished) {
  GateUp<N, kPaired> job;
  job.x = x, job.units = weights.width / (kPaired ? 16 : 32), job.steps = (weights.hidden + F::kCols - 1) / F::kCols;
  job.cols = weights.hidden, job.count = count;
  job.weights = weights, job.mid = mid, job.members = nullptr, job.used = 1, job.finished = finished;
  return job;
}

template <class F, int N, bool kPaired>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    gate_up_kernel(const Weights weights, const Activations x, const Rows mid, uint32_t count, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ __align__(16) Finished<N> finished[kMostTeams];
  auto* of_team = &finished[threadIdx.x / 32 / cut.width];
  const auto job = job_of<F, N, kPaired>(weights, x, mid, count, of_team);
  run<F, N>(job, cut, shared);
}

// One pair (token, k) of the step for each y of the grid: the first that chose an expert does it for the next seven that
// did as well, the ninth for seven more.
template <class F>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    routed_kernel(Weights weights, uint64_t gate_stride, uint64_t up_stride, const Activations x, const Rows mid,
                  const int32_t* chosen, const int32_t* slot_of, uint32_t used, uint32_t experts, uint32_t cut_for,
                  Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ __align__(16) Finished<kMostTokens> finished[kMostTeams];
  __shared__ uint16_t members[kMostTokens];
  wait_for_previous();
  let_next_start();
  const uint32_t own = blockIdx.y, lane = threadIdx.x % 32;
  const int32_t expert = chosen[own];
  if (expert < 0 || uint32_t(expert) >= experts || slot_of[expert] < 0) return;
  uint32_t before = 0, place = 0;  // pairs with this expert so far, and before our own
  for (uint32_t begin = 0; begin < gridDim.y; begin += 32) {
    const uint32_t pair = begin + lane;
    const uint32_t same = __ballot_sync(~0u, pair < gridDim.y && chosen[pair] == expert);
    if (own / 32 == begin / 32) {
      place = before + __popc(same & ((1u << own % 32) - 1));
      if (place % kMostTokens != 0) return;
    }
    const uint32_t at = before + __popc(same & ((1u << lane) - 1)) - place;
    if (threadIdx.x < 32 && pair >= own && (same >> lane & 1) && at < kMostTokens) members[at] = pair;
    before += __popc(same);
  }
  __syncthreads();
  const uint32_t count = min(before - place, kMostTokens);
  const uint64_t slot = slot_of[expert];
  weights.gate += slot * gate_stride, weights.up += slot * up_stride;
  const auto meet = [&](auto tokens) {
    constexpr int N = decltype(tokens)::value;
    auto* of_team = reinterpret_cast<Finished<N>*>(&finished[threadIdx.x / 32 / cut.width]);
    auto job = job_of<F, N, false>(weights, x, mid, count, of_team);
    job.members = members, job.used = used;
    cut.chunk = cut.chunk * cut_for / N;
    if (cut.chunk < job.steps) cut.chunk -= cut.chunk % cut.width;
    run<F, N>(job, cut, shared);
  };
  if (count <= F::kLeast) meet(std::integral_constant<int, F::kLeast>());
  else meet(std::integral_constant<int, kMostTokens>());
}

template <class F, int N, bool kPaired>
cudaError_t start(cudaStream_t stream, const Weights& weights, const Rows& x, const Rows& mid, uint32_t n) {
  const uint32_t steps = (weights.hidden + F::kCols - 1) / F::kCols;
  Cut how = kPaired ? cut(cut_of<F, N>(weights.width / 16, 2, steps)) : cut(cut_of<F, N>(weights.width / 32, 4, steps));
  if (kPaired) how.per_block = 1, how.teams += how.teams % 2;
  CUDA_TRY(launch({how.grid(), how.threads(), how.bytes, stream, kPaired ? 2u : 1u}, gate_up_kernel<F, N, kPaired>,
                  weights, activations(x), mid, n, how));
  return cudaSuccess;
}

// Cut for as many tokens as can meet an expert, though mostly it is one.
template <class F>
cudaError_t start_routed(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts) {
  const Weights weights = {experts.gate->packed, experts.up->packed, experts.gate->rows, experts.gate->cols};
  const uint32_t units = weights.width / 32, pairs = n * experts.used,
                 steps = (weights.hidden + F::kCols - 1) / F::kCols;
  const uint32_t all = units * std::min(pairs, kFewRows), cut_for = n == 1 ? F::kLeast : kMostTokens;
  Cut how = n == 1 ? cut(cut_of<F, F::kLeast>(all, 4, steps)) : cut(cut_of<F, kMostTokens>(all, 4, steps));
  how.teams = units;
  CUDA_TRY(launch({how.grid(pairs), how.threads(), how.bytes, stream}, routed_kernel<F>, weights, experts.gate->stride,
                  experts.up->stride, activations(x), experts.mid, experts.chosen, experts.slot_of, experts.used,
                  experts.experts, cut_for, how));
  return cudaSuccess;
}

// Whether blocks can work in clusters, and groups of 32 columns alone would leave multiprocessors without work.
bool should_pair(uint32_t width) {
  int device = 0, major = 0, multiprocessors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  return major >= 9 && width / 32 < uint32_t(multiprocessors);
}

bool alike(const Matrix& gate, const Matrix& up) {
  return gate.type == up.type && gate.rows == up.rows && gate.cols == up.cols && gate.rows % 32 == 0;
}

}  // namespace

cudaError_t gate_up_few(cudaStream_t stream, const Rows& x, uint32_t n, const Matrix& gate, const Matrix& up,
                        const Rows& mid) {
  if (n == 0 || n > kFewRows || !alike(gate, up)) CUDA_TRY(cudaErrorInvalidValue);
  if (n > kMostTokens) {
    CUDA_TRY(gate_up_few(stream, x, kMostTokens, gate, up, mid));
    return gate_up_few(stream, rows_from(x, kMostTokens), n - kMostTokens, gate, up, rows_from(mid, kMostTokens));
  }
  const Weights weights = {gate.packed, up.packed, gate.rows, gate.cols};
  return with_kernel(gate.type, n, [&](auto format, auto tokens) {
    using F = decltype(format);
    constexpr int N = decltype(tokens)::value;
    return should_pair(gate.rows) ? start<F, N, true>(stream, weights, x, mid, n)
                                  : start<F, N, false>(stream, weights, x, mid, n);
  });
}

cudaError_t gate_up_routed(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts) {
  if (!alike(*experts.gate, *experts.up)) CUDA_TRY(cudaErrorInvalidValue);
  return with_format(experts.gate->type,
                     [&](auto format) { return start_routed<decltype(format)>(stream, x, n, experts); });
}

cudaError_t prepare_gate_up_few() {
  return for_all_kernels([](auto format, auto tokens) -> cudaError_t {
    using F = decltype(format);
    constexpr int N = decltype(tokens)::value;
    CUDA_TRY(allow_shared_memory(gate_up_kernel<F, N, false>));
    CUDA_TRY(allow_shared_memory(gate_up_kernel<F, N, true>));
    CUDA_TRY(allow_shared_memory(routed_kernel<F>));
    return cudaSuccess;
  });
}

}  // namespace perigee::cuda
