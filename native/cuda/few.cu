// y = W x for few rows of x: teams own 16 rows of an output each, whatever outputs share the launch.
#include "few.h"
#include "few_team.cuh"

namespace perigee::cuda {

Cut cut(uint32_t units, uint32_t steps, uint32_t bytes_a_warp) {
  int device = 0, multiprocessors = 1, shared = 0, block_shared = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const auto up = [](uint32_t a, uint32_t b) { return (a + b - 1) / b; };
  const uint32_t warps = multiprocessors * std::min(few_warps_per_multiprocessor, shared / bytes_a_warp);
  const uint32_t most = std::min({kMostWarps, steps, (block_shared - kStaticBytes) / bytes_a_warp});
  Cut cut;
  cut.width = up(steps, up(steps, std::clamp(warps / units, 1u, most)));
  cut.teams = up(units, up(units, std::max(1u, warps / cut.width)));
  cut.per_block = std::max(1u, kMostTeams / cut.width);
  return cut;
}

namespace {

struct Piece {
  const uint8_t* packed;
  float* y;
  uint32_t rows, stride, first_unit;
  bool add;
};

struct Multiply {
  static constexpr int kParts = 1;
  Activations x;
  Piece pieces[kMostOutputs];
  uint32_t units, steps, cols, count;

  __device__ const Piece& piece(uint32_t unit) const {
    uint32_t of = 0;
#pragma unroll
    for (uint32_t i = 1; i < kMostOutputs; i++)
      if (unit >= pieces[i].first_unit) of = i;
    return pieces[of];
  }
  __device__ Source source(uint32_t unit, uint32_t, uint32_t step, uint32_t* tile) const {
    *tile = step;
    const Piece& of = piece(unit);
    return {of.packed, of.rows, cols, unit - of.first_unit};
  }
  __device__ uint32_t tile(uint32_t step) const { return step; }
  template <int C>
  __device__ Columns<C> columns(uint32_t, uint32_t lane) const {
    return columns_in_order<C>(count, lane);
  }
  __device__ void begin() const {
    wait_for_previous();
    let_next_start();
  }
  __device__ void take(uint32_t unit, uint32_t, uint32_t column, uint32_t row, float value) const {
    const Piece& of = piece(unit);
    const uint32_t at = (unit - of.first_unit) * kTileRows + row;
    if (at >= of.rows) return;
    float* y = of.y + uint64_t(column) * of.stride + at;
    *y = of.add ? *y + value : value;
  }
  __device__ void finish(uint32_t, const Team&) const {}
};

template <class F, int C>
__global__ void __launch_bounds__(32 * kMostWarps) multiply_kernel(const __grid_constant__ Multiply job, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  run<F, C>(job, Team(cut), shared);
}

template <class F, int C>
cudaError_t start(cudaStream_t stream, Multiply job) {
  job.steps = (job.cols + F::kCols - 1) / F::kCols;
  const Cut how = cut(job.units, job.steps, kBytesOfWarp<F, C>);
  CUDA_TRY(
      launch({how.grid(), how.threads(), how.warps() * kBytesOfWarp<F, C>, stream}, multiply_kernel<F, C>, job, how));
  return cudaSuccess;
}

}  // namespace

cudaError_t multiply_few(cudaStream_t stream, const Rows& x, uint32_t n, const Output* outputs, uint32_t count) {
  if (n == 0 || n > kFewRows || count > kMostOutputs) CUDA_TRY(cudaErrorInvalidValue);
  bool done[kMostOutputs] = {};
  for (uint32_t i = 0; i < count; i++) {  // one launch for all outputs of a type
    if (done[i]) continue;
    const DType type = outputs[i].w->type;
    Multiply job = {};
    job.x = activations(x);
    job.cols = x.cols, job.count = n;
    uint32_t pieces = 0;
    for (uint32_t j = i; j < count; j++) {
      const Output& out = outputs[j];
      if (out.w->type != type) continue;
      done[j] = true;
      job.pieces[pieces++] = {out.w->packed, out.y, out.w->rows, out.y_stride, job.units, out.add};
      job.units += (out.w->rows + kTileRows - 1) / kTileRows;
    }
    for (; pieces < kMostOutputs; pieces++) job.pieces[pieces].first_unit = ~0u;
    CUDA_TRY(with_format(type, [&](auto format) {
      using F = decltype(format);
      return n <= 8 ? start<F, 1>(stream, job) : start<F, 2>(stream, job);
    }));
  }
  return cudaSuccess;
}

cudaError_t prepare_few() {
  CUDA_TRY(for_all_formats([](auto format) -> cudaError_t {
    using F = decltype(format);
    CUDA_TRY(allow_shared_memory(multiply_kernel<F, 1>));
    CUDA_TRY(allow_shared_memory(multiply_kernel<F, 2>));
    return cudaSuccess;
  }));
  CUDA_TRY(prepare_gate_up_few());
  CUDA_TRY(prepare_route_few());
  CUDA_TRY(prepare_head_products());
  return cudaSuccess;
}

}  // namespace perigee::cuda
