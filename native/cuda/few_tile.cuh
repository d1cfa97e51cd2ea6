// What one warp does with one tile of weights in shared memory: 16 rows meet N tokens (1, 2, 4 or 8) on the tensor
// cores, or in plain float arithmetic where weights are floats.
//
// A tensor product has eight columns, of which few tokens would leave most idle. So a column is a pair (unit of 32 or 16
// weight columns that share a scale, token), and eight of them go into one set of sums: with one token, eight units. Each
// product still adds one unit; the columns of other units see zeros. What follows the products (scales, conversion) is
// then done once for eight units instead of eight times.
//
// Activations lie in shared memory in this order too, tile by tile: values [unit][token], then scales [unit][token], then
// sums. Sums come out as acc = rows g, g, g + 8, g + 8 and columns 2 t, 2 t + 1, 2 t, 2 t + 1 in lane 4 g + t.
#pragma once
#include <algorithm>
#include <type_traits>

#include "few.h"
#include "few_scales.cuh"

namespace perigee::cuda {

// Rows of activations to read; the strides of the quantized and of the float form.
struct Activations {
  const int8_t* q;
  const float *scale, *sum, *f32;
  uint32_t padded, stride;
};
inline Activations activations(const Rows& x) { return {x.q, x.scale, x.sum, x.f32, padded_cols(x.cols), x.cols}; }

// What a token's column holds at a step: the activations of `row` that weight tile `tile` meets, times factor. No row: zeros.
struct Meeting {
  int32_t row;
  uint32_t tile;
  float factor;
};

// Where the tiles of one run of 16 rows begin.
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
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma_k16(uint32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
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
  static constexpr uint32_t kStep = T::kHalves ? 16 : 32, kUnits = kCols / kStep;
  static constexpr int kLeast = kUnits < 8 ? 8 / kUnits : 1;  // tokens: a tile has to fill eight columns
  static constexpr bool kHasMins = T::kScales == Scales::K4 || T::kScales == Scales::Floats;

  // Bytes of the activations that a tile meets.
  template <int N>
  static constexpr uint32_t kMet = kUnits * N * (kStep + 4 + (kHasMins ? 4 : 0));

  // Brings tile k of the rows into shared memory; the caller commits.
  static __device__ void fetch(uint8_t* to, const Source& from, uint32_t k, uint32_t lane) {
    const uint32_t tiles = (from.cols + kCols - 1) / kCols;
    const uint8_t* tile = from.packed + (uint64_t(from.row_tile) * tiles + k) * kBytes + lane * 16;
    to += lane * 16;
#pragma unroll
    for (uint32_t at = 0; at < kBytes; at += 512)
      if (at + 512 <= kBytes || at + lane * 16 < kBytes) copy_async(to + at, tile + at);
  }

  // Brings the activations of steps first .. first + tiles into shared memory; all threads of the block, which then wait
  // for all their copies.
  template <int N, class Job>
  static __device__ void stage(uint8_t* to, const Job& job, uint32_t first, uint32_t tiles) {
    constexpr uint32_t kHalf = kStep / 16, kPieces = kUnits * N * kHalf;  // pieces of 16 bytes
    const Activations& x = job.x;
    for (uint32_t i = threadIdx.x; i < tiles * kPieces; i += blockDim.x) {
      const uint32_t tile = i / kPieces, at = i % kPieces, token = at / kHalf % N;
      const Meeting meeting = job.meeting(first + tile, token);
      const uint32_t column = meeting.tile * kCols + at / (kHalf * N) * kStep + at % kHalf * 16;
      copy_async(to + tile * kMet<N> + at * 16,
                 reinterpret_cast<const uint8_t*>(x.q) + uint64_t(max(meeting.row, 0)) * x.padded + column,
                 meeting.row >= 0);
    }
    commit_copies();
    constexpr uint32_t kFactors = kUnits * N;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < tiles * kFactors; i += blockDim.x) {
      const uint32_t tile = i / kFactors, at = i % kFactors;
      const Meeting meeting = job.meeting(first + tile, at % N);
      const uint64_t column = uint64_t(max(meeting.row, 0)) * x.padded + meeting.tile * kCols + at / N * kStep;
      auto* factors = reinterpret_cast<float*>(to + tile * kMet<N> + kFactors * kStep);
      factors[at] = meeting.row < 0 ? 0.0f : meeting.factor * x.scale[column / 32];
      if constexpr (kHasMins) {
        const float sum = kStep == 32 ? x.sum[column / 16] + x.sum[column / 16 + 1] : x.sum[column / 16];
        factors[kFactors + at] = meeting.row < 0 ? 0.0f : meeting.factor * sum;
      }
    }
  }

