// Products of each head's own small matrix with the head's own activations: keys absorbed into queries, and values out of
// attended latents. Activations are quantized here, by every block for itself: there are few, and it saves a launch.
#include "few.h"
#include "few_team.cuh"
#include "forms.cuh"

namespace perigee::cuda {
namespace {

// n rows of `cols` floats, `stride` apart, quantized into the block's shared memory.
struct HeadRows {
  const float* from;
  uint32_t n, cols, stride;
  uint8_t* shared;

  __host__ __device__ static uint32_t bytes(uint32_t n, uint32_t cols) {
    return n * (padded_cols(cols) + padded_cols(cols) / 32 * 4 + padded_cols(cols) / 16 * 4);
  }
  template <class F>
  __device__ Activations fill() const {
    if constexpr (F::kFloat) return {nullptr, nullptr, nullptr, from, 0, stride};
    const uint32_t padded = padded_cols(cols);
    auto* scale = reinterpret_cast<float*>(shared + n * padded);
    const Rows rows = {cols, nullptr, nullptr, reinterpret_cast<int8_t*>(shared), scale, scale + n * padded / 32};
    const uint32_t chunks = padded / 128;
    for (uint32_t i = threadIdx.x / 32; i < n * chunks; i += blockDim.x / 32) {
      const uint32_t column = i % chunks * 128 + threadIdx.x % 32 * 4;
      const float* at = from + uint64_t(i / chunks) * stride + column;
      write_forms(rows, i / chunks, column, column < cols ? *reinterpret_cast<const float4*>(at) : float4{0, 0, 0, 0});
    }
    __syncthreads();
    return {rows.q, rows.scale, rows.sum, nullptr, padded, 0};
  }
};

// What both have in common: a unit is some rows of one head's matrix, all of whose columns are tokens in order.
template <class F, int C, int kPartsOf>
struct HeadJob {
  static constexpr int kParts = kPartsOf;
  const uint8_t* packed;  // of this head
  uint32_t rows, units, steps, cols, count;
  HeadRows from;
  Activations x;

  __device__ Source source(uint32_t unit, uint32_t part, uint32_t step, uint32_t* tile) const {
    *tile = step;
    return {packed, rows, cols, unit * kParts + part};
  }
  __device__ uint32_t tile(uint32_t step) const { return step; }
  template <int>
  __device__ Columns<C> columns(uint32_t, uint32_t lane) const {
    return columns_in_order<C>(count, lane);
  }
  __device__ void begin() {
    wait_for_previous();
    let_next_start();
    x = from.fill<F>();
  }
};

template <class F, int C>
struct Absorb : HeadJob<F, C, 1> {
  AbsorbFew args;
  uint32_t head, heads;

  __device__ bf16* row_of(uint32_t token) const {
    return args.absorbed + (uint64_t(token) * heads + head) * (this->rows + args.rope_dim);
  }
  __device__ void take(uint32_t unit, uint32_t, uint32_t column, uint32_t row, float value) const {
    const uint32_t at = unit * kTileRows + row;
    if (at < this->rows) row_of(column)[at] = __float2bfloat16(value);
  }
  __device__ void finish(uint32_t, const Team&) const {}
  // The rest of the query, pairs (2 i, 2 i + 1) turned by the position's angles.
  __device__ void rotate() const {
    const uint32_t pairs = args.rope_dim / 2;
    for (uint32_t i = threadIdx.x; i < this->count * pairs; i += blockDim.x) {
      const uint32_t token = i / pairs, pair = i % pairs;
      const uint32_t position = max(args.positions[token], 0);
      const float2 turn = reinterpret_cast<const float2*>(args.rope)[uint64_t(position) * pairs + pair];
      const float2 v =
          reinterpret_cast<const float2*>(this->from.from + uint64_t(token) * this->from.stride + args.nope_dim)[pair];
      reinterpret_cast<__nv_bfloat162*>(row_of(token) + this->rows)[pair] =
          __floats2bfloat162_rn(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
    }
  }
};

template <class F, int C>
struct Expand : HeadJob<F, C, 2> {
  Rows values;
  uint32_t head;
  float (*finished)[32];  // [8 * C] of this team

