// Consecutive layers of a model on one device: their weights, KV pages and work space, and the stream they run on.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "../../engine/door.h"
#include "../../engine/engine.h"
#include "../../engine/taps.h"
#include "buffers.h"
#include "matrix.h"
#include "stages.h"
#include "streaming.h"

namespace perigee::cuda {

struct PartRange {
  int device;
  uint32_t begin, end;  // layers
};

struct ModelOptions {
  ModelConfig config;
  Limits limits;
  std::vector<PartRange> parts;
  std::vector<int32_t> resident;  // [layers] experts that find room on the device
  bool profile;                   // times of stages, no graphs
  uint32_t wait_milliseconds;     // for the ranks

  bool all_resident() const;
};

constexpr size_t kSlots = static_cast<size_t>(Slot::Count), kVectors = static_cast<size_t>(Vector::Count),
                 kTaps = static_cast<size_t>(Tap::Count), kStages = static_cast<size_t>(Stage::Count);

// Rows that pass through a feed-forward network at once: its float activations are wide, its weights are unpacked anew.
constexpr uint32_t kWideRows = 2048;
// Keys that are expanded at once for a prompt.
constexpr uint32_t kKeyChunk = 8192;
// A run of more tokens of one sequence is attended in the expanded form: below, making keys and values of the context out of
// latents would cost more than it saves.
constexpr uint32_t kShortRun = 64;
constexpr uint32_t kLatentRows = 256;  // the most that attend_latents takes

struct Layer {
  Matrix matrices[kSlots];
  float* vectors[kVectors];
  bf16 *k_b, *v_b;   // [heads * nope_dim][kv_rank] (transposed) and [heads * value_dim][kv_rank], for prompts
  int32_t* slot_of;  // [experts] on the device
  int32_t resident;

  const Matrix& operator[](Slot slot) const { return matrices[static_cast<size_t>(slot)]; }
  const float* operator[](Vector vector) const { return vectors[static_cast<size_t>(vector)]; }
};

// T is batch_tokens, F the smaller of T and kFewRows, B the rows of a block of the feed-forward network. Of Rows only the
// first kQuantizedRows have quantized forms.
struct Buffers {
  int32_t* inputs;  // as StepInputs lays them out
  float* rope;      // [context][rope_dim / 2][2]
  float* x;         // [T][hidden] the residual
  Rows h;           // [T] normed
  float* qkv;       // [T][q_rank + kv_rank + rope_dim]
  Rows query;       // [T] of q_rank
  float* q;         // [T][heads][nope_dim + rope_dim]
  bf16* absorbed;   // [min(T, kLatentRows)][heads][kv_rank + rope_dim]
  float* latent;    // the same rows, [heads][kv_rank]
  void* attention_space;
  Rows values;              // [T] of heads * value_dim
  float* delta;             // [T][hidden] what is added to the residual next
  float* shared;            // [F][hidden] what the shared expert adds, where it runs beside the others
  float* scores;            // [T][experts]
  int32_t* chosen;          // [T][used]
  float* weight;            // [T][used]
  uint32_t* counts;         // [layers][experts]
  uint32_t* arrived;        // [1] zero
  Rows mid;                 // [B] of the widest network
  float *gate, *up;         // [B][widest]
  Rows expert_mid;          // [F * used] of expert_width
  bf16* space;              // the largest matrix
  bf16* roped;              // [T][heads][nope_dim + rope_dim]
  bf16 *keys, *k_nope, *v;  // of a chunk: [kv_rank + rope_dim], [heads][nope_dim], [heads][value_dim]
  float* lse;               // [T][heads]
  float* logits;            // [F][vocabulary]
  bf16* pages;              // [layers][pages][page_tokens][kv_rank + rope_dim]
  float* taps[kTaps];       // [layers][T][width]
};

// Where a step's inputs lie in one array of 32-bit words, on the host and on each device.
struct StepInputs {
  explicit StepInputs(const Limits& limits);
  uint32_t tokens = 0, positions, sequences, outputs, page_tables, table_stride;
  uint64_t words;
};

class Part {
 public:
  Part(const ModelOptions& options, const PartRange& range);
  ~Part();

  static uint64_t work_bytes(const ModelOptions& options, const PartRange& range);

  cudaError_t open();
  // Matrix `index` of a slot, as in the file; `raw` on the host or the device. The layer is one of this part's.
  cudaError_t upload(Slot slot, uint32_t layer, DType type, uint32_t index, const uint8_t* raw, uint64_t bytes);
  // Allocates and fills everything but weights. `vectors` [layers of the model][kVectors].
  cudaError_t start(const std::vector<float>* vectors);
  // Where the ranks hold experts of a layer; before start().
  void attach_experts(uint32_t layer, Slot slot, ExpertPart part);
  // Brings the slots of experts to the device if they have changed.
  cudaError_t refresh_slots();
  void set_slot(uint32_t layer, uint32_t expert, int32_t slot);
  void forget_slot(uint32_t layer, int32_t slot);
  // The stream has come to the end of `stage`; only told when there is a profile.
  cudaError_t mark(Stage stage);
  // Adds the times between marks, in milliseconds, and forgets them. Nothing may be running.
  cudaError_t collect_times(double* stage_milliseconds);

  bool has(uint32_t layer) const { return layer >= range.begin && layer < range.end; }
  bool first() const { return range.begin == 0; }
  bool last() const { return range.end == options.config.layers; }
  Layer& layer(uint32_t index) { return layers[index - range.begin]; }
  bf16* pages(uint32_t layer) const;
  const int32_t* input(uint32_t offset) const { return b.inputs + offset; }

  const ModelOptions& options;
  const PartRange range;
  const StepInputs inputs;
  std::vector<Layer> layers;
  Matrix token_embd = {}, output = {};
  float* output_norm = nullptr;
  Buffers b = {};
  std::unique_ptr<ExpertStream> experts;   // of steps of many tokens
  const ExchangeView* exchange = nullptr;  // null: no ranks take part
  cudaStream_t stream = nullptr, side = nullptr;
  cudaEvent_t forked = nullptr, joined = nullptr;  // where `side` leaves `stream` and comes back
  cudaEvent_t done = nullptr;                      // the step's work is done
  // What the stages so far leave to be added to the residual, by the next norm. The second may be on the host.
  const float *pending = nullptr, *also_pending = nullptr;
  Await pending_wait = {};  // before pending_of_ranks can be read

 private:
  cudaError_t upload_vectors(const std::vector<float>* vectors);
  cudaError_t upload_rope();
  cudaError_t widen_heads(Layer& layer);
  cudaError_t prepare_experts();
  Matrix* matrix(Slot slot, uint32_t layer);

  DeviceMemory memory_, staging_;
  uint8_t* raw_ = nullptr;  // of staging_
  uint64_t raw_bytes_ = 0;
  std::vector<int32_t> slots_;  // [layers][experts] the host's copy of slot_of; -1: not resident
  bool slots_changed_ = false;
  struct Mark {
    Stage stage;
    cudaEvent_t event;
  };
  std::vector<Mark> marks_;
  std::vector<cudaEvent_t> spare_events_;
};

}  // namespace perigee::cuda
