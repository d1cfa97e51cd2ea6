// Where a device that runs a model without its routed experts meets the ranks that compute them (Limits::experts_only). Both
// read and write one memory: a GPU sees it pinned, WebAssembly and JavaScript see it shared.
//
// In a step the device hands over the MoE layers by number, from 1: it fills h, chosen and weight and then sets `asked`; when
// the ranks have written `sum` they set `done`. The words have one writer each and only grow within a step.
#pragma once
#include "arena.h"
#include "engine.h"

namespace perigee {

struct Rank;

// Alone on two lines, which processors fetch together: each side polls the other's word.
struct alignas(128) ExchangeWord {
  uint32_t value;
};

// T is Limits::batch_tokens. src/runtime/layout.ts mirrors the order; a test compares the two.
struct Exchange {
  ExchangeWord asked;   // by the device: number of the layer handed over last
  ExchangeWord done;    // by rank 0: number of the layer whose sum is there
  ExchangeWord failed;  // by whoever gives up: not 0, everyone leaves the step
  float* h;             // [T][hidden] normed activations
  int32_t* chosen;      // [T][experts_used]; an expert the model does not have (-1) is left out
  float* weight;        // [T][experts_used]
  float* sum;           // [T][hidden] weighted sum of the experts that are not left out
  uint64_t bytes;       // of this and the arrays behind it: whole pages that hold nothing else
  uint32_t leave;       // rank 0's finding that the device has failed, for all ranks after the next barrier
};

constexpr uint64_t kExchangeAlignment = 4096;  // pages, the unit of pinned memory

// With a null base only measures, and returns null.
Exchange* lay_out_exchange(Arena& arena, const ModelConfig& config, const Limits& limits);

// One rank's share of a step's routed experts, layer by layer as they are asked for.
void serve_experts(Engine& e, Rank& rank);

}  // namespace perigee
