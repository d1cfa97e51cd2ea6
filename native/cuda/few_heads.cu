// Products of each head's own small matrix with the head's own activations: keys absorbed into queries, and values out of
// attended latents. Activations are quantized here, by every block for itself: there are few, and it saves a launch.
#include "few.h"
#include "few_team.cuh"
#include "forms.cuh"

namespace perigee::cuda {
namespace {

// What both have in common: a unit is some rows of one head's matrix, which meets `count` rows of `cols` floats, x.stride
// apart. They are quantized on their way into shared memory.
template <int kPartsOf>
struct HeadJob : InOrder {
  static constexpr int kParts = kPartsOf;
  const uint8_t* packed;  // of this head
  uint32_t rows;

  __device__ Source source(uint32_t unit, uint32_t part, uint32_t step, uint32_t* tile) const {
    *tile = step;
    return {packed, rows, cols, unit * kParts + part};
  }
  template <class F, int N>
  __device__ void stage(uint8_t* to, uint32_t first, uint32_t some) const {
    if constexpr (F::kFloat) {
      F::template stage<N>(to, *this, first, some);
    } else {
      quantize<F, N>(to, first, some);
    }
  }

  // A warp takes 128 columns of a token, eight lanes a group of 32.
  template <class F, int N>
  __device__ void quantize(uint8_t* to, uint32_t first, uint32_t some) const {
    const uint32_t lane = threadIdx.x % 32, pieces = some * (F::kCols / 128);
    for (uint32_t i = threadIdx.x / 32; i < pieces * N; i += blockDim.x / 32) {
      const uint32_t token = i % N, column = i / N * 128 + lane * 4, from = first * F::kCols + column;
      float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
      if (token < count && from < cols) v = *reinterpret_cast<const float4*>(x.f32 + uint64_t(token) * x.stride + from);
      float peak = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
      for (int lanes = 4; lanes > 0; lanes /= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, lanes));
      const float scale = peak < kSmallestPeak ? 0.0f : peak / 127.0f, inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
      const int q[4] = {__float2int_rn(v.x * inverse), __float2int_rn(v.y * inverse), __float2int_rn(v.z * inverse),
                        __float2int_rn(v.w * inverse)};
      int sum = q[0] + q[1] + q[2] + q[3];
      for (uint32_t lanes = F::kStep / 8; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
      const uint32_t unit = column % F::kCols / F::kStep * N + token;
      uint8_t* tile = to + column / F::kCols * F::template kMet<N>;
      *reinterpret_cast<char4*>(tile + unit * F::kStep + column % F::kStep) = make_char4(q[0], q[1], q[2], q[3]);
      auto* factors = reinterpret_cast<float*>(tile + F::kUnits * N * F::kStep);
      if (column % F::kStep == 0) {
        factors[unit] = scale;
        if constexpr (F::kHasMins) factors[F::kUnits * N + unit] = scale * sum;
      }
    }
  }
};

struct Absorb : HeadJob<1> {
  AbsorbFew args;
  uint32_t head, heads;

  __device__ bf16* row_of(uint32_t token) const {
    return args.absorbed + (uint64_t(token) * heads + head) * (rows + args.rope_dim);
  }
  __device__ void take(uint32_t unit, uint32_t, uint32_t token, uint32_t row, float value) const {
    const uint32_t at = unit * kTileRows + row;
    if (at < rows) row_of(token)[at] = __float2bfloat16(value);
  }
  __device__ void finish(uint32_t, const Team&) const {}
  // The rest of the query, pairs (2 i, 2 i + 1) turned by the position's angles.
  __device__ void rotate() const {
    const uint32_t pairs = args.rope_dim / 2;
    for (uint32_t i = threadIdx.x; i < count * pairs; i += blockDim.x) {
      const uint32_t token = i / pairs, pair = i % pairs;
      const uint32_t position = max(args.positions[token], 0);
      const float2 turn = reinterpret_cast<const float2*>(args.rope)[uint64_t(position) * pairs + pair];
      const float2 v = reinterpret_cast<const float2*>(x.f32 + uint64_t(token) * x.stride + args.nope_dim)[pair];
      reinterpret_cast<__nv_bfloat162*>(row_of(token) + rows)[pair] =
          __floats2bfloat162_rn(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
    }
  }
};

template <int N>
struct Expand : HeadJob<2> {
  Rows values;
  uint32_t head;
  float (*finished)[32];  // [N] of this team

