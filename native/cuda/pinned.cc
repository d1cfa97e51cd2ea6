#include "pinned.h"

#include <cuda_runtime.h>

namespace perigee::cuda {
namespace {

constexpr uintptr_t kPage = 4096;

bool is_pinned(uintptr_t at) {
  cudaPointerAttributes attributes;
  return cudaPointerGetAttributes(&attributes, reinterpret_cast<void*>(at)) == cudaSuccess &&
         attributes.type == cudaMemoryTypeHost;
}

}  // namespace

PinnedMemory::~PinnedMemory() {
  for (const auto& [begin, range] : ranges_)
    if (range.ours) cudaHostUnregister(reinterpret_cast<void*>(begin));
}

void PinnedMemory::pin(const uint8_t* memory, uint64_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(memory), begin = at & ~(kPage - 1),
                  end = (at + bytes + kPage - 1) & ~(kPage - 1);
  const auto known = ranges_.find(begin);
  if (bytes == 0 || (known != ranges_.end() && known->second.end >= end)) return;
  cudaError_t code = cudaSuccess;
  // A file mapped for reading cannot be pinned for writing, and not everywhere for reading.
  for (unsigned flags : {cudaHostRegisterPortable, cudaHostRegisterPortable | cudaHostRegisterReadOnly}) {
    code = cudaHostRegister(reinterpret_cast<void*>(begin), end - begin, flags);
    if (code == cudaSuccess || code == cudaErrorHostMemoryAlreadyRegistered) break;
  }
  cudaGetLastError();  // it is no failure of the engine's
  const bool others = code == cudaErrorHostMemoryAlreadyRegistered && is_pinned(begin) && is_pinned(end - 1);
  ranges_[begin] = {end, code == cudaSuccess || others, code == cudaSuccess};
}

uint64_t PinnedMemory::pinned_from(const uint8_t* at) const {
  const uintptr_t address = reinterpret_cast<uintptr_t>(at);
  auto range = ranges_.upper_bound(address);
  if (range == ranges_.begin()) return 0;
  --range;
  return range->second.pinned && address < range->second.end ? range->second.end - address : 0;
}

}  // namespace perigee::cuda