  template <int N>
  static __device__ void meet(const uint8_t* tile, const uint8_t* met, uint32_t lane, float (&acc)[4]) {
    constexpr int kSpan = 8 / N;
    const uint32_t g = lane / 4, t = lane % 4;
    const LaneScales<T, N> scales(tile, g, t);
    const auto* factors = reinterpret_cast<const float*>(met + kUnits * N * kStep);
    float sums[4] = {};
#pragma unroll
    for (int base = 0; base < int(kUnits); base += kSpan) {
      const int set = base / kSpan;
      uint32_t d[4] = {kRaised, kRaised, kRaised, kRaised}, odd[4] = {}, b[2];
      if constexpr (T::kHalves) {
        b[0] = *reinterpret_cast<const uint32_t*>(met + set * 128 + lane * 4);
      } else {
        const uint2 both = *reinterpret_cast<const uint2*>(met + set * 256 + lane * 8);
        b[0] = both.x, b[1] = both.y;
      }
      for (int j = 0; j < kSpan; j++) {
        const int unit = base + j;
        const bool mine = kSpan == 1 || g / N == uint32_t(j);
        auto& to = j % 2 ? odd : d;  // products that follow each other need not wait for each other
        uint32_t a[4];
        read_codes<T>(tile, lane, T::kHalves ? unit / 2 : unit, a);
        if constexpr (T::kHalves) mma_k16(to, a[unit % 2 * 2], a[unit % 2 * 2 + 1], mine ? b[0] : 0);
        else mma_k32(to, a, mine ? b[0] : 0, mine ? b[1] : 0);
      }
      if constexpr (kSpan > 1)
        for (int i = 0; i < 4; i++) d[i] += odd[i];
      const float2 factor = *reinterpret_cast<const float2*>(factors + set * 8 + 2 * t);
      for (int row = 0; row < 2; row++) {
        const float scale0 = scales.scale(row, base, 0), scale1 = N == 1 ? scales.scale(row, base, 1) : scale0;
        sums[2 * row] = fmaf(lowered(d[2 * row]), scale0 * factor.x, sums[2 * row]);
        sums[2 * row + 1] = fmaf(lowered(d[2 * row + 1]), scale1 * factor.y, sums[2 * row + 1]);
      }
      if constexpr (T::kScales == Scales::Floats) {
        const float2 sum = *reinterpret_cast<const float2*>(factors + kUnits * N + set * 8 + 2 * t);
        for (int row = 0; row < 2; row++) {
          sums[2 * row] = fmaf(-scales.min(row, base, 0), sum.x, sums[2 * row]);
          sums[2 * row + 1] = fmaf(-scales.min(row, base, 1), sum.y, sums[2 * row + 1]);
        }
      }
    }
    if constexpr (T::kScales == Scales::K4) subtract_mins<N>(scales, factors + kUnits * N, g, t, sums);
    for (int i = 0; i < 4; i++) {
      if constexpr (T::kScales == Scales::K6) acc[i] = fmaf(scales.d[i / 2], sums[i], acc[i]);
      else acc[i] += sums[i];
    }
  }

  // The mins' part is itself a product: 16 rows x 8 units of small integers with the units' sums, which take two steps
  // because a tf32 holds 11 bits.
  template <int N>
  static __device__ void subtract_mins(const LaneScales<T, N>& scales, const float* unit_sums, uint32_t g, uint32_t t,
                                       float (&sums)[4]) {
    float mins[4];
    for (int i = 0; i < 4; i++) mins[i] = byte_as_float(scales.mins[i % 2][i / 2], t);
    const float* at = unit_sums + t * N + g % N;
    const float b0 = g < N ? at[0] : 0.0f, b1 = g < N ? at[4 * N] : 0.0f;
    const float high0 = tf32_part(b0), high1 = tf32_part(b1);
    float d[4] = {}, low[4] = {};
    mma_tf32(d, mins, high0, high1);
    mma_tf32(low, mins, b0 - high0, b1 - high1);
    for (int i = 0; i < 4; i++) sums[i] = fmaf(-scales.dmin[i / 2], d[i] + low[i], sums[i]);
  }
};

