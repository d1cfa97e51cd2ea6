#include "part.h"

#include <algorithm>

#include "../../engine/rope.h"
#include "../../engine/sizes.h"
#include "attention.h"
#include "copies.h"
#include "products.h"

namespace perigee::cuda {

namespace {

uint32_t few(const Limits& l) { return std::min(l.batch_tokens, kFewRows); }
uint32_t quantized(const Limits& l) { return std::min(l.batch_tokens, kQuantizedRows); }
bool has_prompts(const Limits& l) { return l.batch_tokens > kShortRun; }

uint32_t vector_length(const ModelConfig& c, size_t vector) {
  const uint32_t lengths[kVectors] = {0, c.hidden, c.hidden, c.q_rank, c.kv_rank, c.experts};  // OutputNorm: the part's
  return lengths[vector];
}

// The most that any matrix takes which many rows are multiplied with.
uint64_t space_bytes(const ModelOptions& options) {
  if (options.limits.batch_tokens <= kFewRows) return 0;
  uint64_t most = 0;
  for (const Slot slot : {Slot::AttnQ, Slot::AttnQA, Slot::AttnQB, Slot::AttnKVA, Slot::AttnOutput, Slot::FfnGate,
                          Slot::FfnUp, Slot::FfnDown, Slot::SharedGate, Slot::SharedUp, Slot::SharedDown}) {
    const MatrixShape shape = slot_shape(options.config, slot);
    const Matrix matrix = {DType::Q8_0, shape.rows, shape.cols, 1, 0, nullptr};
    if (shape.rows > 0) most = std::max(most, wide_bytes(matrix));
  }
  return most;
}

ExpertStream::Shape stream_shape(const ModelOptions& options) {
  const ModelConfig& c = options.config;
  return {c.layers, c.experts, c.experts_used, c.hidden, c.expert_width, options.limits.batch_tokens};
}

bool needs_stream(const ModelOptions& options, const PartRange& range) {
  return range.end > options.config.dense_layers && (options.limits.batch_tokens > kFewRows || !options.all_resident());
}

// `n` rows, of which the first few have quantized forms.
Rows take_rows(Carver& carver, uint32_t cols, uint32_t n, uint32_t few) {
  const uint64_t all = uint64_t{n} * cols, padded = uint64_t{few} * padded_cols(cols);
  return {cols,
          carver.take<float>(all),
          carver.take<bf16>(all),
          carver.take<int8_t>(padded),
          carver.take<float>(padded / 32),
          carver.take<float>(padded / 16)};
}

void lay_out_attention(Carver& carver, const ModelOptions& options, Buffers& b) {
  const ModelConfig& c = options.config;
  const Limits& l = options.limits;
  const uint64_t t = l.batch_tokens, latent_rows = std::min(l.batch_tokens, kLatentRows);
  b.qkv = carver.take<float>(t * (c.q_rank + c.latent_dim()));
  b.query = take_rows(carver, c.q_rank, l.batch_tokens, quantized(l));
  b.q = carver.take<float>(t * c.heads * c.query_dim());
  b.absorbed = carver.take<bf16>(latent_rows * c.heads * c.latent_dim());
  b.latent = carver.take<float>(latent_rows * c.heads * c.kv_rank);
  b.attention_space =
      carver.take<uint8_t>(latent_attention_space(static_cast<uint32_t>(latent_rows), c.heads, c.kv_rank));
  b.values = take_rows(carver, c.heads * c.value_dim, l.batch_tokens, quantized(l));
  if (!has_prompts(l)) return;
  const uint64_t keys = std::min(l.context, kKeyChunk);
  b.roped = carver.take<bf16>(t * c.heads * c.query_dim());
  b.keys = carver.take<bf16>(keys * c.latent_dim());
  b.k_nope = carver.take<bf16>(std::max<uint64_t>(keys * c.heads, c.kv_rank) * c.nope_dim);
  b.v = carver.take<bf16>(keys * c.heads * c.value_dim);
  b.lse = carver.take<float>(t * c.heads);
}

void lay_out_networks(Carver& carver, const ModelOptions& options, uint32_t layers, Buffers& b) {
  const ModelConfig& c = options.config;
  const Limits& l = options.limits;
  const uint64_t t = l.batch_tokens;
  const uint32_t widest = std::max(c.dense_width, c.shared_width), rows = std::min(l.batch_tokens, kWideRows);
  b.scores = carver.take<float>(t * c.experts);
  b.chosen = carver.take<int32_t>(t * c.experts_used);
  b.weight = carver.take<float>(t * c.experts_used);
  b.counts = carver.take<uint32_t>(uint64_t{layers} * c.experts);
  b.arrived = carver.take<uint32_t>(1);
  b.mid = take_rows(carver, widest, rows, quantized(l));
  if (l.batch_tokens > kFewRows) {
    b.gate = carver.take<float>(uint64_t{rows} * widest);
    b.up = carver.take<float>(uint64_t{rows} * widest);
  }
  b.expert_mid = take_rows(carver, c.expert_width, few(l) * c.experts_used, few(l) * c.experts_used);
  b.space = carver.take<bf16>(space_bytes(options) / sizeof(bf16));
}

void lay_out(Carver& carver, const ModelOptions& options, const PartRange& range, Buffers& b,
             std::vector<Layer>& layers, float** output_norm) {
  const ModelConfig& c = options.config;
  const Limits& l = options.limits;
  const uint64_t t = l.batch_tokens, count = range.end - range.begin;
  b.inputs = carver.take<int32_t>(StepInputs(l).words);
  b.rope = carver.take<float>(uint64_t{l.context} * c.rope_dim);
  b.x = carver.take<float>(t * c.hidden);
  b.h = take_rows(carver, c.hidden, l.batch_tokens, quantized(l));
  b.delta = carver.take<float>(t * c.hidden);
  b.shared = carver.take<float>(uint64_t{few(l)} * c.hidden);
  lay_out_attention(carver, options, b);
  lay_out_networks(carver, options, static_cast<uint32_t>(count), b);
  if (range.end == c.layers) b.logits = carver.take<float>(uint64_t{few(l)} * c.vocabulary);
  b.pages = carver.take<bf16>(count * l.pages * l.page_tokens * c.latent_dim());
  for (size_t tap = 0; tap < kTaps && l.taps; tap++)
    b.taps[tap] = carver.take<float>(count * t * tap_width(c, static_cast<Tap>(tap)));
  *output_norm = carver.take<float>(c.hidden);
  for (Layer& layer : layers) {
    for (size_t v = 0; v < kVectors; v++) layer.vectors[v] = carver.take<float>(vector_length(c, v));
    layer.slot_of = carver.take<int32_t>(c.experts);
    if (!has_prompts(l)) continue;
    layer.k_b = carver.take<bf16>(uint64_t{c.heads} * c.nope_dim * c.kv_rank);
    layer.v_b = carver.take<bf16>(uint64_t{c.heads} * c.value_dim * c.kv_rank);
  }
}

}  // namespace

bool ModelOptions::all_resident() const {
  for (uint32_t layer = config.dense_layers; layer < config.layers; layer++)
    if (resident[layer] != static_cast<int32_t>(config.experts)) return false;
  return true;
}

StepInputs::StepInputs(const Limits& l)
    : positions(l.batch_tokens),
      sequences(2 * l.batch_tokens),
      outputs(3 * l.batch_tokens),
      page_tables(3 * l.batch_tokens + l.batch_outputs),
      table_stride((l.context + l.page_tokens - 1) / l.page_tokens),
      words(page_tables + uint64_t{l.batch_sequences} * table_stride) {}

uint64_t Part::work_bytes(const ModelOptions& options, const PartRange& range) {
  Carver carver(nullptr);
  Buffers buffers;
  std::vector<Layer> layers(range.end - range.begin);
  float* output_norm;
  lay_out(carver, options, range, buffers, layers, &output_norm);
  const uint64_t streamed =
      needs_stream(options, range) ? ExpertStream::device_bytes(stream_shape(options), !options.all_resident()) : 0;
  return carver.used() + streamed;
}

Part::Part(const ModelOptions& o, const PartRange& r)
    : options(o), range(r), inputs(o.limits), layers(r.end - r.begin), slots_(layers.size() * o.config.experts, -1) {
  for (Layer& layer : layers) layer = {};
  for (uint32_t layer = std::max(r.begin, o.config.dense_layers); layer < r.end; layer++) {
    Layer& mine = this->layer(layer);
    mine.resident = o.resident[layer];
    if (mine.resident != static_cast<int32_t>(o.config.experts)) continue;
    for (uint32_t expert = 0; expert < o.config.experts; expert++)
      set_slot(layer, expert, static_cast<int32_t>(expert));
  }
}

Part::~Part() {
  cudaSetDevice(range.device);
  experts.reset();
  for (const Mark& mark : marks_) cudaEventDestroy(mark.event);
  for (cudaEvent_t event : spare_events_) cudaEventDestroy(event);
  for (cudaEvent_t event : {done, forked, joined})
    if (event) cudaEventDestroy(event);
  for (cudaStream_t at : {stream, side})
    if (at) cudaStreamDestroy(at);
  memory_.free_all();
  staging_.free_all();
}

cudaError_t Part::open() {
  CUDA_TRY(cudaSetDevice(range.device));
  CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CUDA_TRY(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&forked, &joined}) CUDA_TRY(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  // Blocking: a thread that waits leaves its core to the ranks.
  CUDA_TRY(cudaEventCreateWithFlags(&done, cudaEventDisableTiming | cudaEventBlockingSync));
  CUDA_TRY(prepare_products(range.device));
  return prepare_attention(range.device);
}

Matrix* Part::matrix(Slot slot, uint32_t layer) {
  if (slot == Slot::TokenEmbd) return &token_embd;
  if (slot == Slot::Output) return &output;
  return &this->layer(layer).matrices[static_cast<size_t>(slot)];
}

cudaError_t Part::upload(Slot slot, uint32_t layer, DType type, uint32_t index, const uint8_t* raw, uint64_t bytes) {
  const MatrixShape shape = slot_shape(options.config, slot);
  const bool as_it_is = slot == Slot::TokenEmbd || slot == Slot::Router;
  Matrix& to = *matrix(slot, layer);
  if (!to.packed) {
    const uint64_t stride = as_it_is ? bytes : packed_bytes(type, shape.rows, shape.cols);
    to = {type, shape.rows, shape.cols, shape.count, stride, nullptr};
    CUDA_TRY(memory_.take(stride * shape.count, &to.packed));
  }
  if (as_it_is) {
    CUDA_TRY(cudaMemcpyAsync(to.packed, raw, bytes, cudaMemcpyDefault, stream));
  } else {
    if (raw_bytes_ < bytes) {
      staging_.free_all();
      CUDA_TRY(staging_.take(bytes, &raw_));
      raw_bytes_ = bytes;
    }
    CUDA_TRY(cudaMemcpyAsync(raw_, raw, bytes, cudaMemcpyDefault, stream));
    CUDA_TRY(pack(stream, to, index, raw_));
  }
  CUDA_TRY(cudaStreamSynchronize(stream));
  return cudaSuccess;
}

cudaError_t Part::start(const std::vector<float>* vectors) {
  staging_.free_all();
  raw_bytes_ = 0;
  Carver counted(nullptr), carver(nullptr);
  lay_out(counted, options, range, b, layers, &output_norm);
  uint8_t* block;
  CUDA_TRY(memory_.take(counted.used(), &block));
  CUDA_TRY(cudaMemsetAsync(block, 0, counted.used(), stream));
  carver = Carver(block);
  lay_out(carver, options, range, b, layers, &output_norm);
  CUDA_TRY(upload_rope());
  CUDA_TRY(upload_vectors(vectors));
  if (has_prompts(options.limits))
    for (Layer& layer : layers) CUDA_TRY(widen_heads(layer));
  CUDA_TRY(prepare_experts());
  CUDA_TRY(refresh_slots());
  CUDA_TRY(cudaStreamSynchronize(stream));
  return cudaSuccess;
}

cudaError_t Part::upload_rope() {
  const ModelConfig& c = options.config;
  std::vector<float> frequencies(c.rope_dim / 2), table(size_t{options.limits.context} * c.rope_dim);
  rope_frequencies(c, frequencies.data());
  for (uint32_t p = 0; p < options.limits.context; p++)
    rope_table(frequencies.data(), c.rope_dim / 2, p, c.rope_magnitude, table.data() + size_t{p} * c.rope_dim);
  CUDA_TRY(cudaMemcpyAsync(b.rope, table.data(), table.size() * sizeof(float), cudaMemcpyHostToDevice, stream));
  CUDA_TRY(cudaStreamSynchronize(stream));
  return cudaSuccess;
}

cudaError_t Part::upload_vectors(const std::vector<float>* vectors) {
  const auto bring = [&](const std::vector<float>& from, float* to) -> cudaError_t {
    CUDA_TRY(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(float), cudaMemcpyHostToDevice, stream));
    return cudaSuccess;
  };
  CUDA_TRY(bring(vectors[static_cast<size_t>(Vector::OutputNorm)], output_norm));
  for (uint32_t i = 0; i < layers.size(); i++)
    for (size_t v = 0; v < kVectors; v++)
      if (v != static_cast<size_t>(Vector::OutputNorm))
        CUDA_TRY(bring(vectors[(range.begin + i) * kVectors + v], layers[i].vectors[v]));
  return cudaSuccess;
}

