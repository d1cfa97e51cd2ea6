// Routed experts of steps of many tokens. Those that lie in host memory pass through the device, layer by layer, at the
// speed of the bus: while a group of experts is multiplied, the next ones are copied, up to those of the next layer.
// Experts that are resident need no copy; all may be.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <memory>
#include <vector>

#include "matrix.h"

namespace perigee::cuda {

enum class ExpertMatrix : uint32_t { Gate, Up, Down };

// Rows row_begin .. row_begin + rows of one matrix of each expert of a layer, where a rank holds them.
struct ExpertPart {
  DType type;
  uint32_t row_begin, rows, cols;
  const uint8_t* memory;  // on the host; must outlive the stream
  uint64_t memory_bytes;
  std::vector<uint64_t> offsets;  // [experts] bytes from `memory`
};

// Experts of a layer that are on the device. The arrays may change between steps.
struct ResidentExperts {
  const Matrix *gate, *up, *down;
  const int32_t* slot_of;         // [experts] on the host; -1: not resident
  const int32_t* slot_on_device;  // the same on the device
};

// sum[t] = sum over k, in order, of weight[t][k] * down(silu(gate x) * up x) of expert chosen[t][k]. On the device.
struct RoutedMany {
  const bf16* x;          // [n][hidden]
  const int32_t* chosen;  // [n][used]; negative: none
  const float* weight;    // [n][used]
  uint32_t n;
  float* sum;                   // [n][hidden]
  bool only_residents = false;  // the other experts' parts are left out
};

class ExpertStream {
 public:
  struct Shape {
    uint32_t layers, experts, used, hidden, width;
    uint32_t tokens;  // no step has more
  };
  static constexpr int32_t kNoLayer = -1;

  // Device memory that start() takes. `streams`: experts come from host memory as well.
  static uint64_t device_bytes(const Shape& shape, bool streams);

  // Of the current device, as are all calls.
  explicit ExpertStream(const Shape& shape);
  ~ExpertStream();  // nothing may be running

  // Before start(). Parts of one matrix must together be all its rows; layers without parts are wholly resident or dense.
  void attach(uint32_t layer, ExpertMatrix which, ExpertPart part);
  void set_resident(uint32_t layer, const ResidentExperts& experts);

  // Allocates, and pins the parts' memory where the system lets it; the rest is copied by way of pinned buffers.
  cudaError_t start();

  // Enqueues the routed experts of `layer`. Waits on the host until the stream has come to this call, unless it can do with
  // what is resident and experts have few tokens. `next` is the layer that will be asked for next, so that its experts are on their way, or kNoLayer.
  cudaError_t run(cudaStream_t stream, uint32_t layer, int32_t next, const RoutedMany& step);

  // Packs an expert into a slot of its layer's resident matrices and returns when it is there. It may run beside run() on
  // another thread; no step may be using the slot.
  cudaError_t place(uint32_t layer, uint32_t expert, uint32_t slot);

  // Bytes a second with which a layer's experts arrive on the device.
  cudaError_t measure(double* bytes_per_second);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace perigee::cuda
