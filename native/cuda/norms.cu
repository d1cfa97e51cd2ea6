// Residual, norm and the forms of the normed row; and forms alone.
#include "exchange.cuh"
#include "forms.cuh"
#include "launch.cuh"
#include "norms.cuh"
#include "stages.h"

namespace perigee::cuda {
namespace {

constexpr uint32_t kMostWaiting = 2;  // rows whose blocks wait for the CPU by themselves

__device__ float4 add(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// A row stays in registers, kPer vectors of four a thread. kParts blocks, a cluster, share it: one multiprocessor alone
// would be busy moving a row of Kimi K2 for longer than the rest takes.
template <int kPer, uint32_t kParts>
__global__ void __launch_bounds__(1024) add_norm_kernel(const AddNorm args) {
  const uint32_t cols = args.out.cols, part = blockIdx.x % kParts, out_row = blockIdx.x / kParts;
  float4 weight[kPer], x[kPer], a[kPer] = {}, b[kPer] = {};
#pragma unroll
  for (int p = 0; p < kPer; p++) weight[p] = load_or_zero(args.weight, column_of(p, part, kParts), cols);
  wait_for_previous();
  let_next_start();
  const uint32_t row = args.rows ? args.rows[out_row] : out_row;
  const size_t at = size_t(row) * cols;
#pragma unroll
  for (int p = 0; p < kPer; p++) {
    const uint32_t column = column_of(p, part, kParts);
    x[p] = load_or_zero(args.x + at, column, cols);
    if (args.a) a[p] = load_or_zero(args.a + at, column, cols);
  }
  if (args.b_after.number) {
    // One warp alone looks: every look is a read over the bus.
    if (part == 0 && threadIdx.x < 32) await_done(args.b_after);
    meet_parts<kParts>();
  }
  if (args.b) {
    // Never from a cache: the CPU may have written it since an earlier step read the same address.
#pragma unroll
    for (int p = 0; p < kPer; p++) {
      const uint32_t column = column_of(p, part, kParts);
      if (column < cols) b[p] = __ldcv(reinterpret_cast<const float4*>(args.b + at + column));
    }
  }
#pragma unroll
  for (int p = 0; p < kPer; p++) {
    const uint32_t column = column_of(p, part, kParts);
    x[p] = add(add(x[p], a[p]), b[p]);
    if ((args.a || args.b) && column < cols) *reinterpret_cast<float4*>(args.x + at + column) = x[p];
  }
  const float scale = norm_scale<kPer, kParts>(x, cols, args.eps);
#pragma unroll
  for (int p = 0; p < kPer; p++) {
    const uint32_t column = column_of(p, part, kParts);
    if (column < padded_cols(cols)) write_forms(args.out, out_row, column, normed(x[p], scale, weight[p]));
  }
}

template <uint32_t kParts>
cudaError_t launch_add_norm(cudaStream_t stream, const AddNorm& args) {
  const RowShape shape = row_shape(padded_cols(args.out.cols) / 4, kParts);
  const Launch how = {args.n * kParts, shape.threads, 0, stream, kParts};
  if (shape.per == 1) {
    CUDA_TRY(launch(how, add_norm_kernel<1, kParts>, args));
  } else if (shape.per == 2) {
    CUDA_TRY(launch(how, add_norm_kernel<2, kParts>, args));
  } else {
    CUDA_TRY(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

constexpr uint32_t kClusterParts = 4;

// Whether rows are shared by clusters of blocks, which there are from sm_90 on. Short ones are not worth it.
cudaError_t shares_rows(uint32_t cols, bool* shared) {
  int device, major;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  *shared = major >= 9 && cols >= 4096;
  return cudaSuccess;
}

__device__ float silu(float x) { return x / (1.0f + expf(-x)); }

// Good to bf16's eight bits: the exact one would cost more than the memory's time.
__device__ float silu_roughly(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// `up` null: the values of `gate` as they are.
__global__ void __launch_bounds__(256) forms_kernel(const float* gate, const float* up, const Rows rows) {
  wait_for_previous();
  let_next_start();
  const uint32_t column = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
  if (column >= padded_cols(rows.cols)) return;
  const size_t at = size_t(blockIdx.x) * rows.cols;
  float4 v = load_or_zero(gate + at, column, rows.cols);
  if (up) {
    const float4 u = load_or_zero(up + at, column, rows.cols);
    v = {silu(v.x) * u.x, silu(v.y) * u.y, silu(v.z) * u.z, silu(v.w) * u.w};
  }
  write_forms(rows, blockIdx.x, column, v);
}

cudaError_t launch_forms(cudaStream_t stream, const float* gate, const float* up, const Rows& rows, uint32_t n) {
  if (n == 0) return cudaSuccess;
  const uint32_t vectors = padded_cols(rows.cols) / 4, threads = vectors < 256 ? vectors : 256;
  CUDA_TRY(launch({{n, (vectors + threads - 1) / threads}, threads, 0, stream}, forms_kernel, gate, up, rows));
  return cudaSuccess;
}

// silu(gate) * up of rows [2 * width], eight columns a thread.
__global__ void __launch_bounds__(256) silu_mul_kernel(const bf16* gate_up, size_t count, uint32_t width, bf16* mid) {
  wait_for_previous();
  let_next_start();
  const size_t i = 8 * (blockIdx.x * size_t(blockDim.x) + threadIdx.x);
  if (i >= count) return;
  const size_t row = i / width;
  union Eight {
    uint4 bits;
    __nv_bfloat162 pairs[4];
  } gate, up, out;
  gate.bits = *reinterpret_cast<const uint4*>(gate_up + i + row * width);
  up.bits = *reinterpret_cast<const uint4*>(gate_up + i + (row + 1) * width);
#pragma unroll
  for (int p = 0; p < 4; p++) {
    const float2 g = __bfloat1622float2(gate.pairs[p]), u = __bfloat1622float2(up.pairs[p]);
    out.pairs[p] = __floats2bfloat162_rn(silu_roughly(g.x) * u.x, silu_roughly(g.y) * u.y);
  }
  *reinterpret_cast<uint4*>(mid + i) = out.bits;
}

}  // namespace

cudaError_t add_norm(cudaStream_t stream, const AddNorm& args) {
  if (args.n == 0) return cudaSuccess;
  AddNorm now = args;
  // Many blocks must not all look at the CPU's words.
  if (args.b_after.number && args.n > kMostWaiting) {
    CUDA_TRY(await_experts(stream, args.b_after.exchange, args.b_after.number, args.b_after.milliseconds));
    now.b_after = {};
  }
  bool shared = false;
  CUDA_TRY(shares_rows(args.out.cols, &shared));
  return shared ? launch_add_norm<kClusterParts>(stream, now) : launch_add_norm<1>(stream, now);
}

cudaError_t silu_mul(cudaStream_t stream, const bf16* gate_up, uint32_t n, uint32_t width, bf16* mid) {
  const size_t count = size_t(n) * width;
  if (count == 0) return cudaSuccess;
  CUDA_TRY(launch({static_cast<uint32_t>((count / 8 + 255) / 256), 256, 0, stream}, silu_mul_kernel, gate_up, count,
                  width, mid));
  return cudaSuccess;
}

cudaError_t silu_mul(cudaStream_t stream, const float* gate, const float* up, uint32_t n, const Rows& mid) {
  return launch_forms(stream, gate, up, mid, n);
}

cudaError_t fill_forms(cudaStream_t stream, const Rows& rows, uint32_t n) {
  Rows others = rows;
  others.f32 = nullptr;
  return launch_forms(stream, rows.f32, nullptr, others, n);
}

}  // namespace perigee::cuda
