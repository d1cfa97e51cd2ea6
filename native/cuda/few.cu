// y = W x for few rows of x: teams own 16 rows of an output each, whatever outputs share the launch.
#include "few.h"
#include "few_team.cuh"

namespace perigee::cuda {

// The least steps that a warp has to take, over blocks that share a multiprocessor by four, two or alone. Many small
// blocks let the next kernel's blocks begin earlier; few large ones bring the activations in less often.
Cut cut(const CutOf& of) {
  int device = 0, multiprocessors = 1, shared = 0, block_shared = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const auto up = [](uint32_t a, uint32_t b) { return (a + b - 1) / b; };
  constexpr uint32_t kBlocks[] = {2, 4, 1};
  Cut best = {};
  uint32_t least = ~0u;
  for (const uint32_t blocks : kBlocks) {
    const uint32_t room =
        std::min(block_shared - kStaticBytes, shared / blocks - 1024 - (blocks == 1 ? kStaticBytes : 2048));
    for (uint32_t width = 1; width <= std::min(kMostWarps / blocks, std::max(of.steps, 1u)); width++) {
      Cut cut = {width, std::min(kMostTeams, kMostWarps / blocks / width)};
      const uint32_t teams = multiprocessors * blocks * cut.per_block, each = up(of.units, teams);
      cut.teams = up(of.units, each);
      cut.stages = std::min(of.most_stages, each * of.parts * up(of.steps, width));
      const uint32_t fixed = cut.per_block * width * (cut.stages * of.tile_bytes + of.partial_bytes);
      if (fixed >= room) continue;
      cut.chunk = std::min(std::max(of.steps, 1u), (room - fixed) / of.met_bytes);
      if (cut.chunk < of.steps) cut.chunk -= cut.chunk % width;
      if (cut.chunk == 0) continue;
      cut.bytes = fixed + cut.chunk * of.met_bytes;
      // Activations that do not fit are brought in again for each unit and part.
      const uint32_t steps = each * of.parts * up(of.steps, width) * (cut.chunk < of.steps ? 3 : 2);
      if (steps < least) least = steps, best = cut;
    }
  }
  return best;
}

namespace {

struct Piece {
  const uint8_t* packed;
  float* y;
  uint32_t rows, stride, first_unit;
  bool add;
};

struct Multiply : InOrder {
  static constexpr int kParts = 1;
  Piece pieces[kMostOutputs];

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
  template <class F, int N>
  __device__ void stage(uint8_t* to, uint32_t first, uint32_t some) const {
    F::template stage<N>(to, *this, first, some);
  }
  __device__ void take(uint32_t unit, uint32_t, uint32_t token, uint32_t row, float value) const {
    const Piece& of = piece(unit);
    const uint32_t at = (unit - of.first_unit) * kTileRows + row;
    if (at >= of.rows) return;
    float* y = of.y + uint64_t(token) * of.stride + at;
    *y = of.add ? *y + value : value;
  }
  __device__ void finish(uint32_t, const Team&) const {}
};

template <class F, int N>
__global__ void __launch_bounds__(32 * kMostWarps, 1) multiply_kernel(const __grid_constant__ Multiply job, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  run<F, N>(job, cut, shared);
}

template <class F, int N>
cudaError_t start(cudaStream_t stream, Multiply job) {
  job.steps = (job.cols + F::kCols - 1) / F::kCols;
  const Cut how = cut(cut_of<F, N>(job.units, 1, job.steps));
  CUDA_TRY(launch({how.grid(), how.threads(), how.bytes, stream}, multiply_kernel<F, N>, job, how));
  return cudaSuccess;
}

}  // namespace

cudaError_t multiply_few(cudaStream_t stream, const Rows& x, uint32_t n, const Output* outputs, uint32_t count) {
  if (n == 0 || n > kFewRows || count > kMostOutputs) CUDA_TRY(cudaErrorInvalidValue);
  if (n > kMostTokens) {
    CUDA_TRY(multiply_few(stream, x, kMostTokens, outputs, count));
    Output rest[kMostOutputs];
    for (uint32_t i = 0; i < count; i++) {
      rest[i] = outputs[i];
      rest[i].y += uint64_t(kMostTokens) * outputs[i].y_stride;
    }
    return multiply_few(stream, rows_from(x, kMostTokens), n - kMostTokens, rest, count);
  }
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
    CUDA_TRY(with_kernel(type, n, [&](auto format, auto tokens) {
      using F = decltype(format);
      constexpr int N = decltype(tokens)::value;
      return N > 4 && n <= 4 ? start<F, 4>(stream, job) : start<F, N>(stream, job);
    }));
  }
  return cudaSuccess;
}

cudaError_t prepare_few() {
  CUDA_TRY(for_all_kernels([](auto format, auto tokens) -> cudaError_t {
    using F = decltype(format);
    CUDA_TRY(allow_shared_memory(multiply_kernel<F, decltype(tokens)::value>));
    CUDA_TRY(allow_shared_memory(multiply_kernel<F, 4>));
    return cudaSuccess;
  }));
  CUDA_TRY(prepare_gate_up_few());
  CUDA_TRY(prepare_route_few());
  CUDA_TRY(prepare_head_products());
  return cudaSuccess;
}

}  // namespace perigee::cuda
