#include "host_copies.h"

#include <string.h>

#include <algorithm>

namespace perigee::cuda {
namespace {

constexpr uint64_t kStageBytes = 4 << 20;  // 80 us of the bus: launches do not count, and eight threads hold little
constexpr uint32_t kMostThreads = 8;       // about 8 GB/s each; the bus takes 55

}  // namespace

HostCopies::~HostCopies() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  if (stream_) cudaStreamSynchronize(stream_);
  for (Stage& stage : stages_) {
    cudaFreeHost(stage.memory);
    if (stage.empty) cudaEventDestroy(stage.empty);
  }
  if (stream_) cudaStreamDestroy(stream_);
}

cudaError_t HostCopies::start(int device, bool unpinned) {
  device_ = device;
  CUDA_TRY(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  if (!unpinned) return cudaSuccess;
  const uint32_t threads = std::clamp(std::thread::hardware_concurrency() / 2, 1u, kMostThreads);
  stages_.resize(2 * threads);
  for (Stage& stage : stages_) {
    CUDA_TRY(cudaMallocHost(&stage.memory, kStageBytes));
    CUDA_TRY(cudaEventCreateWithFlags(&stage.empty, cudaEventDisableTiming | cudaEventBlockingSync));
  }
  for (uint32_t i = 0; i < threads; i++) threads_.emplace_back([this, i] { stage_pieces(i); });
  return cudaSuccess;
}

cudaError_t HostCopies::submit(Batch& batch, const std::vector<Piece>& pieces) {
  CUDA_TRY(cudaStreamWaitEvent(stream_, batch.free));
  std::deque<Piece> waiting;
  for (Piece piece : pieces) {
    while (piece.bytes > 0) {
      const uint64_t pinned = std::min(piece.bytes, pinned_.pinned_from(piece.from));
      const uint64_t bytes = pinned > 0 ? pinned : std::min(piece.bytes, kStageBytes);
      if (pinned > 0) {
        CUDA_TRY(cudaMemcpyAsync(piece.to, piece.from, bytes, cudaMemcpyHostToDevice, stream_));
      } else {
        waiting.push_back({piece.to, piece.from, bytes});
      }
      piece = {piece.to + bytes, piece.from + bytes, piece.bytes - bytes};
    }
  }
  if (waiting.empty()) {
    CUDA_TRY(cudaEventRecord(batch.ready, stream_));
    return cudaSuccess;
  }
  {
    const std::lock_guard lock(mutex_);
    batch.open = static_cast<uint32_t>(waiting.size());
    batch.waiting = std::move(waiting);
    batches_.push_back(&batch);
  }
  work_.notify_all();
  return cudaSuccess;
}

cudaError_t HostCopies::wait_issued(Batch& batch) {
  std::unique_lock lock(mutex_);
  issued_.wait(lock, [&] { return batch.open == 0; });
  if (failure_.code == cudaSuccess) return cudaSuccess;
  return note_failure(failure_.code, failure_.call, failure_.file, failure_.line);
}

cudaError_t HostCopies::stage(const Piece& piece, Stage& stage) {
  CUDA_TRY(cudaEventSynchronize(stage.empty));
  memcpy(stage.memory, piece.from, piece.bytes);
  CUDA_TRY(cudaMemcpyAsync(piece.to, stage.memory, piece.bytes, cudaMemcpyHostToDevice, stream_));
  CUDA_TRY(cudaEventRecord(stage.empty, stream_));
  return cudaSuccess;
}

// One thread: takes the oldest piece, again and again. Pieces of a batch may overtake each other, batches hardly.
void HostCopies::stage_pieces(uint32_t thread) {
  cudaSetDevice(device_);
  std::unique_lock lock(mutex_);
  for (uint32_t turn = 0;; turn++) {
    work_.wait(lock, [&] { return closing_ || !batches_.empty(); });
    if (closing_) return;
    Batch& batch = *batches_.front();
    const Piece piece = batch.waiting.front();
    batch.waiting.pop_front();
    if (batch.waiting.empty()) batches_.pop_front();
    lock.unlock();
    cudaError_t code = stage(piece, stages_[2 * thread + turn % 2]);
    lock.lock();
    if (--batch.open == 0) {
      // Under the lock: whoever waits for the batch finds `ready` recorded.
      if (code == cudaSuccess) code = cudaEventRecord(batch.ready, stream_);
      issued_.notify_all();
    }
    if (code != cudaSuccess && failure_.code == cudaSuccess) {
      failure_ = take_failure();
      if (failure_.code == cudaSuccess) failure_ = {code, "cudaEventRecord", __FILE__, __LINE__};
    }
  }
}

}  // namespace perigee::cuda
