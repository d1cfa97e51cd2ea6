// Which kernel multiplies.
#include <algorithm>

#include "check.h"
#include "gemm_kernels.h"

namespace perigee::cuda {
namespace {

struct Device {
  uint32_t processors = 0;
  bool hopper = false;
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

uint32_t up(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit; }

// Hopper's kernels for many rows have tiles of 256 rows for each pair of processors. The best is the one with the fewest
// rounds of all pairs, counted in columns; those of 192 take about a tenth longer (measured on an H200).
cudaError_t multiply_many(cudaStream_t stream, const Product& p, uint32_t processors) {
  const uint32_t row_tiles = up(p.m, 256) * p.groups;
  uint32_t best = 0, least = ~0u;
  for (const uint32_t columns : {128u, 256u, 192u}) {
    const uint32_t cost = up(row_tiles * up(p.n, columns), processors / 2) * columns * (columns == 192 ? 11 : 10);
    if (cost < least) least = cost, best = columns;
  }
  return multiply_hopper(stream, p, best, processors);
}

// Parts of k for products of few tiles. Two blocks for each processor are as many as run at once; more than four parts,
// or any where half of the processors have a tile anyway, cost more than they bring (measured on an H200).
uint32_t parts_of(const Product& p, uint32_t processors) {
  const uint32_t tiles = up(p.m, 128) * up(p.n, 128) * p.groups;
  if (tiles > processors / 2) return 1;
  return std::clamp(std::min(2 * processors / tiles, p.k / 256), 1u, 4u);
}

cudaError_t multiply_on_hopper(cudaStream_t stream, const Product& p, uint32_t processors) {
  const bool few_tiles = up(p.m, 256) * up(p.n, 128) * p.groups <= processors / 4;
  if (p.m <= 128 || few_tiles) return multiply_hopper_split(stream, p, parts_of(p, processors));
  return multiply_many(stream, p, processors);
}

bool aligned(const void* y, size_t bytes, uint64_t stride, uint64_t next) {
  return (reinterpret_cast<uintptr_t>(y) | stride * bytes | next * bytes) % 16 == 0;
}

}  // namespace

cudaError_t prepare_gemm(int device) {
  if (device >= kMostDevices) CUDA_TRY(cudaErrorInvalidDevice);
  int processors;
  CUDA_TRY(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  CUDA_TRY(prepare_portable());
  CUDA_TRY(prepare_hopper(&devices[device].hopper));
  devices[device].processors = processors;
  return cudaSuccess;
}

Product product_of(const Gemm& args) {
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
  p.aligned = args.y_wide != nullptr ? aligned(args.y_wide, sizeof(bf16), args.y_stride, args.y_next)
                                     : aligned(args.y, sizeof(float), args.y_stride, args.y_next);
  return p;
}

Product product_of(const GroupedGemm& args) {
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
  p.aligned = aligned(args.y, sizeof(bf16), args.n, 0);
  return p;
}

cudaError_t gemm(cudaStream_t stream, const Gemm& args) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return cudaSuccess;
  const Device* device = nullptr;
  CUDA_TRY(current(&device));
  const Product p = product_of(args);
  if (device->hopper && p.m > 16) return multiply_on_hopper(stream, p, device->processors);
  return multiply_portable(stream, p, tile_rows_for(p.m), device->processors);
}

cudaError_t gemm_grouped(cudaStream_t stream, const GroupedGemm& args) {
  if (args.slots == 0 || args.n == 0) return cudaSuccess;
  if (args.groups > kMostGroups) CUDA_TRY(cudaErrorInvalidValue);
  const Device* device = nullptr;
  CUDA_TRY(current(&device));
  const Product p = product_of(args);
  if (device->hopper) return multiply_hopper_grouped(stream, p, device->processors);
  const uint32_t rows = args.rows ? args.rows : args.slots;
  return multiply_portable(stream, p, tile_rows_for(rows / args.groups), device->processors);
}

}  // namespace perigee::cuda
