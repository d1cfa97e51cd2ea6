// Copies from host memory to the device on a stream of their own. What is pinned the device fetches itself; the rest is
// brought to pinned buffers by a few threads.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "check.h"
#include "pinned.h"

namespace perigee::cuda {

struct Piece {
  uint8_t* to;
  const uint8_t* from;
  uint64_t bytes;
};

// Pieces that are wanted together. The memory they go to is free once `free` has happened; `ready` happens behind them.
struct Batch {
  cudaEvent_t free = nullptr, ready = nullptr;
  std::deque<Piece> waiting;  // for a thread
  uint32_t open = 0;          // pieces that are not on the stream yet
};

class HostCopies {
 public:
  explicit HostCopies(const PinnedMemory& pinned) : pinned_(pinned) {}
  ~HostCopies();

  // `unpinned`: there is memory to be staged.
  cudaError_t start(int device, bool unpinned);
  cudaStream_t stream() const { return stream_; }

  // One after the other, from one thread. `batch` must have been issued before it is submitted again.
  cudaError_t submit(Batch& batch, const std::vector<Piece>& pieces);

  // Waits until all pieces are on the stream and `ready` has been recorded.
  cudaError_t wait_issued(Batch& batch);

 private:
  struct Stage {
    uint8_t* memory = nullptr;
    cudaEvent_t empty = nullptr;
  };

  void stage_pieces(uint32_t thread);
  cudaError_t stage(const Piece& piece, Stage& stage);

  const PinnedMemory& pinned_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  std::vector<Stage> stages_;  // two a thread
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable work_, issued_;
  std::deque<Batch*> batches_;  // with waiting pieces
  bool closing_ = false;
  Failure failure_ = {cudaSuccess, nullptr, nullptr, 0};
};

}  // namespace perigee::cuda