  __device__ void take(uint32_t, uint32_t part, uint32_t column, uint32_t row, float value) const {
    finished[column][part * kTileRows + row] = value;
  }
  __device__ void finish(uint32_t unit, const Team& team) const {
    team.meet();
    const uint32_t lane = threadIdx.x % 32, at = head * this->rows + unit * 32 + lane % 8 * 4;
    for (uint32_t first = 4 * team.rank; first < this->count; first += 4 * team.width) {  // eight lanes a column
      const uint32_t column = min(first + lane / 8, this->count - 1);
      write_forms(values, column, at, *reinterpret_cast<const float4*>(&finished[column][lane % 8 * 4]));
      if (head * this->rows + unit * 32 + 32 == values.cols)
        for (uint32_t behind = values.cols; behind < padded_cols(values.cols); behind += 32)
          write_forms(values, column, behind + lane % 8 * 4, {0.0f, 0.0f, 0.0f, 0.0f});
    }
    team.meet();
  }
};

template <class F, int C>
__device__ uint8_t* behind_rings(uint8_t* shared) {
  return shared + blockDim.x / 32 * kBytesOfWarp<F, C>;
}

template <class F, int C>
__global__ void __launch_bounds__(32 * kMostWarps)
    absorb_kernel(const Matrix k_b, const __grid_constant__ AbsorbFew args, uint32_t n, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t head = blockIdx.y, query = args.nope_dim + args.rope_dim;
  Absorb<F, C> job;
  job.packed = k_b.packed + head * k_b.stride;
  job.rows = k_b.rows, job.cols = k_b.cols, job.count = n;
  job.units = (k_b.rows + kTileRows - 1) / kTileRows, job.steps = (k_b.cols + F::kCols - 1) / F::kCols;
  job.from = {args.q + head * query, n, args.nope_dim, k_b.count * query, behind_rings<F, C>(shared)};
  job.args = args, job.head = head, job.heads = k_b.count;
  run<F, C>(job, Team(cut), shared);
  if (blockIdx.x == 0) job.rotate();
}

template <class F, int C>
__global__ void __launch_bounds__(32 * kMostWarps)
    expand_kernel(const Matrix v_b, const float* latent, const Rows values, uint32_t n, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ __align__(16) float finished[kMostTeams][8 * C][32];
  const uint32_t head = blockIdx.y;
  const Team team(cut);
  Expand<F, C> job;
  job.packed = v_b.packed + head * v_b.stride;
  job.rows = v_b.rows, job.cols = v_b.cols, job.count = n;
  job.units = v_b.rows / 32, job.steps = (v_b.cols + F::kCols - 1) / F::kCols;
  job.from = {latent + head * v_b.cols, n, v_b.cols, v_b.count * v_b.cols, behind_rings<F, C>(shared)};
  job.values = values, job.head = head, job.finished = finished[team.in_block];
  run<F, C>(job, team, shared);
}

// Teams of all heads, and those of one head as the grid's x.
template <class F, int C>
Cut cut_heads(const Matrix& w, uint32_t rows_a_unit) {
  const uint32_t units = (w.rows + rows_a_unit - 1) / rows_a_unit;
  Cut how = cut(units * w.count, (w.cols + F::kCols - 1) / F::kCols, kBytesOfWarp<F, C>);
  how.teams = std::min(units, (how.teams + w.count - 1) / w.count);
  return how;
}

template <class F, int C>
cudaError_t start_absorb(cudaStream_t stream, uint32_t n, const AbsorbFew& args) {
  const Matrix& k_b = *args.k_b;
  const Cut how = cut_heads<F, C>(k_b, kTileRows);
  const size_t bytes = how.warps() * kBytesOfWarp<F, C> + HeadRows::bytes(n, k_b.cols);
  CUDA_TRY(launch({how.grid(k_b.count), how.threads(), bytes, stream}, absorb_kernel<F, C>, k_b, args, n, how));
  return cudaSuccess;
}

template <class F, int C>
cudaError_t start_expand(cudaStream_t stream, uint32_t n, const Matrix& v_b, const float* latent, const Rows& values) {
  const Cut how = cut_heads<F, C>(v_b, 32);
  const size_t bytes = how.warps() * kBytesOfWarp<F, C> + HeadRows::bytes(n, v_b.cols);
  CUDA_TRY(
      launch({how.grid(v_b.count), how.threads(), bytes, stream}, expand_kernel<F, C>, v_b, latent, values, n, how));
  return cudaSuccess;
}

}  // namespace

cudaError_t absorb_few(cudaStream_t stream, uint32_t n, const AbsorbFew& args) {
  if (n == 0 || n > kFewRows) CUDA_TRY(cudaErrorInvalidValue);
  return with_format(args.k_b->type, [&](auto format) {
    using F = decltype(format);
    return n <= 8 ? start_absorb<F, 1>(stream, n, args) : start_absorb<F, 2>(stream, n, args);
  });
}

cudaError_t expand_few(cudaStream_t stream, uint32_t n, const Matrix& v_b, const float* latent, const Rows& values) {
  if (n == 0 || n > kFewRows || v_b.rows % 32 != 0) CUDA_TRY(cudaErrorInvalidValue);
  return with_format(v_b.type, [&](auto format) {
    using F = decltype(format);
    return n <= 8 ? start_expand<F, 1>(stream, n, v_b, latent, values)
                  : start_expand<F, 2>(stream, n, v_b, latent, values);
  });
}

cudaError_t prepare_head_products() {
  return for_all_formats([](auto format) -> cudaError_t {
    using F = decltype(format);
    CUDA_TRY(allow_shared_memory(absorb_kernel<F, 1>));
    CUDA_TRY(allow_shared_memory(absorb_kernel<F, 2>));
    CUDA_TRY(allow_shared_memory(expand_kernel<F, 1>));
    CUDA_TRY(allow_shared_memory(expand_kernel<F, 2>));
    return cudaSuccess;
  });
}

}  // namespace perigee::cuda
