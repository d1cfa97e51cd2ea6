// Host memory that the device may copy from by itself, page-locked where the system lets it.
#pragma once
#include <stdint.h>

#include <map>

namespace perigee::cuda {

class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory();

  // Tries to pin the pages of `bytes` at `memory`. Where that fails the memory is copied as it is (pinned_from).
  void pin(const uint8_t* memory, uint64_t bytes);

  // Bytes from `at` on that are pinned in one piece, or 0.
  uint64_t pinned_from(const uint8_t* at) const;

 private:
  struct Range {
    uintptr_t end;
    bool pinned, ours;
  };
  std::map<uintptr_t, Range> ranges_;  // by begin
};

}  // namespace perigee::cuda
