// The CUDA half of the addon: native/cuda/cuda_door.cc, or without_cuda.cc where the addon was built without nvcc.
#pragma once
#include <napi.h>

namespace perigee {

// Adds cudaSupport, measureDevice and CudaEngine (src/runtime/cuda-addon.ts).
void define_cuda(Napi::Env env, Napi::Object exports);

}  // namespace perigee
