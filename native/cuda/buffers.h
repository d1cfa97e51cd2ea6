// Memory of one device: single allocations that live as long as their owner, and blocks carved into arrays.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <vector>

#include "check.h"

namespace perigee::cuda {

// Frees what it gave when it goes; its device must be the current one then, as at every call.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { free_all(); }

  // `bytes` bytes, 256-byte aligned.
  cudaError_t allocate(uint64_t bytes, void** at) {
    CUDA_TRY(cudaMalloc(at, bytes > 0 ? bytes : 1));
    held_.push_back(*at);
    return cudaSuccess;
  }
  template <typename T>
  cudaError_t take(uint64_t count, T** at) {
    return allocate(count * sizeof(T), reinterpret_cast<void**>(at));
  }
  void free_all() {
    for (void* at : held_) cudaFree(at);
    held_.clear();
  }

 private:
  std::vector<void*> held_;
};

// Carves one block into arrays that are 256-byte aligned. With a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<uint8_t*>(base)) {}

  template <typename T>
  T* take(uint64_t count) {
    used_ = (used_ + 255) & ~uint64_t{255};
    T* at = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += count * sizeof(T);
    return at;
  }
  uint64_t used() const { return used_; }

 private:
  uint8_t* base_;
  uint64_t used_ = 0;
};

}  // namespace perigee::cuda
