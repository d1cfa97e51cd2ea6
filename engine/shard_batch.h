// Collects the matrix products of one stretch and hands them to the shards in as few calls as possible.
#pragma once
#include "engine.h"
#include "job.h"

namespace perigee {

struct Weight;

// Use: reset, put activations in, add products, run, read results. All memory is sized at creation; it is the rank's own
// but for the input of a stretch whose rows the ranks put together.
struct ShardBatch {
  const Kernels* kernels;
  uint32_t exact;
  uint8_t* own_input;  // [input_capacity]
  uint8_t* input;      // activation rows and index lists: own_input, or what all ranks share
  uint8_t* output;     // [output_capacity] results, in the order of the jobs
  Job* jobs;           // [job_capacity]
  uint32_t* shards;    // [job_capacity] shard of each job
  size_t input_capacity, output_capacity;
  uint32_t job_capacity;
  uint32_t job_count;
  size_t input_used, output_used;

  void reset(uint8_t* to);

  // Makes room for n activation rows of `cols` values for weights of `type` and stores those of x[n][stride floats] in
  // `rows`; other ranks store the others. Returns their offset.
  uint32_t put(DType type, const float* x, uint32_t n, uint32_t cols, size_t stride, Range rows);

  // Makes room for an index list [n], stored if `store`. Returns its offset.
  uint32_t put_indices(const int32_t* indices, uint32_t n, bool store);

  // Adds y[n][w.rows] = x . matrix `which` of w. Returns the result's float index in output: result()[index].
  size_t multiply(const Weight& w, uint32_t which, uint32_t x, uint32_t x_rows, uint32_t n);

  // Adds the look-up of one row (relative to w's first) as floats [w.cols].
  size_t look_up(const Weight& w, uint32_t row);

  void run();
  const float* result(size_t index) const { return reinterpret_cast<const float*>(output) + index; }
  float* result(size_t index) { return reinterpret_cast<float*>(output) + index; }
};

}  // namespace perigee
