// CUDA calls that fail: the first one is remembered with its place, so that the door can turn it into a coded error.
#pragma once
#include <cuda_runtime.h>

namespace perigee::cuda {

struct Failure {
  cudaError_t code;
  const char* call;  // the source text of the call
  const char* file;
  int line;
};

// Remembers the failure unless an earlier one of this thread has not been taken yet; returns `code`.
cudaError_t note_failure(cudaError_t code, const char* call, const char* file, int line);

// The first failure since the last call, on this thread; code is cudaSuccess when there was none.
Failure take_failure();

}  // namespace perigee::cuda

// Leaves the function with the error of a failing call. Kernel launches: CUDA_TRY(cudaGetLastError()) right behind.
#define CUDA_TRY(call)                                                              \
  do {                                                                              \
    if (const cudaError_t cuda_try_code = (call); cuda_try_code != cudaSuccess)     \
      return perigee::cuda::note_failure(cuda_try_code, #call, __FILE__, __LINE__); \
  } while (0)
