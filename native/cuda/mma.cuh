// The product of the tensor cores that every device has from sm_80 on.
#pragma once
#include <stdint.h>

namespace perigee::cuda {

// d += a . b in bf16 with float sums: 16 x 16 by 16 x 8, each lane with its part of d [4], as mma.m16n8k16 deals them out.
__device__ inline void multiply_add(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace perigee::cuda
