#include "streaming.h"

#include <algorithm>
#include <chrono>

#include "packed_groups.h"
#include "streaming_state.h"

namespace perigee::cuda {
namespace {

// Device memory for experts on their way, at least two groups: what the bus brings while the device is busy with attention
// and the like, about 2 us a token and layer of Kimi K2 in prompts of 32k.
constexpr uint64_t kRingBytesOfToken = 128 << 10, kMostRingBytes = uint64_t{8} << 30;
constexpr uint32_t kMostSlots = 64;

constexpr uint64_t aligned(uint64_t bytes) { return (bytes + 255) & ~uint64_t{255}; }

struct Sizes {
  uint64_t rows, gate_up, down, ring;
};
Sizes sizes_of(const ExpertStream::Shape& s) {
  const uint64_t matrix = uint64_t(s.hidden) * s.width, group = kTogether * 3 * matrix * sizeof(bf16),
                 groups = (s.experts + kTogether - 1) / kTogether;
  return {uint64_t(s.tokens) * s.used, kTogether * 2 * matrix, kTogether * matrix,
          std::min(std::max(std::min(s.tokens * kRingBytesOfToken, kMostRingBytes), 2 * group), (groups + 1) * group)};
}

}  // namespace

uint64_t ExpertStream::device_bytes(const Shape& shape, bool streams) {
  const Sizes sizes = sizes_of(shape);
  return sizes.rows * (3 * uint64_t(shape.width) + shape.hidden) * sizeof(bf16) + sizes.rows * 2 * sizeof(int32_t) +
         (sizes.gate_up + sizes.down) * sizeof(bf16) + aligned(3 * uint64_t(shape.experts) * sizeof(int32_t)) +
         (streams ? sizes.ring + uint64_t(shape.hidden) * shape.width * sizeof(bf16) : 0);
}

ExpertStream::ExpertStream(const Shape& shape) : state_(std::make_unique<State>()) {
  state_->shape = shape;
  state_->layers.resize(shape.layers);
  for (State::Layer& layer : state_->layers) layer.popularity.resize(shape.experts);
}

ExpertStream::~ExpertStream() {
  State& s = *state_;
  if (s.copies.stream()) s.drop_plan();
  for (State::RingSlot& slot : s.ring) {
    if (slot.batch.free) cudaEventDestroy(slot.batch.free);
    if (slot.batch.ready) cudaEventDestroy(slot.batch.ready);
  }
  if (s.known) cudaEventDestroy(s.known);
  if (s.place_stream) cudaStreamDestroy(s.place_stream);
  cudaFreeHost(s.host_begin);
  cudaFreeHost(s.host_group_of);
}

void ExpertStream::attach(uint32_t layer, ExpertMatrix which, ExpertPart part) {
  State::MatrixSource& source = state_->layers[layer].of[static_cast<uint32_t>(which)];
  source.type = part.type;
  source.rows = which == ExpertMatrix::Down ? state_->shape.hidden : state_->shape.width;
  source.cols = part.cols;
  source.bytes = aligned(source.rows * row_bytes(part.type, part.cols));
  source.parts.push_back(std::move(part));
}

void ExpertStream::set_resident(uint32_t layer, const ResidentExperts& experts) {
  state_->layers[layer].resident = experts;
}

cudaError_t ExpertStream::start() {
  State& s = *state_;
  const Shape& shape = s.shape;
  const Sizes sizes = sizes_of(shape);
  CUDA_TRY(cudaGetDevice(&s.device));
  CUDA_TRY(prepare_packed_groups());
  CUDA_TRY(s.memory.take(shape.experts + 1, &s.begin));
  CUDA_TRY(s.memory.take(shape.experts, &s.group_of));
  CUDA_TRY(s.memory.take(sizes.rows, &s.token_of));
  CUDA_TRY(s.memory.take(sizes.rows, &s.slot_of));
  CUDA_TRY(s.memory.take(sizes.rows * 2 * shape.width, &s.gate_up));
  CUDA_TRY(s.memory.take(sizes.rows * shape.width, &s.mid));
  CUDA_TRY(s.memory.take(sizes.rows * shape.hidden, &s.y));
  CUDA_TRY(s.memory.take(sizes.gate_up, &s.wide_gate_up));
  CUDA_TRY(s.memory.take(sizes.down, &s.wide_down));
  CUDA_TRY(cudaMallocHost(&s.host_begin, (shape.experts + 1) * sizeof(int32_t)));
  CUDA_TRY(cudaMallocHost(&s.host_group_of, shape.experts * sizeof(int32_t)));
  CUDA_TRY(cudaEventCreateWithFlags(&s.known, cudaEventDisableTiming));

  uint64_t group_bytes = 0, matrix_bytes = 0;
  bool unpinned = false;
  for (const State::Layer& layer : s.layers) {
    group_bytes = std::max(group_bytes, s.offset(layer, 2, kTogether));
    for (const State::MatrixSource& source : layer.of) {
      matrix_bytes = std::max(matrix_bytes, source.bytes);
      for (const ExpertPart& part : source.parts) {
        s.pinned.pin(part.memory, part.memory_bytes);
        unpinned |= s.pinned.pinned_from(part.memory) == 0;
      }
    }
  }
  if (group_bytes == 0) return cudaSuccess;
  CUDA_TRY(s.copies.start(s.device, unpinned));
  CUDA_TRY(cudaStreamCreateWithFlags(&s.place_stream, cudaStreamNonBlocking));
  CUDA_TRY(s.memory.take(matrix_bytes, &s.place_raw));
  s.ring.resize(std::clamp<uint64_t>(sizes.ring / group_bytes, 2, kMostSlots));
  for (State::RingSlot& slot : s.ring) {
    CUDA_TRY(s.memory.take(group_bytes, &slot.raw));
    CUDA_TRY(cudaEventCreateWithFlags(&slot.batch.free, cudaEventDisableTiming));
    CUDA_TRY(cudaEventCreateWithFlags(&slot.batch.ready, cudaEventDisableTiming));
  }
  return cudaSuccess;
}

cudaError_t ExpertStream::place(uint32_t layer, uint32_t expert, uint32_t slot) {
  State& s = *state_;
  const std::lock_guard lock(s.placing);
  CUDA_TRY(cudaSetDevice(s.device));
  const State::Layer& l = s.layers[layer];
  const Matrix* packed[3] = {l.resident.gate, l.resident.up, l.resident.down};
  for (uint32_t m = 0; m < 3; m++) {
    std::vector<Piece> pieces;
    s.add_pieces(l.of[m], expert, s.place_raw, pieces);
    for (const Piece& piece : pieces)
      CUDA_TRY(cudaMemcpyAsync(piece.to, piece.from, piece.bytes, cudaMemcpyHostToDevice, s.place_stream));
    CUDA_TRY(pack(s.place_stream, *packed[m], slot, s.place_raw));
  }
  CUDA_TRY(cudaStreamSynchronize(s.place_stream));
  return cudaSuccess;
}

cudaError_t ExpertStream::measure(double* bytes_per_second) {
  State& s = *state_;
  *bytes_per_second = 0;
  const auto layer =
      std::find_if(s.layers.begin(), s.layers.end(), [](const State::Layer& l) { return l.of[0].bytes > 0; });
  if (layer == s.layers.end()) return cudaSuccess;
  CUDA_TRY(s.drop_plan());
  const auto begin = std::chrono::steady_clock::now();
  uint64_t bytes = 0;
  std::vector<Piece> pieces;
  for (uint32_t expert = 0; expert < s.shape.experts; expert++) {
    State::RingSlot& slot = s.slot(expert);
    CUDA_TRY(s.copies.wait_issued(slot.batch));
    pieces.clear();
    for (uint32_t m = 0; m < 3; m++) s.add_pieces(layer->of[m], expert, slot.raw + s.offset(*layer, m, 0), pieces);
    for (const Piece& piece : pieces) bytes += piece.bytes;
    CUDA_TRY(s.copies.submit(slot.batch, pieces));
  }
  for (State::RingSlot& slot : s.ring) CUDA_TRY(s.copies.wait_issued(slot.batch));
  CUDA_TRY(cudaStreamSynchronize(s.copies.stream()));
  *bytes_per_second = bytes / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return cudaSuccess;
}

}  // namespace perigee::cuda
