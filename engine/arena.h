// Carves one block of memory into arrays. With a null base it only counts, so size and layout cannot disagree.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace perigee {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<uint8_t*>(base)) {}

  // `count` elements, 64-byte aligned (a cache line: ranks do not share lines by accident).
  template <typename T>
  T* take(size_t count) {
    align(64);
    T* at = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += uint64_t{sizeof(T)} * count;
    return at;
  }

  // `bytes` is a power of two that the base is a multiple of.
  void align(uint64_t bytes) { used_ = (used_ + bytes - 1) & ~(bytes - 1); }

  uint64_t used() const { return used_; }

 private:
  uint8_t* base_;
  uint64_t used_ = 0;
};

}  // namespace perigee