// Rows as in the file: 256 bytes of each of 16 rows, set apart so that eight rows do not meet in one bank. A unit is four
// columns, and activations are floats.
template <DType kType>
struct Floats {
  static constexpr uint32_t kElement = kType == DType::F32 ? 4 : 2, kRowStride = 272;
  static constexpr uint32_t kBytes = kTileRows * kRowStride, kCols = 256 / kElement, kUnits = kCols / 4;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kFloat = true;
  static constexpr int kLeast = 1;
  template <int N>
  static constexpr uint32_t kMet = kUnits * N * 16;

  static __device__ void fetch(uint8_t* to, const Source& from, uint32_t k, uint32_t lane) {
    const uint32_t bytes = from.cols * kElement, at = 256 * k + lane % 16 * 16;
    const bool valid = at < bytes;
#pragma unroll
    for (uint32_t row = lane / 16; row < kTileRows; row += 2) {
      const uint32_t of = min(from.row_tile * kTileRows + row, from.rows - 1);
      copy_async(to + row * kRowStride + lane % 16 * 16, from.packed + uint64_t(of) * bytes + (valid ? at : 0), valid);
    }
  }

  template <int N, class Job>
  static __device__ void stage(uint8_t* to, const Job& job, uint32_t first, uint32_t tiles) {
    const Activations& x = job.x;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < tiles * kUnits * N; i += blockDim.x) {
      const Meeting meeting = job.meeting(first + i / (kUnits * N), i % N);
      const uint32_t column = meeting.tile * kCols + i / N % kUnits * 4;
      float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
      if (meeting.row >= 0 && column < job.cols) {
        v = *reinterpret_cast<const float4*>(x.f32 + uint64_t(meeting.row) * x.stride + column);
        v.x *= meeting.factor, v.y *= meeting.factor, v.z *= meeting.factor, v.w *= meeting.factor;
      }
      reinterpret_cast<float4*>(to)[i] = v;
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

  template <int N>
  static __device__ void meet(const uint8_t* tile, const uint8_t* met, uint32_t lane, float (&acc)[4]) {
    constexpr uint32_t kSpan = 8 / N;
    const uint32_t g = lane / 4, t = lane % 4;
    const auto* x = reinterpret_cast<const float4*>(met) + 2 * t;
#pragma unroll 4
    for (uint32_t base = 0; base < kUnits; base += kSpan) {
      for (int q = 0; q < 2; q++) {
        const uint32_t unit = base + (2 * t + q) / N;
        const float4 row0 = four(tile + g * kRowStride + unit * 4 * kElement);
        const float4 row1 = four(tile + (g + 8) * kRowStride + unit * 4 * kElement);
        const float4 v = x[base * N + q];
        acc[q] += row0.x * v.x + row0.y * v.y + (row0.z * v.z + row0.w * v.w);
        acc[2 + q] += row1.x * v.x + row1.y * v.y + (row1.z * v.z + row1.w * v.w);
      }
    }
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

// Calls use(F(), N) with the least N of those built that holds n tokens.
template <typename Use>
cudaError_t with_kernel(DType type, uint32_t n, Use use) {
  return with_format(type, [&](auto format) -> cudaError_t {
    constexpr int kLeast = decltype(format)::kLeast;
    if (n <= kLeast) return use(format, std::integral_constant<int, kLeast>());
    return use(format, std::integral_constant<int, kMostTokens>());
  });
}

// Calls use(F(), N) with everything that is built, until one fails.
template <typename Use>
cudaError_t for_all_kernels(Use use) {
  for (const DType type : {DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q5_0, DType::Q8_0, DType::Q4_K,
                           DType::Q5_K, DType::Q6_K, DType::IQ4_NL})
    for (const uint32_t n : {1u, kMostTokens})
      if (const cudaError_t code = with_kernel(type, n, use); code != cudaSuccess) return code;
  return cudaSuccess;
}

}  // namespace perigee::cuda
