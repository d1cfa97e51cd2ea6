// Products of one warp on the tensor cores (mma.sync m16n8k16 of bf16) and how their operands leave shared memory.
//
// Lane 4 g + t holds of a [16][16]: rows g, g + 8, g, g + 8 at columns 2 t, 2 t + 1 (twice) and 2 t + 8, 2 t + 9 (twice);
// of b [16][8]: rows 2 t, 2 t + 1 and 2 t + 8, 2 t + 9 of column g; of d [16][8]: rows g and g + 8, columns 2 t, 2 t + 1.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

namespace perigee::cuda {

__device__ inline uint32_t in_shared(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// Four 8x8 matrices; lane l names row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(in_shared(at))
               : "memory");
}
__device__ inline void load_transposed(uint32_t (&r)[4], const void* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(in_shared(at))
               : "memory");
}

// d += a b
__device__ inline void multiply_bf16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace perigee::cuda
