#include "shard_batch.h"
#include "door.h"
#include "quant/half.h"
#include "state.h"

namespace perigee {

namespace {
// Of Limits.exact: floats rounded to bf16, as a GPU has them, for comparisons with one.
constexpr uint32_t kRounded = 2;

size_t aligned(size_t bytes) { return (bytes + 15) & ~size_t{15}; }

void round_to_bf16(float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) x[i] = bf16_to_float(float_to_bf16(x[i]));
}
}  // namespace

void ShardBatch::reset(uint8_t* to) {
  input = to;
  job_count = 0;
  input_used = output_used = 0;
}

uint32_t ShardBatch::put(DType type, const float* x, uint32_t n, uint32_t cols, size_t stride, Range rows) {
  const Activation kind = activation_for(type, exact);
  const size_t bytes = activation_row_bytes(kind, cols), offset = input_used;
  if (offset + bytes * n > input_capacity) __builtin_trap();  // engine_input_bytes was wrong
  for (uint32_t i = rows.begin; i < rows.end; i++) {
    uint8_t* row = input + offset + i * bytes;
    kernels->quantize(kind, x + i * stride, cols, row);
    if (exact == kRounded) round_to_bf16(reinterpret_cast<float*>(row), cols);
  }
  input_used = offset + bytes * n;
  return static_cast<uint32_t>(offset);
}

uint32_t ShardBatch::put_indices(const int32_t* indices, uint32_t n, bool store) {
  const size_t offset = input_used, bytes = aligned(n * sizeof(int32_t));
  if (offset + bytes > input_capacity) __builtin_trap();
  if (store) __builtin_memcpy(input + offset, indices, n * sizeof(int32_t));
  input_used = offset + bytes;
  return static_cast<uint32_t>(offset);
}

size_t ShardBatch::multiply(const Weight& w, uint32_t which, uint32_t x, uint32_t x_rows, uint32_t n) {
  const size_t bytes = aligned(sizeof(float) * n * w.rows), offset = output_used;
  if (job_count == job_capacity || offset + bytes > output_capacity) __builtin_trap();
  shards[job_count] = w.at[which].shard;
  jobs[job_count++] = {w.at[which].address,
                       JobKind::Matmul,
                       w.type,
                       exact,
                       w.rows,
                       w.cols,
                       n,
                       x,
                       x_rows,
                       static_cast<uint32_t>(offset),
                       0};
  output_used = offset + bytes;
  return offset / sizeof(float);
}

size_t ShardBatch::look_up(const Weight& w, uint32_t row) {
  const size_t bytes = aligned(sizeof(float) * w.cols), offset = output_used;
  if (job_count == job_capacity || offset + bytes > output_capacity) __builtin_trap();
  shards[job_count] = w.at[0].shard;
  jobs[job_count++] = {w.at[0].address + row_bytes(w.type, w.cols) * row,
                       JobKind::Dequantize,
                       w.type,
                       0,
                       1,
                       w.cols,
                       0,
                       0,
                       kAllRows,
                       static_cast<uint32_t>(offset),
                       0};
  output_used = offset + bytes;
  return offset / sizeof(float);
}

void ShardBatch::run() {
  for (uint32_t begin = 0; begin < job_count;) {
    uint32_t end = begin + 1;
    while (end < job_count && shards[end] == shards[begin]) end++;
    const size_t output_end = end < job_count ? jobs[end].y : output_used;
    shard_call(shards[begin], jobs + begin, end - begin, input, static_cast<uint32_t>(input_used), output,
               jobs[begin].y, static_cast<uint32_t>(output_end));
    begin = end;
  }
}

}  // namespace perigee
