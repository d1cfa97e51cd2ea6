#include "job.h"

namespace perigee {

void run_jobs(const Kernels& kernels, const Job* jobs, uint32_t count, const uint8_t* input, uint8_t* output) {
  for (const Job* job = jobs; job < jobs + count; job++) {
    const auto* w = reinterpret_cast<const uint8_t*>(uintptr_t(job->w));
    auto* y = reinterpret_cast<float*>(output + job->y);
    if (job->kind == JobKind::Dequantize) {
      const size_t stride = row_bytes(job->type, job->cols);
      for (uint32_t r = 0; r < job->rows; r++)
        kernels.dequantize(job->type, w + r * stride, job->cols, y + size_t(r) * job->cols);
      continue;
    }
    MatmulArgs args;
    args.w = w;
    args.x = input + job->x;
    args.x_rows = job->x_rows == kAllRows ? nullptr : reinterpret_cast<const int32_t*>(input + job->x_rows);
    args.y = y;
    args.x_stride = activation_row_bytes(activation_for(job->type, job->exact != 0), job->cols);
    args.y_stride = job->rows;
    args.rows = job->rows;
    args.cols = job->cols;
    args.n = job->n;
    kernels.matmul[uint32_t(job->type)][job->exact != 0](args);
  }
}

}  // namespace perigee
