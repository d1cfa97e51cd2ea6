// The engine's only public header: create in memory the caller owns, bind weights, run steps by ranks.
//
// Everything is plain C so that the same calls work through WebAssembly exports and a Node addon. No call allocates,
// prints, reads files or throws. A door (wasm/, native/) supplies the memory, the four functions of door.h and the threads.
#pragma once
#include "config.h"
#include "tensor.h"

namespace perigee {

struct Engine;
struct Exchange;
enum class Tap : uint32_t;

enum class Status : int32_t {
  Ok = 0,
  BadConfig,      // a dimension is zero, too large or inconsistent
  ArenaTooSmall,  // engine_bytes says how much is needed
  UnknownIsa,
  BadSlot,  // slot, layer, rank or shape does not fit the model
  BadStep,  // a token, position, page or count of the step is out of range
};

// Where one matrix lies: `address` in shard `shard`. Experts and heads have one location each.
struct Location {
  uint64_t address;
  uint32_t shard;
  uint32_t reserved;
};

// One step's input and output areas inside the state memory, sized by Limits. The caller fills the first group.
struct StepBlock {
  uint32_t tokens_count, outputs_count, sequences_count;
  uint32_t table_stride;  // pages per row of `page_tables`
  int32_t* tokens;        // [batch_tokens]
  int32_t* positions;     // [batch_tokens]
  int32_t* sequences;     // [batch_tokens] row of page_tables; tokens of one sequence are consecutive
  int32_t* page_tables;   // [batch_sequences][table_stride] page indices
  int32_t* outputs;       // [batch_outputs] indices of the tokens whose logits are wanted
  float* logits;          // [batch_outputs][vocabulary]
};

// Bytes of state memory for this model and these limits; 0 when they are invalid.
uint64_t engine_bytes(const ModelConfig& config, const Limits& limits);

// Bytes of the input and output region a shard call may need (equal for every shard of a rank).
uint64_t engine_input_bytes(const ModelConfig& config, const Limits& limits);
uint64_t engine_output_bytes(const ModelConfig& config, const Limits& limits);

// Lays the engine out in `arena` (4096-byte aligned) and chooses the kernel table `isa` (null: the fastest).
Status engine_create(void* arena, uint64_t bytes, const ModelConfig& config, const Limits& limits, const char* isa,
                     Engine** out);

// Where a float vector is to be written: [length]; null for a vector the model does not have.
float* engine_vector(Engine& engine, Vector vector, uint32_t layer, uint32_t* length);

// Declares rank `rank`'s part of a matrix: `count` matrices (experts or heads, else 1) of `rows` rows from `row_begin` on,
// `cols` wide. Returns Location[count] for the caller to fill; null when the shape is wrong.
Location* engine_bind(Engine& engine, uint32_t rank, Slot slot, uint32_t layer, DType type, uint32_t row_begin,
                      uint32_t rows, uint32_t cols, uint32_t count);

StepBlock* engine_step_block(Engine& engine);

// Checks the step block: every index within its bounds. Called once per step, before the ranks start.
Status engine_check_step(const Engine& engine);

// One rank's share of the step. All ranks must call it; it returns when the rank's part is done and, after the last
// barrier inside, logits are complete.
void engine_forward(Engine& engine, uint32_t rank);

// What the last step left at one tap of one layer: [batch_tokens][width], of which the step's tokens are filled. Null
// without Limits.taps, or where the layer has no such tap (taps.h).
const void* engine_tap(const Engine& engine, Tap tap, uint32_t layer, uint32_t* width);

// With Limits.experts_only: where the device and the ranks meet (exchange.h), else null. Before each step the exchange's words
// are reset and the number of tokens is told; then the device may start, and engine_forward serves its layers.
Exchange* engine_exchange(Engine& engine);
Status engine_begin_experts(Engine& engine, uint32_t tokens);

// Makes every rank that waits in a barrier leave the step; for use when one of them has died, or to stop early.
void engine_abort(Engine& engine);

// The rows of `total` that rank `rank` of `ranks` owns, in multiples of 4 but for the last rank.
struct Range {
  uint32_t begin, end;
  uint32_t size() const { return end - begin; }
};
Range rank_range(uint32_t total, uint32_t rank, uint32_t ranks, uint32_t multiple);

}  // namespace perigee
