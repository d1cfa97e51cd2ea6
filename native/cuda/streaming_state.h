// What an ExpertStream has: sources of experts, the ring they pass through, and the plan of a layer.
#pragma once
#include <mutex>

#include "buffers.h"
#include "host_copies.h"
#include "streaming.h"

namespace perigee::cuda {

// Experts that are multiplied together. The bus needs 3.6 ms for eight of Kimi K2, the device about 1.3 for the products of
// a prompt of 32k tokens.
constexpr uint32_t kTogether = 8;

struct ExpertStream::State {
  struct MatrixSource {
    DType type;
    uint32_t rows, cols;
    uint64_t bytes = 0;  // of one expert, as it lies on the device
    std::vector<ExpertPart> parts;
  };
  struct Layer {
    MatrixSource of[3];
    ResidentExperts resident = {};
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

  // streaming_run.cc
  bool as_packed(const Layer& layer, const RoutedMany& step) const;
  cudaError_t run_packed(cudaStream_t stream, const ResidentExperts& experts, const RoutedMany& step);
  cudaError_t run_widened(cudaStream_t stream, uint32_t layer, const RoutedMany& step);
  cudaError_t look_ahead(int32_t next);
  cudaError_t make_plan(uint32_t layer);
  cudaError_t drop_plan();
  cudaError_t submit_next(const int32_t* rows_begin);
  cudaError_t widen_group(cudaStream_t stream, uint32_t group, const uint8_t* raw, const int32_t* rows_begin);
  cudaError_t multiply_group(cudaStream_t stream, uint32_t group, const bf16* x, uint32_t slots,
                             const int32_t* rows_begin);
};

}  // namespace perigee::cuda