// k_b and v_b as products with many rows read them. `k_nope` is not in use yet: it holds a head on its way.
cudaError_t Part::widen_heads(Layer& layer) {
  const ModelConfig& c = options.config;
  for (uint32_t head = 0; head < c.heads; head++) {
    CUDA_TRY(unpack(stream, layer[Slot::AttnKB], head, b.k_nope));
    CUDA_TRY(transpose(stream, b.k_nope, c.kv_rank, c.nope_dim, layer.k_b + uint64_t{head} * c.nope_dim * c.kv_rank));
    CUDA_TRY(unpack(stream, layer[Slot::AttnVB], head, layer.v_b + uint64_t{head} * c.value_dim * c.kv_rank));
  }
  return cudaSuccess;
}

// Room for experts that are placed later, and the stream that brings the rest.
cudaError_t Part::prepare_experts() {
  const ModelConfig& c = options.config;
  if (!needs_stream(options, range)) return cudaSuccess;
  if (!experts) experts = std::make_unique<ExpertStream>(stream_shape(options));
  for (uint32_t index = std::max(range.begin, c.dense_layers); index < range.end; index++) {
    Layer& mine = layer(index);
    if (mine.resident == 0) continue;
    for (const Slot slot : {Slot::ExpertGate, Slot::ExpertUp, Slot::ExpertDown}) {
      Matrix& to = *matrix(slot, index);
      if (to.packed) continue;
      const MatrixShape shape = slot_shape(c, slot);
      to.stride = packed_bytes(to.type, shape.rows, shape.cols);
      to.rows = shape.rows;
      to.cols = shape.cols;
      to.count = static_cast<uint32_t>(mine.resident);
      CUDA_TRY(memory_.take(to.stride * to.count, &to.packed));
    }
    experts->set_resident(index, {&mine[Slot::ExpertGate], &mine[Slot::ExpertUp], &mine[Slot::ExpertDown],
                                  slots_.data() + size_t{index - range.begin} * c.experts, mine.slot_of});
  }
  return experts->start();
}

