// Which kernel multiplies.
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

// Rows from which on Hopper's kernel is the faster one.
constexpr uint32_t kHopperRows = 256;

// Columns of Hopper's tiles: the fewest rounds of all processors, counted in columns.
uint32_t hopper_columns(const Product& p, uint32_t processors) {
  const uint32_t row_tiles = (p.m + 255) / 256 * p.groups;
  uint32_t best = 0, least = ~0u;
  for (const uint32_t columns : {256u, 192u, 128u}) {
    const uint32_t tiles = row_tiles * ((p.n + columns - 1) / columns), at_once = processors / 2;
    const uint32_t cost = (tiles + at_once - 1) / at_once * (columns + 16);
    if (cost < least) least = cost, best = columns;
  }
  return best;
}

// Parts of k for products of few tiles: two blocks for each processor are as many as run at once.
uint32_t hopper_parts(const Product& p, uint32_t processors) {
  const uint32_t tiles = (p.m + 127) / 128 * ((p.n + 127) / 128) * p.groups;
  const uint32_t fill = 2 * processors / tiles, steps = p.k / 256;
  uint32_t parts = fill < steps ? fill : steps;
  const uint32_t most = tiles > 24 ? 4 : 8;
  if (parts > most) parts = most;
  return parts > 0 ? parts : 1;
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
  p.paired = args.y_wide != nullptr ? paired(args.y_wide, 2 * sizeof(bf16), args.y_stride, args.y_next)
                                    : paired(args.y, 2 * sizeof(float), args.y_stride, args.y_next);
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
  p.paired = paired(args.y, 2 * sizeof(bf16), args.n, 0);
  return p;
}

cudaError_t gemm(cudaStream_t stream, const Gemm& args) {
  if (args.m == 0 || args.n == 0 || args.batch == 0) return cudaSuccess;
  const Device* device = nullptr;
  CUDA_TRY(current(&device));
  const Product p = product_of(args);
  if (device->hopper && p.m >= kHopperRows)
    return multiply_hopper(stream, p, hopper_columns(p, device->processors), device->processors);
  if (device->hopper && p.m > 16) return multiply_hopper_split(stream, p, hopper_parts(p, device->processors));
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
