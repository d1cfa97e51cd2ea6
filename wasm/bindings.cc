// The WebAssembly door: the engine's calls as exports, and what a module instance needs from JavaScript as imports.
// Addresses are offsets in the instance's memory: the state memory for a rank, a shard memory for run_jobs.
#include "../engine/barrier.h"
#include "../engine/door.h"
#include "../engine/engine.h"
#include "../engine/taps.h"

using namespace perigee;

#define EXPORT(name) extern "C" __attribute__((export_name(#name)))
#define IMPORT(name) extern "C" __attribute__((import_module("host"), import_name(#name)))

IMPORT(shard_call)
void host_shard_call(uint32_t shard, const Job* jobs, uint32_t count, const uint8_t* input, uint32_t input_bytes,
                     uint8_t* output, uint32_t output_begin, uint32_t output_end);
IMPORT(stage_done) void host_stage_done(uint32_t stage);

namespace perigee {

void shard_call(uint32_t shard, const Job* jobs, uint32_t count, const uint8_t* input, uint32_t input_bytes,
                uint8_t* output, uint32_t output_begin, uint32_t output_end) {
  host_shard_call(shard, jobs, count, input, input_bytes, output, output_begin, output_end);
}

void stage_done(Stage stage) { host_stage_done(static_cast<uint32_t>(stage)); }

void wait_while_equal(int32_t* word, int32_t expected) {
  constexpr int64_t kSecond = 1'000'000'000;
  __builtin_wasm_memory_atomic_wait32(word, expected, kSecond);
}

void wake_all(int32_t* word) { __builtin_wasm_memory_atomic_notify(word, 0xffffffffu); }

void rest() {
  int32_t nobody_wakes = 0;
  __builtin_wasm_memory_atomic_wait32(&nobody_wakes, 0, 50'000);
}

void leave_step() { __builtin_trap(); }

}  // namespace perigee

extern unsigned char __heap_base;

EXPORT(heap_base) uint32_t export_heap_base() {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(&__heap_base));
}

// The kernel tables of this module, fastest first: name and table, null past the last. Static data has the same address in
// every memory the module is instantiated on, so a table's address found once serves all shards.
EXPORT(isa_name) const char* export_isa_name(uint32_t index) {
  return index < static_cast<uint32_t>(kernel_count()) ? kernels_at(static_cast<int>(index)).name : nullptr;
}
EXPORT(isa_kernels) const Kernels* export_isa_kernels(uint32_t index) {
  return index < static_cast<uint32_t>(kernel_count()) ? &kernels_at(static_cast<int>(index)) : nullptr;
}

EXPORT(engine_bytes) double export_engine_bytes(const ModelConfig* config, const Limits* limits) {
  return static_cast<double>(engine_bytes(*config, *limits));
}
EXPORT(engine_input_bytes) double export_input_bytes(const ModelConfig* config, const Limits* limits) {
  return static_cast<double>(engine_input_bytes(*config, *limits));
}
EXPORT(engine_output_bytes) double export_output_bytes(const ModelConfig* config, const Limits* limits) {
  return static_cast<double>(engine_output_bytes(*config, *limits));
}
EXPORT(engine_create)
Status export_create(void* arena, double bytes, const ModelConfig* config, const Limits* limits, const char* isa,
                     Engine** out) {
  return engine_create(arena, static_cast<uint64_t>(bytes), *config, *limits, isa, out);
}
EXPORT(engine_vector) float* export_vector(Engine* engine, Vector vector, uint32_t layer, uint32_t* length) {
  return engine_vector(*engine, vector, layer, length);
}
EXPORT(engine_bind)
Location* export_bind(Engine* engine, uint32_t rank, Slot slot, uint32_t layer, DType type, uint32_t row_begin,
                      uint32_t rows, uint32_t cols, uint32_t count) {
  return engine_bind(*engine, rank, slot, layer, type, row_begin, rows, cols, count);
}
EXPORT(engine_exchange) Exchange* export_exchange(Engine* engine) { return engine_exchange(*engine); }
EXPORT(engine_begin_experts) Status export_begin_experts(Engine* engine, uint32_t tokens) {
  return engine_begin_experts(*engine, tokens);
}
EXPORT(engine_step_block) StepBlock* export_step_block(Engine* engine) { return engine_step_block(*engine); }
EXPORT(engine_check_step) Status export_check_step(const Engine* engine) { return engine_check_step(*engine); }
EXPORT(engine_forward) void export_forward(Engine* engine, uint32_t rank) { engine_forward(*engine, rank); }
EXPORT(engine_tap)
const void* export_tap(const Engine* engine, Tap tap, uint32_t layer, uint32_t* width) {
  return engine_tap(*engine, tap, layer, width);
}
EXPORT(engine_abort) void export_abort(Engine* engine) { engine_abort(*engine); }

// Shard side: all addresses lie in the shard's memory.
EXPORT(run_jobs)
void export_run_jobs(const Kernels* kernels, const Job* jobs, uint32_t count, const uint8_t* input, uint8_t* output) {
  run_jobs(*kernels, jobs, count, input, output);
}

// `rows` weight rows of `type` to floats [rows][cols].
EXPORT(dequantize_rows)
void export_dequantize_rows(DType type, const uint8_t* w, uint32_t rows, uint32_t cols, float* y) {
  const size_t bytes = row_bytes(type, cols);
  for (uint32_t r = 0; r < rows; r++)
    kScalarKernels.dequantize(type, w + r * bytes, cols, y + static_cast<size_t>(r) * cols);
}
