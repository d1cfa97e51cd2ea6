// Which kernel multiplies.
#include "check.h"
#include "gemm_kernels.h"

namespace perigee::cuda {
namespace {

struct Device {
  uint32_t processors = 0;
};
constexpr int kMostDevices = 32;
Device devices[kMostDevices];

cudaError_t current(const Device** to) {
  int device;
  CUDA_TRY(cudaGetDevice(&device));
  if (device >= kMostDevices || devices[device].processors == 0)
    CUDA_TRY(cudaErrorNotReady);  // prepare_gemm comes first
  *to = &devices[device];
  return cudaSuccess;
}

// The fewest rows of a tile that hold `rows`, up to 128: few rows are bound by reading b, which padding does not slow,
// but their tiles leave shared memory for more of b in flight.
uint32_t tile_rows_for(uint32_t rows) {
  uint32_t tile = 16;
  while (tile < rows && tile < 128) tile *= 2;
  return tile;
}

bool paired(const void* y, size_t pair_bytes, uint64_t stride, uint64_t next) {
  return reinterpret_cast<uintptr_t>(y) % pair_bytes == 0 && stride % 2 == 0 && next % 2 == 0;
}

}  // namespace

cudaError_t prepare_gemm(int device) {
  if (device >= kMostDevices) CUDA_TRY(cudaErrorInvalidDevice);
  int processors;
  CUDA_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  CUDA_TRY(prepare_portable());
  devices[device].processors = processors;
  return cudaSuccess;
}

cudaError_t gemm(cudaStream_t stream, const Gemm& args) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return cudaSuccess;
  const Device* device = nullptr;
  CUDA_TRY(current(&device));
  Product p = {};
  p.a = args.a;
  p.b = args.b;
  p.y = args.y;
  p.y_wide = args.y_wide;
  p.a_next = args.a_next;
  p.b_next = args.b_next;
  p.y_next = args.y_next;
  p.groups = args.batch;
  p.m = args.m;
  p.n = args.n;
  p.k = args.k;
  p.a_stride = args.a_stride;
  p.b_stride = args.b_stride;
  p.y_stride = args.y_stride;
  p.add = args.add;
  p.paired = args.y_wide != nullptr ? paired(args.y_wide, 2 * sizeof(bf16), args.y_stride, args.y_next)
                                    : paired(args.y, 2 * sizeof(float), args.y_stride, args.y_next);
  return multiply_portable(stream, p, tile_rows_for(args.m), device->processors);
}

cudaError_t gemm_grouped(cudaStream_t stream, const GroupedGemm& args) {
  if (args.slots == 0 || args.n == 0) return cudaSuccess;
  if (args.groups > kMostGroups) CUDA_TRY(cudaErrorInvalidValue);
  const Device* device = nullptr;
  CUDA_TRY(current(&device));
  Product p = {};
  p.a = args.a;
  p.row_of = args.row_of;
  p.begin = args.begin;
  p.b = args.b;
  p.y_wide = args.y;
  p.b_next = args.b_next;
  p.groups = args.groups;
  p.m = args.slots;
  p.n = args.n;
  p.k = args.k;
  p.a_stride = p.b_stride = args.k;
  p.y_stride = args.n;
  p.paired = paired(args.y, 2 * sizeof(bf16), args.n, 0);
  // Groups differ in size: tiles for twice the average waste little on the small ones.
  const uint32_t rows = args.rows ? args.rows : args.slots;
  return multiply_portable(stream, p, tile_rows_for(2 * rows / args.groups), device->processors);
}

}  // namespace perigee::cuda
