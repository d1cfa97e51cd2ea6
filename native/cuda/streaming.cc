#include "streaming.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <numeric>

#include "buffers.h"
#include "host_copies.h"
#include "products.h"
#include "stages.h"

namespace perigee::cuda {
namespace {

// Experts that are multiplied together. The bus needs 3.6 ms for eight of Kimi K2, the device about 1.3 for the products of
// a prompt of 32k tokens.
constexpr uint32_t kTogether = 8;

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

struct ExpertStream::State {
  struct MatrixSource {
    DType type;
    uint32_t rows, cols;
    uint64_t bytes = 0;  // of one expert, as it lies on the device
    std::vector<ExpertPart> parts;
  };
  struct Layer {
    MatrixSource of[3];
    ResidentExperts resident = {nullptr, nullptr, nullptr, nullptr};
    std::vector<uint64_t> popularity;  // [experts] rows of earlier steps, halved at each
  };
  // The order in which a layer's experts are multiplied: those on the device, then the others, popular ones first. Groups
  // of kTogether neighbours; a group of which something must be copied has a place in the ring.
  struct Plan {
    int32_t layer = kNoLayer;
    std::vector<int32_t> order;    // [experts] expert of each place
    std::vector<int32_t> slot_of;  // [experts] as it was when the plan was made
    uint32_t groups = 0, submitted = 0;
    std::deque<uint32_t> flights;  // groups in the ring, oldest first
  };
  struct RingSlot {
    uint8_t* raw = nullptr;
    Batch batch;
  };

  Shape shape;
  int device = 0;
  std::vector<Layer> layers;
  PinnedMemory pinned;
  HostCopies copies{pinned};
  DeviceMemory memory;
  std::vector<RingSlot> ring;
  uint64_t first_slot = 0;  // the ring's slot of the oldest flight, counted on
  Plan plan;

  int32_t *begin = nullptr, *token_of = nullptr, *slot_of = nullptr, *group_of = nullptr;
  bf16 *gate_up = nullptr, *mid = nullptr, *y = nullptr;    // [tokens * used][2 width | width | hidden]
  bf16 *wide_gate_up = nullptr, *wide_down = nullptr;       // [kTogether][2 width][hidden], [kTogether][hidden][width]
  int32_t *host_begin = nullptr, *host_group_of = nullptr;  // pinned
  cudaEvent_t known = nullptr;                              // host_begin is there

  std::mutex placing;
  cudaStream_t place_stream = nullptr;
  uint8_t* place_raw = nullptr;

  RingSlot& slot(uint64_t flight) { return ring[flight % ring.size()]; }
  uint32_t places(uint32_t group) const { return std::min(kTogether, shape.experts - group * kTogether); }
  bool resident(int32_t expert) const { return plan.slot_of[expert] >= 0; }
  bool copied(uint32_t group, const int32_t* rows_begin) const;
  // Where matrix m of a group's expert i lies in a slot of the ring.
  uint64_t offset(const Layer& layer, uint32_t m, uint32_t i) const {
    uint64_t at = 0;
    for (uint32_t before = 0; before < m; before++) at += kTogether * layer.of[before].bytes;
    return at + i * layer.of[m].bytes;
  }
  void add_pieces(const MatrixSource& source, uint32_t expert, uint8_t* to, std::vector<Piece>& pieces) const;

