#include "tensor_map.h"

#include "check.h"

namespace perigee::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found by the runtime: nothing links the driver, which may be absent.
cudaError_t find_encode(Encode* to) {
  static Encode found = nullptr;
  if (found == nullptr) {
    void* at = nullptr;
    cudaDriverEntryPointQueryResult result;
    CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &at, 12000, cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
    found = reinterpret_cast<Encode>(at);
  }
  *to = found;
  return cudaSuccess;
}

}  // namespace

cudaError_t map_rows(CUtensorMap* map, const bf16* at, uint32_t cols, uint32_t rows, uint64_t stride, uint32_t count,
                     uint64_t next, uint32_t box_cols, uint32_t box_rows) {
  Encode encode = nullptr;
  CUDA_TRY(find_encode(&encode));
  const cuuint64_t sizes[3] = {cols, rows, count};
  // A stride of zero is refused, also where there is only one matrix.
  const cuuint64_t strides[2] = {stride * sizeof(bf16), (count > 1 ? next : stride) * sizeof(bf16)};
  const cuuint32_t box[3] = {box_cols, box_rows, 1}, steps[3] = {1, 1, 1};
  const CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<bf16*>(at), sizes, strides, box,
                                 steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) CUDA_TRY(cudaErrorInvalidValue);
  return cudaSuccess;
}

}  // namespace perigee::cuda