  __device__ void take(uint32_t, uint32_t part, uint32_t token, uint32_t row, float value) const {
    finished[token][part * kTileRows + row] = value;
  }
  __device__ void finish(uint32_t unit, const Team& team) const {
    team.meet();
    const uint32_t lane = threadIdx.x % 32, at = lane % 8 * 4, first_column = head * rows + unit * 32;
    for (uint32_t first = 4 * team.rank; first < count; first += 4 * team.width) {  // eight lanes a token
      const uint32_t token = min(first + lane / 8, count - 1);
      write_forms(values, token, first_column + at, *reinterpret_cast<const float4*>(&finished[token][at]));
      if (first_column + 32 == values.cols)
        for (uint32_t behind = values.cols; behind < padded_cols(values.cols); behind += 32)
          write_forms(values, token, behind + at, {0.0f, 0.0f, 0.0f, 0.0f});
    }
  }
};

// What both kernels fill in alike: the matrix of a head, and its rows of activations in x.f32.
template <class F, class Job>
__device__ void fill(Job& job, const Matrix& w, uint32_t n, const float* from, uint32_t stride, uint32_t rows_a_unit) {
  job.x = {nullptr, nullptr, nullptr, from, 0, stride};
  job.units = (w.rows + rows_a_unit - 1) / rows_a_unit, job.steps = (w.cols + F::kCols - 1) / F::kCols;
  job.cols = w.cols, job.count = n;
  job.packed = w.packed + blockIdx.y * w.stride, job.rows = w.rows;
}

template <class F, int N>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    absorb_kernel(const Matrix k_b, const __grid_constant__ AbsorbFew args, uint32_t n, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t query = args.nope_dim + args.rope_dim;
  Absorb job;
  fill<F>(job, k_b, n, args.q + blockIdx.y * query, k_b.count * query, kTileRows);
  job.args = args, job.head = blockIdx.y, job.heads = k_b.count;
  run<F, N>(job, cut, shared);
  if (blockIdx.x == 0) job.rotate();
}

template <class F, int N>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    expand_kernel(const Matrix v_b, const float* latent, const Rows values, uint32_t n, Cut cut) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ __align__(16) float finished[kMostTeams][N][32];
  Expand<N> job;
  fill<F>(job, v_b, n, latent + blockIdx.y * v_b.cols, v_b.count * v_b.cols, 32);
  job.values = values, job.head = blockIdx.y, job.finished = finished[threadIdx.x / 32 / cut.width];
  run<F, N>(job, cut, shared);
}

// Teams of all heads, and those of one head as the grid's x.
template <class F, int N>
Cut cut_heads(const Matrix& w, uint32_t parts) {
  const uint32_t units = (w.rows + parts * kTileRows - 1) / (parts * kTileRows);
  Cut how = cut(cut_of<F, N>(units * w.count, parts, (w.cols + F::kCols - 1) / F::kCols));
  how.teams = std::min(units, (how.teams + w.count - 1) / w.count);
  return how;
}

template <class F, int N>
cudaError_t start_absorb(cudaStream_t stream, uint32_t n, const AbsorbFew& args) {
  const Matrix& k_b = *args.k_b;
  const Cut how = cut_heads<F, N>(k_b, 1);
  CUDA_TRY(launch({how.grid(k_b.count), how.threads(), how.bytes, stream}, absorb_kernel<F, N>, k_b, args, n, how));
  return cudaSuccess;
}

template <class F, int N>
cudaError_t start_expand(cudaStream_t stream, uint32_t n, const Matrix& v_b, const float* latent, const Rows& values) {
  const Cut how = cut_heads<F, N>(v_b, 2);
  CUDA_TRY(launch({how.grid(v_b.count), how.threads(), how.bytes, stream}, expand_kernel<F, N>, v_b, latent, values, n,
                  how));
  return cudaSuccess;
}

}  // namespace

cudaError_t absorb_few(cudaStream_t stream, uint32_t n, const AbsorbFew& args) {
  if (n == 0 || n > kFewRows) CUDA_TRY(cudaErrorInvalidValue);
  if (n > kMostTokens) {
    CUDA_TRY(absorb_few(stream, kMostTokens, args));
    AbsorbFew rest = args;
    const uint64_t first = uint64_t(kMostTokens) * args.k_b->count;
    rest.q += first * (args.nope_dim + args.rope_dim), rest.positions += kMostTokens;
    rest.absorbed += first * (args.k_b->rows + args.rope_dim);
    return absorb_few(stream, n - kMostTokens, rest);
  }
  return with_kernel(args.k_b->type, n, [&](auto format, auto tokens) {
    return start_absorb<decltype(format), decltype(tokens)::value>(stream, n, args);
  });
}

cudaError_t expand_few(cudaStream_t stream, uint32_t n, const Matrix& v_b, const float* latent, const Rows& values) {
  if (n == 0 || n > kFewRows || v_b.rows % 32 != 0) CUDA_TRY(cudaErrorInvalidValue);
  if (n > kMostTokens) {
    CUDA_TRY(expand_few(stream, kMostTokens, v_b, latent, values));
    return expand_few(stream, n - kMostTokens, v_b, latent + uint64_t(kMostTokens) * v_b.count * v_b.cols,
                      rows_from(values, kMostTokens));
  }
  return with_kernel(v_b.type, n, [&](auto format, auto tokens) {
    return start_expand<decltype(format), decltype(tokens)::value>(stream, n, v_b, latent, values);
  });
}

cudaError_t prepare_head_products() {
  return for_all_kernels([](auto format, auto tokens) -> cudaError_t {
    using F = decltype(format);
    CUDA_TRY(allow_shared_memory(absorb_kernel<F, decltype(tokens)::value>));
    CUDA_TRY(allow_shared_memory(expand_kernel<F, decltype(tokens)::value>));
    return cudaSuccess;
  });
}

}  // namespace perigee::cuda
