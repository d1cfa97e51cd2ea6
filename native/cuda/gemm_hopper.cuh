// Hopper's own instructions: warpgroup products from shared memory, tensor copies, barriers that count bytes.
#pragma once
#include <cuda.h>
#include <stdint.h>

namespace perigee::cuda::hopper {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// --- barriers in shared memory ------------------------------------------------------------------------------------------
__device__ inline uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

__device__ inline void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to tensor copies and to the cluster.
__device__ inline void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// What this thread's cp.async wrote so far arrives at the barrier when it is there.
__device__ inline void arrive_with_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Between plain writes to shared memory (cp.async as well) and products that read them.
__device__ inline void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the same barrier of block `rank` of the cluster. Ordered as within a block: what is handed over is shared
// memory that only copies and products touch, and a fence for the whole cluster takes most of a microsecond.
__device__ inline void arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Waits until the barrier's phase of this parity is over.
__device__ inline void wait_barrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all blocks of the cluster; what they wrote to shared memory before is visible behind it.
__device__ inline void sync_cluster() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// --- tensor copies ------------------------------------------------------------------------------------------------------
__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box at (x, y, z) to shared memory; its bytes arrive at `barrier`.
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// To the same place in every block of `mask`.
__device__ inline void copy_box_to_all(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x, int y, int z,
                                       uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4, "
      "%5}], [%2], %6;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(mask)
      : "memory");
}

// --- registers: a warpgroup gives up or takes some ------------------------------------------------------------------------
template <uint32_t kCount>
__device__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <uint32_t kCount>
__device__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// --- warpgroup products -------------------------------------------------------------------------------------------------
// Rows of 64 bf16 values, 128 bytes, swizzled as tensor copies do (CU_TENSOR_MAP_SWIZZLE_128B), in atoms of eight rows.
// Sixteen values further along k is 32 bytes, 2 in the descriptor's units.
__device__ inline uint64_t describe(uint32_t shared) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kAtomStride = uint64_t(1024 >> 4) << 32;
  return kSwizzle128 | kAtomStride | uint64_t(1) << 16 | (shared & 0x3ffff) >> 4;
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <uint32_t kPending>
__device__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define PERIGEE_REGISTERS_0_31                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PERIGEE_REGISTERS_0_63                                                         \
  PERIGEE_REGISTERS_0_31                                                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PERIGEE_REGISTERS_64_95                                                      \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PERIGEE_REGISTERS_96_127                                                                 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define PERIGEE_8(d, i)                                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define PERIGEE_32(d, i) PERIGEE_8(d, i), PERIGEE_8(d, i + 8), PERIGEE_8(d, i + 16), PERIGEE_8(d, i + 24)

// d[64][kColumns] (+)= a[64][16] . b[kColumns][16]^T. Thread t has rows t / 32 * 16 + t % 32 / 4 (and + 8) and columns
// 8 j + t % 4 * 2 (and + 1) in d[4 j .. 4 j + 3].
template <uint32_t kColumns>
__device__ void multiply_16(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool add) {
  if constexpr (kColumns == 256) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" PERIGEE_REGISTERS_0_63 ", " PERIGEE_REGISTERS_64_95
        ", " PERIGEE_REGISTERS_96_127 "}, %128, %129, add, 1, 1, 0, 0;\n}"
        : PERIGEE_32(d, 0), PERIGEE_32(d, 32), PERIGEE_32(d, 64), PERIGEE_32(d, 96)
        : "l"(a), "l"(b), "r"(int(add)));
  } else if constexpr (kColumns == 192) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" PERIGEE_REGISTERS_0_63 ", " PERIGEE_REGISTERS_64_95
        "}, %96, %97, add, 1, 1, 0, 0;\n}"
        : PERIGEE_32(d, 0), PERIGEE_32(d, 32), PERIGEE_32(d, 64)
        : "l"(a), "l"(b), "r"(int(add)));
  } else if constexpr (kColumns == 128) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PERIGEE_REGISTERS_0_63
        "}, %64, %65, add, 1, 1, 0, 0;\n}"
        : PERIGEE_32(d, 0), PERIGEE_32(d, 32)
        : "l"(a), "l"(b), "r"(int(add)));
  } else {
    static_assert(kColumns == 64);
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" PERIGEE_REGISTERS_0_31
        "}, %32, %33, add, 1, 1, 0, 0;\n}"
        : PERIGEE_32(d, 0)
        : "l"(a), "l"(b), "r"(int(add)));
  }
}

#endif

}  // namespace perigee::cuda::hopper