void Part::attach_experts(uint32_t index, Slot slot, ExpertPart part) {
  if (!experts) experts = std::make_unique<ExpertStream>(stream_shape(options));
  matrix(slot, index)->type = part.type;
  const uint32_t which = static_cast<uint32_t>(slot) - static_cast<uint32_t>(Slot::ExpertGate);
  experts->attach(index, static_cast<ExpertMatrix>(which), std::move(part));
}

void Part::set_slot(uint32_t index, uint32_t expert, int32_t slot) {
  slots_[size_t{index - range.begin} * options.config.experts + expert] = slot;
  slots_changed_ = true;
}

void Part::forget_slot(uint32_t index, int32_t slot) {
  for (uint32_t expert = 0; expert < options.config.experts; expert++)
    if (slots_[size_t{index - range.begin} * options.config.experts + expert] == slot) set_slot(index, expert, -1);
}

cudaError_t Part::refresh_slots() {
  if (!slots_changed_) return cudaSuccess;
  slots_changed_ = false;
  const uint32_t count = options.config.experts;
  for (size_t i = 0; i < layers.size(); i++) {
    CUDA_TRY(cudaMemcpyAsync(layers[i].slot_of, slots_.data() + i * count, count * sizeof(int32_t),
                             cudaMemcpyHostToDevice, stream));
  }
  return cudaSuccess;
}

bf16* Part::pages(uint32_t index) const {
  const Limits& l = options.limits;
  return b.pages + uint64_t{index - range.begin} * l.pages * l.page_tokens * options.config.latent_dim();
}

cudaError_t Part::mark(Stage stage) {
  if (!options.profile) return cudaSuccess;
  if (spare_events_.empty()) {
    cudaEvent_t event;
    CUDA_TRY(cudaEventCreate(&event));
    spare_events_.push_back(event);
  }
  marks_.push_back({stage, spare_events_.back()});
  spare_events_.pop_back();
  CUDA_TRY(cudaEventRecord(marks_.back().event, stream));
  return cudaSuccess;
}

cudaError_t Part::collect_times(double* stage_milliseconds) {
  for (size_t i = 0; i < marks_.size(); i++) {
    float passed = 0;
    if (i > 0) CUDA_TRY(cudaEventElapsedTime(&passed, marks_[i - 1].event, marks_[i].event));
    if (marks_[i].stage != Stage::Count) stage_milliseconds[static_cast<size_t>(marks_[i].stage)] += passed;
  }
  for (const Mark& mark : marks_) spare_events_.push_back(mark.event);
  marks_.clear();
  return cudaSuccess;
}

}  // namespace perigee::cuda
