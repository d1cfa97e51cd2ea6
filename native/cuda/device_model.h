// A model on one or several devices: what a door asks of it. Every call that can fail says how in a sentence, '' for not.
#pragma once
#include <string>

#include "forward.h"
#include "graphs.h"

namespace perigee::cuda {

// How a step ended; values as in native/session.h, which has no Failed.
enum class Outcome : int32_t { Done = 0, Refused = 1, Closed = 2, Failed = 4 };

// Bytes from the start of the memory that is shared with the ranks: words and arrays of ExchangeView.
struct ExchangeOffsets {
  uint64_t asked, done, failed, h, chosen, weight, sum;
};

// One thread calls it at a time, but for place(), which may run beside step(), and for what says otherwise.
class DeviceModel {
 public:
  explicit DeviceModel(ModelOptions options) : options_(std::move(options)), inputs_(options_.limits) {}
  ~DeviceModel();
  DeviceModel(const DeviceModel&) = delete;
  DeviceModel& operator=(const DeviceModel&) = delete;

  // Why options cannot be followed; '' when they can.
  static std::string refusal(const ModelOptions& options);

  std::string open();
  std::string upload(Slot slot, uint32_t layer, DType type, uint32_t rows, uint32_t cols, uint32_t count,
                     uint32_t index, const uint8_t* raw, uint64_t bytes);
  bool set_vector(Vector vector, uint32_t layer, DType type, const uint8_t* raw, uint64_t bytes);
  std::string attach_exchange(uint8_t* memory, uint64_t bytes, const ExchangeOffsets& offsets);
  std::string attach_experts(uint32_t layer, Slot slot, ExpertPart part);
  std::string start();

  // Inputs and outputs in pinned memory, after start().
  StepBlock& block() { return block_; }
  const std::shared_ptr<float>& logits() const { return logits_; }  // [batch_outputs][vocabulary]
  bool block_is_sound() const;
  // Makes waiting for the ranks end, from any thread.
  void give_up();
  // `residuals` as in Step.
  Outcome step(bool streaming, std::string* failure, const float* residuals = nullptr);

  // A copy of a tap of the last step's first `tokens` tokens; false where there is none.
  bool tap(Tap tap, uint32_t layer, uint32_t tokens, float* to);
  uint64_t tap_floats(Tap tap, uint32_t layer, uint32_t tokens) const;
  void expert_counts(uint32_t* to);  // [layers][experts]
  const double* stage_milliseconds() const { return stage_milliseconds_; }

  // Placing an expert: forget who had the slot, bring it, use it. Only place() may run beside a step.
  std::string forget(uint32_t layer, uint32_t expert, uint32_t slot);
  std::string place(uint32_t layer, uint32_t expert, uint32_t slot);
  void use(uint32_t layer, uint32_t expert, uint32_t slot);
  std::string measure_streaming(double* gb_per_second);

  const ModelOptions& options() const { return options_; }

 private:
  struct OnDevice {
    Part part;
    StepGraphs graphs;
    OnDevice(const ModelOptions& options, const PartRange& range) : part(options, range) {}
  };

  Part* part_of(uint32_t layer);
  std::string room_for_work() const;
  cudaError_t start_parts();
  Step describe_step(bool streaming) const;
  cudaError_t run_parts(const Step& step);
  cudaError_t bring_inputs(Part& part) const;

  const ModelOptions options_;
  const StepInputs inputs_;
  std::vector<std::unique_ptr<OnDevice>> parts_;
  std::vector<std::vector<float>> vectors_;  // [layers][kVectors]
  StepBlock block_ = {};
  std::shared_ptr<float> logits_;
  int32_t* pinned_ = nullptr;  // StepInputs
  void* registered_ = nullptr;
  ExchangeView exchange_ = {}, exchange_on_host_ = {};
  bool has_ranks_ = false;
  double stage_milliseconds_[kStages] = {};
};

}  // namespace perigee::cuda
