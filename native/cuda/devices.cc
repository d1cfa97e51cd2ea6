#include "devices.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "buffers.h"

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

constexpr uint64_t kCopiedBytes = uint64_t{1} << 30;  // far more than any second-level cache
constexpr int kCopies = 8;

cudaError_t time_copies(DeviceMemory& memory, cudaEvent_t begin, cudaEvent_t end, double* best) {
  uint8_t *from, *to;
  CUDA_TRY(memory.take(kCopiedBytes, &from));
  CUDA_TRY(memory.take(kCopiedBytes, &to));
  // Not zeros, which copy faster than weights do.
  CUDA_TRY(cudaMemset(from, 0x5a, kCopiedBytes));
  for (int i = 0; i < kCopies; i++) {
    float milliseconds = 0;
    CUDA_TRY(cudaEventRecord(begin));
    CUDA_TRY(cudaMemcpyAsync(to, from, kCopiedBytes, cudaMemcpyDeviceToDevice));
    CUDA_TRY(cudaEventRecord(end));
    CUDA_TRY(cudaEventSynchronize(end));
    CUDA_TRY(cudaEventElapsedTime(&milliseconds, begin, end));
    *best = std::max(*best, 2.0 * kCopiedBytes / milliseconds * 1e-6);
  }
  return cudaSuccess;
}

}  // namespace

double measure_copies(int index) {
  double best = 0;
  cudaEvent_t begin = nullptr, end = nullptr;
  if (cudaSetDevice(index) == cudaSuccess && cudaEventCreate(&begin) == cudaSuccess &&
      cudaEventCreate(&end) == cudaSuccess) {
    DeviceMemory memory;
    time_copies(memory, begin, end, &best);
  }
  if (end) cudaEventDestroy(end);
  if (begin) cudaEventDestroy(begin);
  take_failure();
  cudaGetLastError();
  return best;
}

void connect_devices(int from, int to) {
  int possible = 0;
  if (from != to && cudaDeviceCanAccessPeer(&possible, to, from) == cudaSuccess && possible &&
      cudaSetDevice(to) == cudaSuccess)
    cudaDeviceEnablePeerAccess(from, 0);
  cudaGetLastError();  // they may be connected already
}

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
