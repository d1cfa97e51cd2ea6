#include "job.h"

namespace perigee {

void run_job(const Kernels& kernels, const Job& job, const JobPart& part, const uint8_t* input, uint8_t* output) {
  const size_t stride = row_bytes(job.type, job.cols);
  const auto* w = reinterpret_cast<const uint8_t*>(uintptr_t(job.w));
  auto* y = reinterpret_cast<float*>(output + job.y);
  if (job.kind == JobKind::Dequantize) {
    for (uint32_t r = part.row; r < part.row_end; r++)
      kernels.dequantize(job.type, w + r * stride, job.cols, y + size_t(r) * job.cols);
    return;
  }
  const auto* x_rows =
      job.x_rows == kAllRows ? nullptr : reinterpret_cast<const int32_t*>(input + job.x_rows) + part.token;
  MatmulArgs args;
  args.x_stride = activation_row_bytes(activation_for(job.type, job.exact != 0), job.cols);
  args.y_stride = job.rows;
  args.w = w + part.row * stride;
  args.x = input + job.x + (x_rows ? 0 : part.token * args.x_stride);
  args.x_rows = x_rows;
  args.y = y + part.token * args.y_stride + part.row;
  args.rows = part.row_end - part.row;
  args.cols = job.cols;
  args.n = part.token_end - part.token;
  kernels.matmul[uint32_t(job.type)][job.exact != 0](args);
}

void run_jobs(const Kernels& kernels, const Job* jobs, uint32_t count, const uint8_t* input, uint8_t* output) {
  for (const Job* job = jobs; job < jobs + count; job++)
    run_job(kernels, *job, {0, job->rows, 0, job->n}, input, output);
}

}  // namespace perigee
