#include "device_model.h"

#include <string.h>

#include <algorithm>
#include <map>

#include "../../engine/kernels/kernels.h"
#include "../../engine/sizes.h"
#include "../../engine/state.h"
#include "devices.h"

namespace perigee::cuda {

namespace {

constexpr uint64_t kPage = 4096;  // what becomes pinned

// 'cudaMalloc failed: out of memory (native/cuda/buffers.h:24)', '' for success.
std::string sentence(cudaError_t code) {
  const Failure failure = take_failure();
  if (failure.code != cudaSuccess) code = failure.code;
  if (code == cudaSuccess) return "";
  std::string call = failure.call ? failure.call : "a CUDA call";
  call = call.substr(0, call.find('('));
  std::string text = call + " failed: " + cudaGetErrorString(code);
  if (failure.file) text += " (" + std::string(failure.file) + ":" + std::to_string(failure.line) + ")";
  return text;
}

std::string gigabytes(uint64_t bytes) {
  char text[32];
  snprintf(text, sizeof text, "%.2f GB", static_cast<double>(bytes) * 1e-9);
  return text;
}

bool is_expert(Slot slot) { return slot >= Slot::ExpertGate && slot <= Slot::ExpertDown; }

bool widths_fit(const ModelConfig& c) {
  for (const uint32_t width : {c.hidden, c.q_rank, c.kv_rank, c.nope_dim, c.rope_dim, c.value_dim, c.dense_width,
                               c.expert_width, c.shared_width})
    if (width % 32) return false;
  return true;
}

}  // namespace

std::string DeviceModel::refusal(const ModelOptions& o) {
  if (!config_is_sound(o.config, o.limits) || !widths_fit(o.config)) return "the model's shape is refused";
  if (o.limits.exact) return "float activations are not to be had on a CUDA device";
  if (o.resident.size() != o.config.layers || o.parts.empty()) return "parts or resident experts are missing";
  uint32_t next = 0;
  for (const PartRange& part : o.parts) {
    if (part.begin != next || part.end <= part.begin) return "the parts' layers have gaps";
    next = part.end;
  }
  if (next != o.config.layers) return "the parts' layers have gaps";
  for (const int32_t resident : o.resident)
    if (resident < 0 || resident > static_cast<int32_t>(o.config.experts)) return "no layer has so many experts";
  return "";
}

DeviceModel::~DeviceModel() {
  // All of a device: experts may be on their way from memory that another part has pinned and will let go.
  for (const auto& at : parts_) {
    cudaSetDevice(at->part.range.device);
    cudaDeviceSynchronize();
  }
  parts_.clear();
  if (registered_) cudaHostUnregister(registered_);
  if (pinned_) cudaFreeHost(pinned_);
  take_failure();
}

std::string DeviceModel::open() {
  vectors_.resize(size_t{options_.config.layers} * kVectors);
  for (const PartRange& range : options_.parts) {
    parts_.push_back(std::make_unique<OnDevice>(options_, range));
    if (const std::string why = sentence(parts_.back()->part.open()); !why.empty()) return why;
  }
  for (size_t i = 1; i < parts_.size(); i++)
    connect_devices(parts_[i - 1]->part.range.device, parts_[i]->part.range.device);
  return "";
}

Part* DeviceModel::part_of(uint32_t layer) {
  for (const auto& at : parts_) {
    if (!at->part.has(layer)) continue;
    cudaSetDevice(at->part.range.device);
    return &at->part;
  }
  return nullptr;
}

std::string DeviceModel::upload(Slot slot, uint32_t layer, DType type, uint32_t rows, uint32_t cols, uint32_t count,
                                uint32_t index, const uint8_t* raw, uint64_t bytes) {
  const ModelConfig& c = options_.config;
  const MatrixShape shape = slot_shape(c, slot);
  const BlockShape block = static_cast<uint32_t>(type) < kDTypeCount ? block_shape(type) : BlockShape{0, 0};
  Part* part = slot == Slot::Output ? part_of(c.layers - 1) : part_of(layer);
  const bool fits = part && rows == shape.rows && cols == shape.cols && count == shape.count && index < count &&
                    rows > 0 && block.elements > 0 && cols % block.elements == 0 &&
                    bytes == uint64_t{row_bytes(type, cols)} * rows;
  if (!fits) return "a matrix does not fit the model";
  if (slot == Slot::Router && block.elements != 1) return "the router's weights must be floats";
  if (is_expert(slot) && options_.resident[layer] != static_cast<int32_t>(c.experts))
    return "only experts of a layer that is wholly resident are uploaded";
  return sentence(part->upload(slot, layer, type, index, raw, bytes));
}

bool DeviceModel::set_vector(Vector vector, uint32_t layer, DType type, const uint8_t* raw, uint64_t bytes) {
  const ModelConfig& c = options_.config;
  const uint32_t lengths[kVectors] = {c.hidden, c.hidden, c.hidden, c.q_rank, c.kv_rank, c.experts};
  if (vector >= Vector::Count || layer >= c.layers) return false;
  const uint32_t length = lengths[static_cast<size_t>(vector)];
  const BlockShape block = static_cast<uint32_t>(type) < kDTypeCount ? block_shape(type) : BlockShape{0, 0};
  if (length == 0 || block.elements == 0 || length % block.elements || bytes != row_bytes(type, length)) return false;
  std::vector<float>& to = vectors_[layer * kVectors + static_cast<size_t>(vector)];
  to.resize(length);
  kScalarKernels.dequantize(type, raw, length, to.data());
  return true;
}

std::string DeviceModel::attach_exchange(uint8_t* memory, uint64_t bytes, const ExchangeOffsets& at) {
  const ModelConfig& c = options_.config;
  const uint64_t t = options_.limits.batch_tokens;
  const uint64_t begins[] = {at.asked, at.done, at.failed, at.h, at.chosen, at.weight, at.sum};
  const uint64_t sizes[] = {
      4, 4, 4, t * c.hidden * 4, t * c.experts_used * 4, t * c.experts_used * 4, t * c.hidden * 4};
  uint64_t first = bytes, last = 0;
  for (size_t i = 0; i < 7; i++) {
    if (sizes[i] > bytes || begins[i] > bytes - sizes[i] || begins[i] % 4)
      return "the exchange lies outside its memory";
    first = std::min(first, begins[i]);
    last = std::max(last, begins[i] + sizes[i]);
  }
  const uint64_t base = reinterpret_cast<uint64_t>(memory), begin = (base + first) / kPage * kPage;
  const uint64_t end = (base + last + kPage - 1) / kPage * kPage;
  void* pinned = reinterpret_cast<void*>(begin);
  void* mapped = nullptr;
  const auto pin = [&]() -> cudaError_t {
    CUDA_TRY(cudaSetDevice(options_.parts[0].device));
    CUDA_TRY(cudaHostRegister(pinned, end - begin, cudaHostRegisterMapped | cudaHostRegisterPortable));
    registered_ = pinned;
    CUDA_TRY(cudaHostGetDevicePointer(&mapped, pinned, 0));
    return cudaSuccess;
  };
  if (const std::string why = sentence(pin()); !why.empty()) return why;
  const auto view = [&](uint8_t* from) {
    return ExchangeView{reinterpret_cast<float*>(from + at.h),        reinterpret_cast<int32_t*>(from + at.chosen),
                        reinterpret_cast<float*>(from + at.weight),   reinterpret_cast<float*>(from + at.sum),
                        reinterpret_cast<uint32_t*>(from + at.asked), reinterpret_cast<uint32_t*>(from + at.done),
                        reinterpret_cast<uint32_t*>(from + at.failed)};
  };
  exchange_on_host_ = view(memory);
  exchange_ = view(static_cast<uint8_t*>(mapped) + (base - begin));
  has_ranks_ = true;
  for (const auto& on_device : parts_) on_device->part.exchange = &exchange_;
  return "";
}

std::string DeviceModel::attach_experts(uint32_t layer, Slot slot, ExpertPart part) {
  const MatrixShape shape = slot_shape(options_.config, slot);
  const uint64_t bytes = uint64_t{row_bytes(part.type, part.cols)} * part.rows;
  bool fits = is_expert(slot) && layer >= options_.config.dense_layers && layer < options_.config.layers &&
              part.cols == shape.cols && part.row_begin <= shape.rows && part.rows <= shape.rows - part.row_begin &&
              part.offsets.size() == shape.count && bytes <= part.memory_bytes;
  for (size_t i = 0; fits && i < part.offsets.size(); i++) fits = part.offsets[i] <= part.memory_bytes - bytes;
  if (!fits) return "a rank's experts do not fit the model";
  part_of(layer)->attach_experts(layer, slot, std::move(part));
  return "";
}

std::string DeviceModel::room_for_work() const {
  std::map<int, uint64_t> needs;
  for (const PartRange& range : options_.parts) needs[range.device] += Part::work_bytes(options_, range);
  for (const auto& [device, bytes] : needs) {
    size_t free = 0, total = 0;
    cudaSetDevice(device);
    if (cudaMemGetInfo(&free, &total) != cudaSuccess || free >= bytes) continue;
    return "device " + std::to_string(device) + " needs " + gigabytes(bytes) +
           " beside the weights for pages and activations, " + gigabytes(free) + " of its " + gigabytes(total) +
           " are free";
  }
  return "";
}

cudaError_t DeviceModel::start_parts() {
  const Limits& l = options_.limits;
  CUDA_TRY(cudaHostAlloc(reinterpret_cast<void**>(&pinned_), inputs_.words * sizeof(int32_t), cudaHostAllocPortable));
  float* logits = nullptr;
  CUDA_TRY(cudaHostAlloc(reinterpret_cast<void**>(&logits),
                         size_t{l.batch_outputs} * options_.config.vocabulary * sizeof(float), cudaHostAllocPortable));
  logits_ = {logits, [](float* at) { cudaFreeHost(at); }};
  memset(pinned_, 0, inputs_.words * sizeof(int32_t));
  block_.logits = logits;
  block_.table_stride = inputs_.table_stride;
  block_.tokens = pinned_ + inputs_.tokens;
  block_.positions = pinned_ + inputs_.positions;
  block_.sequences = pinned_ + inputs_.sequences;
  block_.outputs = pinned_ + inputs_.outputs;
  block_.page_tables = pinned_ + inputs_.page_tables;
  for (const auto& at : parts_) {
    CUDA_TRY(cudaSetDevice(at->part.range.device));
    CUDA_TRY(at->part.start(vectors_.data()));
  }
  return cudaSuccess;
}

std::string DeviceModel::start() {
  if (const std::string why = room_for_work(); !why.empty()) return why;
  return sentence(start_parts());
}

bool DeviceModel::block_is_sound() const {
  Engine bounds = {};  // only what the check reads
  bounds.config = options_.config;
  bounds.limits = options_.limits;
  bounds.step = block_;
  return engine_check_step(bounds) == Status::Ok;
}

void DeviceModel::give_up() {
  if (has_ranks_) __atomic_store_n(exchange_on_host_.failed, 1, __ATOMIC_SEQ_CST);
}

Step DeviceModel::describe_step(bool streaming) const {
  const uint32_t n = block_.tokens_count;
  Step step = {n, block_.outputs_count, 0, n <= kFewRows, streaming && !options_.all_resident(), {}};
  for (uint32_t t = 0; t < n; t++) {
    step.most_positions = std::max(step.most_positions, static_cast<uint32_t>(block_.positions[t]) + 1);
    const bool same = t > 0 && block_.sequences[t] == block_.sequences[t - 1];
    if (!same) step.runs.push_back({t, 0, static_cast<uint32_t>(block_.sequences[t]), block_.positions[t]});
    step.runs.back().count++;
  }
  for (const Run& run : step.runs) step.pairs = step.pairs && run.count % 2 == 0;
  if (n <= kFewRows) step.most_positions = positions_bucket(step.most_positions, options_.limits.context);
  return step;
}

cudaError_t DeviceModel::bring_inputs(Part& part) const {
  const uint64_t words = inputs_.page_tables + uint64_t{block_.sequences_count} * inputs_.table_stride;
  CUDA_TRY(cudaMemcpyAsync(part.b.inputs, pinned_, words * sizeof(int32_t), cudaMemcpyHostToDevice, part.stream));
  return part.refresh_slots();
}

cudaError_t DeviceModel::run_parts(const Step& step) {
  const bool by_graph = step.n <= kFewRows && !step.streaming && !options_.profile && !options_.limits.taps;
  const uint64_t residual = uint64_t{step.n} * options_.config.hidden * sizeof(float);
  const Part* before = nullptr;
  for (const auto& at : parts_) {
    Part& part = at->part;
    CUDA_TRY(cudaSetDevice(part.range.device));
    CUDA_TRY(bring_inputs(part));
    if (before) {
      CUDA_TRY(cudaStreamWaitEvent(part.stream, before->done));
      CUDA_TRY(
          cudaMemcpyPeerAsync(part.b.x, part.range.device, before->b.x, before->range.device, residual, part.stream));
    }
    CUDA_TRY(by_graph ? at->graphs.run(part, step, block_.logits) : forward(part, step, block_.logits));
    CUDA_TRY(cudaEventRecord(part.done, part.stream));
    before = &part;
  }
  CUDA_TRY(cudaEventSynchronize(before->done));
  for (const auto& at : parts_) CUDA_TRY(at->part.collect_times(stage_milliseconds_));
  return cudaSuccess;
}

Outcome DeviceModel::step(bool streaming, std::string* failure, const float* residuals) {
  Step step = describe_step(streaming);
  step.residuals = residuals;
  *failure = sentence(run_parts(step));
  if (failure->empty() && has_ranks_ && !streaming && __atomic_load_n(exchange_on_host_.failed, __ATOMIC_SEQ_CST))
    *failure = "the expert ranks gave no answer within " + std::to_string(options_.wait_milliseconds) + " ms";
  return failure->empty() ? Outcome::Done : Outcome::Failed;
}

uint64_t DeviceModel::tap_floats(Tap tap, uint32_t layer, uint32_t tokens) const {
  const bool there =
      options_.limits.taps && tap_exists(options_.config, tap, layer) && tokens <= options_.limits.batch_tokens;
  return there ? uint64_t{tokens} * tap_width(options_.config, tap) : 0;
}

bool DeviceModel::tap(Tap tap, uint32_t layer, uint32_t tokens, float* to) {
  const uint64_t floats = tap_floats(tap, layer, tokens);
  Part* part = part_of(layer);
  if (floats == 0 || !part) return false;
  const uint64_t before =
      uint64_t{layer - part->range.begin} * options_.limits.batch_tokens * tap_width(options_.config, tap);
  return cudaMemcpy(to, part->b.taps[static_cast<size_t>(tap)] + before, floats * sizeof(float),
                    cudaMemcpyDeviceToHost) == cudaSuccess;
}

void DeviceModel::expert_counts(uint32_t* to) {
  for (const auto& at : parts_) {
    const uint64_t experts = options_.config.experts;
    cudaSetDevice(at->part.range.device);
    if (at->part.b.counts)
      cudaMemcpy(to + at->part.range.begin * experts, at->part.b.counts,
                 at->part.layers.size() * experts * sizeof(uint32_t), cudaMemcpyDeviceToHost);
  }
}

std::string DeviceModel::forget(uint32_t layer, uint32_t expert, uint32_t slot) {
  const ModelConfig& c = options_.config;
  const bool fits = layer >= c.dense_layers && layer < c.layers && expert < c.experts &&
                    slot < static_cast<uint32_t>(options_.resident[layer]);
  if (!fits) return "there is no such expert or slot";
  Part& part = *part_of(layer);
  part.forget_slot(layer, static_cast<int32_t>(slot));
  part.set_slot(layer, expert, -1);
  return "";
}

std::string DeviceModel::place(uint32_t layer, uint32_t expert, uint32_t slot) {
  return sentence(part_of(layer)->experts->place(layer, expert, slot));
}

void DeviceModel::use(uint32_t layer, uint32_t expert, uint32_t slot) {
  part_of(layer)->set_slot(layer, expert, static_cast<int32_t>(slot));
}

std::string DeviceModel::measure_streaming(double* gb_per_second) {
  for (const auto& at : parts_) {
    if (!at->part.experts) continue;
    double bytes = 0;
    cudaSetDevice(at->part.range.device);
    const std::string why = sentence(at->part.experts->measure(&bytes));
    *gb_per_second = bytes * 1e-9;
    return why;
  }
  return "no experts pass through a device";
}

}  // namespace perigee::cuda
