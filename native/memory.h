// Memory the ranks compute on: anonymous areas, and the model's files mapped read-only.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <atomic>

namespace perigee {

// Anonymous zeroed memory; costs RAM only where touched.
class Area {
 public:
  Area() = default;
  Area(const Area&) = delete;
  Area& operator=(const Area&) = delete;
  ~Area();

  // False when the address space or the commit limit has no room. Zero bytes are an empty area.
  bool allocate(uint64_t bytes);

  uint8_t* base() const { return base_; }
  uint64_t bytes() const { return bytes_; }

 private:
  uint8_t* base_ = nullptr;
  uint64_t bytes_ = 0;
};

// A whole file, mapped shared and read-only. It may shrink at any time: a page that can no longer be read (that, or the disk
// failed) then reads as zeros, in every thread, and is recorded in lost_at, instead of ending the process by SIGBUS.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // 0, or the errno of what failed. Bytes are those the file has now.
  int map(const char* path);

  const uint8_t* base() const { return base_; }
  uint64_t bytes() const { return bytes_; }

  // Notes where the file ends now if that is before its end when it was mapped: inside its last page the rest reads as
  // zeros and no signal tells.
  void check_size();

  // The first byte that was found missing; kWhole while none was.
  static constexpr uint64_t kWhole = ~uint64_t{0};
  std::atomic<uint64_t> lost_at{kWhole};

  // Puts zeros in place of everything from the page of `address` on. Called by the signal handler.
  void lose(const uint8_t* address);

 private:
  void note_lost(uint64_t offset);

  int file_ = -1;
  const uint8_t* base_ = nullptr;
  uint64_t bytes_ = 0;
};

// Brings `bytes` at `address` into memory, mapped for this process: for writing (anonymous memory) or for reading.
void populate(const uint8_t* address, uint64_t bytes, bool write);

}  // namespace perigee