  cudaError_t make_plan(uint32_t layer);
  cudaError_t drop_plan();
  cudaError_t submit_next(const int32_t* rows_begin);
  cudaError_t widen_group(cudaStream_t stream, uint32_t group, const uint8_t* raw, const int32_t* rows_begin);
  cudaError_t multiply_group(cudaStream_t stream, uint32_t group, const bf16* x, uint32_t slots,
                             const int32_t* rows_begin);
};

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

// Whether an expert of the group must come over the bus; once rows are known, only those that have some do.
bool ExpertStream::State::copied(uint32_t group, const int32_t* rows_begin) const {
  for (uint32_t i = 0; i < places(group); i++) {
    const uint32_t place = group * kTogether + i;
    if (!resident(plan.order[place]) && (!rows_begin || rows_begin[place + 1] > rows_begin[place])) return true;
  }
  return false;
}

// The ranks' parts of one matrix of an expert; parts that are neighbours on both sides go in one piece.
void ExpertStream::State::add_pieces(const MatrixSource& source, uint32_t expert, uint8_t* to,
                                     std::vector<Piece>& pieces) const {
  for (const ExpertPart& part : source.parts) {
    const uint64_t row = row_bytes(part.type, part.cols);
    const Piece piece = {to + part.row_begin * row, part.memory + part.offsets[expert], part.rows * row};
    if (piece.bytes == 0) continue;
    if (!pieces.empty() && pieces.back().to + pieces.back().bytes == piece.to &&
        pieces.back().from + pieces.back().bytes == piece.from) {
      pieces.back().bytes += piece.bytes;
    } else {
      pieces.push_back(piece);
    }
  }
}

cudaError_t ExpertStream::State::make_plan(uint32_t layer) {
  CUDA_TRY(drop_plan());
  const Layer& l = layers[layer];
  plan.layer = static_cast<int32_t>(layer);
  plan.slot_of.assign(shape.experts, -1);
  if (l.resident.slot_of) plan.slot_of.assign(l.resident.slot_of, l.resident.slot_of + shape.experts);
  plan.order.resize(shape.experts);
  std::iota(plan.order.begin(), plan.order.end(), 0);
  std::stable_sort(plan.order.begin(), plan.order.end(), [&](int32_t a, int32_t b) {
    if (resident(a) != resident(b)) return resident(a);
    return l.popularity[a] > l.popularity[b];
  });
  plan.groups = (shape.experts + kTogether - 1) / kTogether;
  plan.submitted = 0;
  return cudaSuccess;
}

// Gives up what has been copied in advance. Later copies follow it on the same stream.
cudaError_t ExpertStream::State::drop_plan() {
  for (; !plan.flights.empty(); plan.flights.pop_front()) CUDA_TRY(copies.wait_issued(slot(first_slot++).batch));
  plan.layer = kNoLayer;
  return cudaSuccess;
}

// Puts the copies of the next group into the ring, if it needs any and while there is room; otherwise passes it over.
cudaError_t ExpertStream::State::submit_next(const int32_t* rows_begin) {
  const uint32_t group = plan.submitted++;
  if (!copied(group, rows_begin)) return cudaSuccess;
  const Layer& layer = layers[plan.layer];
  RingSlot& to = slot(first_slot + plan.flights.size());
  std::vector<Piece> pieces;
  for (uint32_t m = 0; m < 3; m++)
    for (uint32_t i = 0; i < places(group); i++) {
      const uint32_t place = group * kTogether + i;
      if (resident(plan.order[place]) || (rows_begin && rows_begin[place + 1] == rows_begin[place])) continue;
      add_pieces(layer.of[m], plan.order[place], to.raw + offset(layer, m, i), pieces);
    }
  plan.flights.push_back(group);
  return copies.submit(to.batch, pieces);
}

cudaError_t ExpertStream::State::widen_group(cudaStream_t stream, uint32_t group, const uint8_t* raw,
                                             const int32_t* rows_begin) {
  const Layer& layer = layers[plan.layer];
  const uint64_t matrix = uint64_t(shape.hidden) * shape.width;
  const Matrix* packed[3] = {layer.resident.gate, layer.resident.up, layer.resident.down};
  for (uint32_t i = 0; i < places(group); i++) {
    const uint32_t place = group * kTogether + i;
    if (rows_begin[place + 1] == rows_begin[place]) continue;
    bf16* const to[3] = {wide_gate_up + 2 * i * matrix, wide_gate_up + (2 * i + 1) * matrix, wide_down + i * matrix};
    const int32_t slot = plan.slot_of[plan.order[place]];
    for (uint32_t m = 0; m < 3; m++) {
      const MatrixSource& source = layer.of[m];
      if (slot >= 0) {
        CUDA_TRY(unpack(stream, *packed[m], slot, to[m]));
      } else {
        CUDA_TRY(widen(stream, source.type, raw + offset(layer, m, i), source.rows, source.cols, to[m]));
      }
    }
  }
  return cudaSuccess;
}

cudaError_t ExpertStream::State::multiply_group(cudaStream_t stream, uint32_t group, const bf16* x, uint32_t slots,
                                                const int32_t* rows_begin) {
  const uint32_t first = group * kTogether, count = places(group), width = shape.width, hidden = shape.hidden;
  const uint32_t row = rows_begin[first], rows = rows_begin[first + count] - row;
  const uint64_t matrix = uint64_t(hidden) * width;
  CUDA_TRY(gemm_grouped(
      stream, {x, token_of, begin + first, count, slots, hidden, 2 * width, wide_gate_up, 2 * matrix, gate_up, rows}));
  CUDA_TRY(silu_mul(stream, gate_up + uint64_t(row) * 2 * width, rows, width, mid + uint64_t(row) * width));
  CUDA_TRY(
      gemm_grouped(stream, {mid, nullptr, begin + first, count, slots, width, hidden, wide_down, matrix, y, rows}));
  return cudaSuccess;
}

cudaError_t ExpertStream::run(cudaStream_t stream, uint32_t layer, int32_t next, const RoutedMany& step) {
  State& s = *state_;
  if (step.n == 0) return cudaSuccess;
  if (step.n > s.shape.tokens) CUDA_TRY(cudaErrorInvalidValue);
  State::Layer& l = s.layers[layer];
  const int32_t* now = l.resident.slot_of;
  const bool planned = s.plan.layer == static_cast<int32_t>(layer) &&
                       (!now || std::equal(s.plan.slot_of.begin(), s.plan.slot_of.end(), now));
  if (!planned) CUDA_TRY(s.make_plan(layer));

  const uint32_t experts = s.shape.experts, slots = step.n * s.shape.used;
  for (uint32_t place = 0; place < experts; place++) s.host_group_of[s.plan.order[place]] = static_cast<int32_t>(place);
  CUDA_TRY(cudaMemcpyAsync(s.group_of, s.host_group_of, experts * sizeof(int32_t), cudaMemcpyHostToDevice, stream));
  CUDA_TRY(group_by_expert(stream,
                           {step.chosen, step.n, s.shape.used, experts, s.begin, s.token_of, s.slot_of, s.group_of}));
  CUDA_TRY(cudaMemcpyAsync(s.host_begin, s.begin, (experts + 1) * sizeof(int32_t), cudaMemcpyDeviceToHost, stream));
  CUDA_TRY(cudaEventRecord(s.known, stream));
  CUDA_TRY(cudaEventSynchronize(s.known));
  for (uint32_t place = 0; place < experts; place++) {
    uint64_t& popularity = l.popularity[s.plan.order[place]];
    popularity = popularity / 2 + (s.host_begin[place + 1] - s.host_begin[place]);
  }

  for (uint32_t group = 0; group < s.plan.groups; group++) {
    while (s.plan.submitted < s.plan.groups && s.plan.flights.size() < s.ring.size())
      CUDA_TRY(s.submit_next(s.host_begin));
    const bool flown = !s.plan.flights.empty() && s.plan.flights.front() == group;
    State::RingSlot* from = flown ? &s.slot(s.first_slot) : nullptr;
    const uint32_t first = group * kTogether;
    const bool rows = s.host_begin[first + s.places(group)] > s.host_begin[first];
    if (!flown && s.copied(group, s.host_begin)) CUDA_TRY(cudaErrorInvalidValue);  // nowhere to be had
    if (flown) CUDA_TRY(s.copies.wait_issued(from->batch));
    if (flown && rows) CUDA_TRY(cudaStreamWaitEvent(stream, from->batch.ready));
    if (rows) CUDA_TRY(s.widen_group(stream, group, flown ? from->raw : nullptr, s.host_begin));
    if (flown) {
      CUDA_TRY(cudaEventRecord(from->batch.free, stream));
      s.plan.flights.pop_front();
      s.first_slot++;
    }
    if (rows) CUDA_TRY(s.multiply_group(stream, group, step.x, slots, s.host_begin));
  }
  CUDA_TRY(gather_experts(stream, s.y, s.slot_of, step.weight, step.n, s.shape.used, s.shape.hidden, step.sum));
  s.plan.layer = kNoLayer;

  if (next == kNoLayer || s.ring.empty()) return cudaSuccess;
  CUDA_TRY(s.make_plan(next));
  while (s.plan.submitted < s.plan.groups && s.plan.flights.size() < s.ring.size()) CUDA_TRY(s.submit_next(nullptr));
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
