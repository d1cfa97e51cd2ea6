// Jobs: the matrix products one rank asks of one shard in one call.
//
// A call is one contiguous input region (jobs' activations and index lists), a list of jobs, and one contiguous output
// region. Natively the regions are used in place; under WASM they are copied between the state memory and the shard.
#pragma once
#include "kernels/kernels.h"

namespace perigee {

enum class JobKind : uint32_t {
  Matmul = 0,      // y[n][rows] = x[n] . w[rows]
  Dequantize = 1,  // y[rows][cols] = the weight rows themselves (embedding look-up)
};

constexpr uint32_t kAllRows = 0xffffffffu;

struct Job {
  uint64_t w;  // address of the first weight row in the shard
  JobKind kind;
  DType type;
  uint32_t exact;  // 1: float activations
  uint32_t rows, cols;
  uint32_t n;       // activation rows
  uint32_t x;       // byte offset of activation row 0 in the input region
  uint32_t x_rows;  // byte offset of int32 [n] in the input region, or kAllRows
  uint32_t y;       // byte offset of the result in the output region
  uint32_t reserved;
};
static_assert(sizeof(Job) == 48, "Job crosses memories; keep its layout");

// Some weight rows of a job for some of its activation rows.
struct JobPart {
  uint32_t row, row_end, token, token_end;
};

void run_job(const Kernels& kernels, const Job& job, const JobPart& part, const uint8_t* input, uint8_t* output);

// Runs `count` jobs. `input` and `output` are 16-byte aligned.
void run_jobs(const Kernels& kernels, const Job* jobs, uint32_t count, const uint8_t* input, uint8_t* output);

}  // namespace perigee
