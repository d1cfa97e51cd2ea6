// A layer's routed experts: which of them come when, and their products.
#include <algorithm>
#include <numeric>

#include "packed_groups.h"
#include "products.h"
#include "stages.h"
#include "streaming_state.h"

namespace perigee::cuda {
namespace {

// Tokens an expert has on average, up to which packed weights are multiplied as they are: more are faster when weights have
// been unpacked for them, from about 130 (Moonlight) or 230 (Kimi K2) on an H200.
constexpr uint32_t kFewEach = 128;

}  // namespace

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

// Whether nothing must be brought or unpacked.
bool ExpertStream::State::as_packed(const Layer& layer, const RoutedMany& step) const {
  const ResidentExperts& r = layer.resident;
  if (!r.slot_of || uint64_t(step.n) * shape.used > uint64_t(kFewEach) * shape.experts) return false;
  const bool here =
      step.only_residents || std::find(r.slot_of, r.slot_of + shape.experts, -1) == r.slot_of + shape.experts;
  return here && takes_packed_groups(*r.up, r.gate) && takes_packed_groups(*r.down, nullptr);
}

cudaError_t ExpertStream::State::run_packed(cudaStream_t stream, const ResidentExperts& experts,
                                            const RoutedMany& step) {
  const uint32_t rows = step.n * shape.used;
  CUDA_TRY(group_by_expert(
      stream, {step.chosen, step.n, shape.used, shape.experts, begin, token_of, slot_of, experts.slot_on_device}));
  CUDA_TRY(multiply_packed_groups(stream, {step.x, token_of, begin, experts.up, experts.gate, mid, rows}));
  CUDA_TRY(multiply_packed_groups(stream, {mid, nullptr, begin, experts.down, nullptr, y, rows}));
  return gather_experts(stream, y, slot_of, step.weight, step.n, shape.used, shape.hidden, step.sum);
}

// Group by group: brought or unpacked, and multiplied.
cudaError_t ExpertStream::State::run_widened(cudaStream_t stream, uint32_t layer, const RoutedMany& step) {
  Layer& l = layers[layer];
  const int32_t* now = l.resident.slot_of;
  const bool planned =
      plan.layer == static_cast<int32_t>(layer) && (!now || std::equal(plan.slot_of.begin(), plan.slot_of.end(), now));
  if (!planned) CUDA_TRY(make_plan(layer));

  const uint32_t experts = shape.experts, slots = step.n * shape.used;
  for (uint32_t place = 0; place < experts; place++) {
    const int32_t expert = plan.order[place];
    host_group_of[expert] = step.only_residents && !resident(expert) ? -1 : static_cast<int32_t>(place);
  }
  CUDA_TRY(cudaMemcpyAsync(group_of, host_group_of, experts * sizeof(int32_t), cudaMemcpyHostToDevice, stream));
  CUDA_TRY(group_by_expert(stream, {step.chosen, step.n, shape.used, experts, begin, token_of, slot_of, group_of}));
  CUDA_TRY(cudaMemcpyAsync(host_begin, begin, (experts + 1) * sizeof(int32_t), cudaMemcpyDeviceToHost, stream));
  CUDA_TRY(cudaEventRecord(known, stream));
  CUDA_TRY(cudaEventSynchronize(known));
  for (uint32_t place = 0; place < experts && !step.only_residents; place++) {
    uint64_t& popularity = l.popularity[plan.order[place]];
    popularity = popularity / 2 + (host_begin[place + 1] - host_begin[place]);
  }

  for (uint32_t group = 0; group < plan.groups; group++) {
    while (plan.submitted < plan.groups && plan.flights.size() < ring.size()) CUDA_TRY(submit_next(host_begin));
    const bool flown = !plan.flights.empty() && plan.flights.front() == group;
    RingSlot* from = flown ? &slot(first_slot) : nullptr;
    const uint32_t first = group * kTogether;
    const bool rows = host_begin[first + places(group)] > host_begin[first];
    if (!flown && copied(group, host_begin)) CUDA_TRY(cudaErrorInvalidValue);  // nowhere to be had
    if (flown) CUDA_TRY(copies.wait_issued(from->batch));
    if (flown && rows) CUDA_TRY(cudaStreamWaitEvent(stream, from->batch.ready));
    if (rows) CUDA_TRY(widen_group(stream, group, flown ? from->raw : nullptr, host_begin));
    if (flown) {
      CUDA_TRY(cudaEventRecord(from->batch.free, stream));
      plan.flights.pop_front();
      first_slot++;
    }
    if (rows) CUDA_TRY(multiply_group(stream, group, step.x, slots, host_begin));
  }
  CUDA_TRY(gather_experts(stream, y, slot_of, step.weight, step.n, shape.used, shape.hidden, step.sum));
  plan.layer = kNoLayer;
  return cudaSuccess;
}

// Sends the experts of a layer on their way.
cudaError_t ExpertStream::State::look_ahead(int32_t next) {
  if (next == kNoLayer || ring.empty()) return cudaSuccess;
  CUDA_TRY(make_plan(next));
  while (plan.submitted < plan.groups && plan.flights.size() < ring.size()) CUDA_TRY(submit_next(nullptr));
  return cudaSuccess;
}

cudaError_t ExpertStream::run(cudaStream_t stream, uint32_t layer, int32_t next, const RoutedMany& step) {
  State& s = *state_;
  if (step.n == 0) return cudaSuccess;
  if (step.n > s.shape.tokens) CUDA_TRY(cudaErrorInvalidValue);
  const State::Layer& l = s.layers[layer];
  CUDA_TRY(s.as_packed(l, step) ? s.run_packed(stream, l.resident, step) : s.run_widened(stream, layer, step));
  return s.look_ahead(next);
}

}  // namespace perigee::cuda
