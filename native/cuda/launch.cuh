// How kernels are launched and how they follow each other on a stream.
//
// Every kernel is launched so that it may start while its predecessor still runs (programmatic dependent launch, from
// sm_90 on). The rule that makes this safe: a kernel touches nothing but weights before wait_for_previous(), and every
// kernel calls it, in every thread, exactly once. Then whatever earlier kernels of the stream wrote is visible after
// it, and they have finished reading. Weights may be fetched before: that hides the ramp-up of each launch.
#pragma once
#include "check.h"

#include <utility>

namespace perigee::cuda {

__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start; call it when most of this block's work is issued.
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;  // dynamic; above 48 KiB the kernel's attribute must have been raised before
  cudaStream_t stream;
  unsigned cluster = 1;  // neighbouring blocks (of x) that share their memory; above 1 from sm_90 on
};

// On devices before sm_90 the attribute is ignored, and so is griddepcontrol.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(const Launch& how, void (*kernel)(Parameters...), Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {how.cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  config.attrs = attributes;
  config.numAttrs = how.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace perigee::cuda
