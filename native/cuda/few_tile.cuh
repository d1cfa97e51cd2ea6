// What one warp does with one tile of weights in shared memory: 16 rows meet up to 8 * C activation columns on the tensor
// cores, or in plain float arithmetic where weights are floats.
//
// Results lie as the tensor product leaves them: acc[c] = rows g, g, g + 8, g + 8 and columns 2 t, 2 t + 1, 2 t, 2 t + 1
// of columns 8 c ... of lane 4 g + t.
#pragma once
#include "matrix_format.cuh"

namespace perigee::cuda {

// Rows of activations to read. `padded` and `stride` are the row strides of the quantized and the float form.
struct Activations {
  const int8_t* q;
  const float *scale, *sum, *f32;
  uint32_t padded, stride;
};

inline Activations activations(const Rows& x) { return {x.q, x.scale, x.sum, x.f32, padded_cols(x.cols), x.cols}; }

// Which activation row is column g, and which are columns 2 t and 2 t + 1, each with a factor (1 unless weighted).
template <int C>
struct Columns {
  uint32_t of_g[C], of_t[C][2];
  float factor_g[C], factor_t[C][2];
};

// Where the tiles of one run of rows begin.
struct Source {
  const uint8_t* packed;
  uint32_t rows, cols, row_tile;
};

__device__ inline void copy_async(uint8_t* to, const uint8_t* from, bool valid = true) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Integer sums start here and come out as the bits of the float 1.5 * 2^23 + sum, exactly for |sum| < 2^22.
constexpr uint32_t kRaised = 0x4B400000;
__device__ inline float lowered(uint32_t bits) { return __uint_as_float(bits) - 12582912.0f; }

__device__ inline void mma_k32(uint32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(kRaised));
}
__device__ inline void mma_k16(uint32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(b), "r"(kRaised));
}
__device__ inline void mma_tf32(float (&d)[4], const float (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
// The part of a float that the tensor cores see as tf32; the rest is another 13 bits.
__device__ inline float tf32_part(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000); }

template <class T>
struct Quantized {
  static constexpr uint32_t kBytes = T::kBytes, kCols = T::kCols;
  static constexpr float kUnit = T::kUnit;
  static constexpr bool kFloat = false;

  // Brings tile k of the rows into shared memory; the caller commits.
  static __device__ void fetch(uint8_t* to, const Source& from, uint32_t k, uint32_t lane) {
    const uint32_t tiles = (from.cols + kCols - 1) / kCols;
    const uint8_t* tile = from.packed + (uint64_t(from.row_tile) * tiles + k) * kBytes;
#pragma unroll
    for (uint32_t at = 0; at < kBytes; at += 512)
      if (at + 512 <= kBytes || at + lane * 16 < kBytes) copy_async(to + at + lane * 16, tile + at + lane * 16);
  }

  template <int C>
  static __device__ void meet(const uint8_t* tile, uint32_t k, uint32_t, const Activations& x,
                              const Columns<C>& columns, uint32_t lane, float (&acc)[C][4]) {
    const uint32_t g = lane / 4, t = lane % 4, groups = x.padded / 32, col = k * kCols;
    const RowScales<T> scales(tile, g);
    const int8_t* q[C];
    const float* column_scale[C][2];
    for (int c = 0; c < C; c++) {
      q[c] = x.q + uint64_t(columns.of_g[c]) * x.padded + col + (T::kHalves ? 4 : 8) * t;
      for (int i = 0; i < 2; i++) column_scale[c][i] = x.scale + uint64_t(columns.of_t[c][i]) * groups + col / 32;
    }
    float of_column[C][2][4];
#pragma unroll
    for (int s = 0; s < T::kGroups; s++) {
      if (s % 4 == 0) {
        for (int c = 0; c < C; c++) {
          for (int i = 0; i < 2; i++) {
            const float4 four = *reinterpret_cast<const float4*>(column_scale[c][i] + s);
            const float factor = columns.factor_t[c][i];
            of_column[c][i][0] = four.x * factor, of_column[c][i][1] = four.y * factor;
            of_column[c][i][2] = four.z * factor, of_column[c][i][3] = four.w * factor;
          }
        }
      }
      uint32_t a[4];
      read_codes<T>(tile, lane, s, a);
      for (int half = 0; half < (T::kHalves ? 2 : 1); half++) {
        const float row0 = scales.scale(0, s, half), row1 = scales.scale(1, s, half);
        for (int c = 0; c < C; c++) {
          uint32_t d[4];
          if constexpr (T::kHalves) {
            mma_k16(d, a[2 * half], a[2 * half + 1], *reinterpret_cast<const uint32_t*>(q[c] + 32 * s + 16 * half));
          } else {
            const uint2 b = *reinterpret_cast<const uint2*>(q[c] + 32 * s);
            mma_k32(d, a, b.x, b.y);
          }
          const float column0 = of_column[c][0][s % 4], column1 = of_column[c][1][s % 4];
          acc[c][0] = fmaf(lowered(d[0]), row0 * column0, acc[c][0]);
          acc[c][1] = fmaf(lowered(d[1]), row0 * column1, acc[c][1]);
          acc[c][2] = fmaf(lowered(d[2]), row1 * column0, acc[c][2]);
          acc[c][3] = fmaf(lowered(d[3]), row1 * column1, acc[c][3]);
        }
      }
    }
    if constexpr (T::kScales == Scales::K4) subtract_mins<C>(scales, x, col, columns, t, acc);
    if constexpr (T::kScales == Scales::Floats) subtract_float_mins<C>(scales, x, col, columns, acc);
  }

  // The mins' part is itself a product: 16 rows x 8 groups of small integers with the sums of the columns' groups, which
  // take two steps because a tf32 holds 11 bits.
  template <int C>
  static __device__ void subtract_mins(const RowScales<T>& scales, const Activations& x, uint32_t col,
                                       const Columns<C>& columns, uint32_t t, float (&acc)[C][4]) {
    const float mins[4] = {byte_as_float(scales.mins[0][0], t), byte_as_float(scales.mins[1][0], t),
                           byte_as_float(scales.mins[0][1], t), byte_as_float(scales.mins[1][1], t)};
    for (int c = 0; c < C; c++) {
      const float* sums = x.sum + uint64_t(columns.of_g[c]) * (x.padded / 16) + col / 16 + 2 * t;
      const float2 early = *reinterpret_cast<const float2*>(sums), late = *reinterpret_cast<const float2*>(sums + 8);
      const float b0 = (early.x + early.y) * columns.factor_g[c], b1 = (late.x + late.y) * columns.factor_g[c];
      const float high0 = tf32_part(b0), high1 = tf32_part(b1);
      float d[4] = {};
      mma_tf32(d, mins, high0, high1);
      mma_tf32(d, mins, b0 - high0, b1 - high1);
      for (int i = 0; i < 4; i++) acc[c][i] = fmaf(-scales.dmin[i / 2], d[i], acc[c][i]);
    }
  }

  template <int C>
  static __device__ void subtract_float_mins(const RowScales<T>& scales, const Activations& x, uint32_t col,
                                             const Columns<C>& columns, float (&acc)[C][4]) {
#pragma unroll 2
    for (int s = 0; s < T::kGroups; s++) {
      for (int half = 0; half < 2; half++) {
        const float min0 = scales.min(0, s, half), min1 = scales.min(1, s, half);
        for (int c = 0; c < C; c++) {
          for (int i = 0; i < 2; i++) {
            const float sum = columns.factor_t[c][i] *
                              x.sum[uint64_t(columns.of_t[c][i]) * (x.padded / 16) + col / 16 + 2 * s + half];
            acc[c][i] = fmaf(-min0, sum, acc[c][i]);
            acc[c][2 + i] = fmaf(-min1, sum, acc[c][2 + i]);
          }
        }
      }
    }
  }
};

// Rows as in the file: 256 bytes of each of 16 rows, set apart so that eight rows do not meet in one bank.
template <DType kType>
struct Floats {
  static constexpr uint32_t kElement = kType == DType::F32 ? 4 : 2, kRowStride = 272;
  static constexpr uint32_t kBytes = kTileRows * kRowStride, kCols = 256 / kElement;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kFloat = true;

  static __device__ void fetch(uint8_t* to, const Source& from, uint32_t k, uint32_t lane) {
    const uint32_t bytes = from.cols * kElement, at = 256 * k + lane % 16 * 16;
#pragma unroll
    for (uint32_t row = lane / 16; row < kTileRows; row += 2) {
      const uint32_t of = min(from.row_tile * kTileRows + row, from.rows - 1);
      const bool valid = at < bytes;
      copy_async(to + row * kRowStride + lane % 16 * 16, from.packed + uint64_t(of) * bytes + (valid ? at : 0), valid);
    }
  }

  static __device__ float4 four(const uint8_t* at) {
    if constexpr (kType == DType::F32) {
      return *reinterpret_cast<const float4*>(at);
    } else {
      const uint2 bits = *reinterpret_cast<const uint2*>(at);
      if constexpr (kType == DType::F16) {
        const float2 a = __half22float2(reinterpret_cast<const __half2&>(bits.x));
        const float2 b = __half22float2(reinterpret_cast<const __half2&>(bits.y));
        return {a.x, a.y, b.x, b.y};
      } else {
        return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000), __uint_as_float(bits.y << 16),
                __uint_as_float(bits.y & 0xffff0000)};
      }
    }
  }

  template <int C>
  static __device__ void meet(const uint8_t* tile, uint32_t k, uint32_t cols, const Activations& x,
                              const Columns<C>& columns, uint32_t lane, float (&acc)[C][4]) {
    const uint32_t g = lane / 4, here = min(kCols, cols - k * kCols);
    float sum[C][4] = {};
#pragma unroll 4
    for (uint32_t j = 0; j < here; j += 4) {
      const float4 row0 = four(tile + g * kRowStride + j * kElement);
      const float4 row1 = four(tile + (g + 8) * kRowStride + j * kElement);
      for (int c = 0; c < C; c++) {
        for (int i = 0; i < 2; i++) {
          const float* at = x.f32 + uint64_t(columns.of_t[c][i]) * x.stride + k * kCols + j;
          const float4 v = *reinterpret_cast<const float4*>(at);
          sum[c][i] += row0.x * v.x + row0.y * v.y + (row0.z * v.z + row0.w * v.w);
          sum[c][2 + i] += row1.x * v.x + row1.y * v.y + (row1.z * v.z + row1.w * v.w);
        }
      }
    }
    for (int c = 0; c < C; c++)
      for (int i = 0; i < 4; i++) acc[c][i] = fmaf(sum[c][i], columns.factor_t[c][i % 2], acc[c][i]);
  }
};

// Calls use(F()) with what meets weights of a type.
template <typename Use>
auto with_format(DType type, Use use) {
  if (type == DType::F32) return use(Floats<DType::F32>());
  if (type == DType::F16) return use(Floats<DType::F16>());
  if (type == DType::BF16) return use(Floats<DType::BF16>());
  return with_tile(type, [&](auto tile) { return use(Quantized<decltype(tile)>()); });
}

// Calls use(F()) with every format, until one fails.
template <typename Use>
cudaError_t for_all_formats(Use use) {
  for (const DType type : {DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::Q4_K,
                           DType::Q5_K, DType::Q6_K, DType::IQ4_NL})
    if (const cudaError_t code = with_format(type, use); code != cudaSuccess) return code;
  return cudaSuccess;
}

}  // namespace perigee::cuda
