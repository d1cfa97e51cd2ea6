#include "devices.h"

#include <cuda_runtime.h>

namespace perigee::cuda {

namespace {

constexpr int kLeastMajor = 8;  // Ampere: bf16 products and asynchronous copies

bool describe(int index, DeviceInfo* to) {
  cudaDeviceProp of;
  size_t free = 0, total = 0;
  if (cudaGetDeviceProperties(&of, index) != cudaSuccess || of.major < kLeastMajor) return false;
  if (cudaSetDevice(index) != cudaSuccess || cudaMemGetInfo(&free, &total) != cudaSuccess) return false;
  *to = {index,
         of.name,
         std::to_string(of.major) + "." + std::to_string(of.minor),
         total,
         free,
         static_cast<uint32_t>(of.multiProcessorCount),
         static_cast<uint64_t>(of.l2CacheSize)};
  return true;
}

}  // namespace

std::string find_devices(std::vector<DeviceInfo>& to) {
  int driver = 0, count = 0;
  // Without a driver there is a version 0, and no error.
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return "no device: there is no NVIDIA driver on this machine";
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    cudaGetLastError();
    return std::string("no device: ") + cudaGetErrorString(code);
  }
  for (int index = 0; index < count; index++) {
    DeviceInfo device;
    if (describe(index, &device)) to.push_back(device);
  }
  cudaGetLastError();
  return to.empty() ? "no device of compute capability 8.0 or newer" : "";
}

}  // namespace perigee::cuda
