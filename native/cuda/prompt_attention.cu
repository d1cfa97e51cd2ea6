// Attention of prompts: which kernel a device gets, and latents out of their pages.
#include "prompt_attention.cuh"

#include <algorithm>

namespace perigee::cuda {
namespace {

// A thread copies 16 bytes: 8 columns of a row.
__global__ void gather_kernel(const PagedLatents latents, uint32_t sequence, uint32_t begin, uint32_t keys, bf16* to) {
  wait_for_previous();
  const uint32_t width = latents.kv_rank + latents.rope_dim, chunks = width / 8;
  const uint64_t index = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x;
  if (index >= uint64_t(keys) * chunks) return;
  const uint32_t key = index / chunks, chunk = index % chunks, position = begin + key;
  const int32_t page = latents.page_tables[uint64_t(sequence) * latents.table_stride + position / latents.page_tokens];
  const bf16* row = latents.pages + (uint64_t(page) * latents.page_tokens + position % latents.page_tokens) * width;
  reinterpret_cast<uint4*>(to)[index] = reinterpret_cast<const uint4*>(row)[chunk];
}

}  // namespace

cudaError_t prompt_order(const PromptAttention& a, PromptOrder* order) {
  int device, cache_bytes;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaDeviceGetAttribute(&cache_bytes, cudaDevAttrL2CacheSize, device));
  // Half of the cache: the other half is for queries and outputs, which pass through it.
  const uint64_t head_bytes = sizeof(bf16) * a.keys * (a.nope_dim + a.value_dim);
  const uint64_t heads_that_fit = cache_bytes / 2 / std::max<uint64_t>(head_bytes, 1);
  *order = {(a.n + kQueries - 1) / kQueries, a.heads,
            static_cast<uint32_t>(std::clamp<uint64_t>(heads_that_fit, 1, a.heads))};
  return cudaSuccess;
}

cudaError_t prepare_latent_attention(int device);  // latent_attention.cu

cudaError_t prepare_attention(int device) {
  CUDA_TRY(prepare_prompt_mma());
  CUDA_TRY(prepare_prompt_wgmma());
  return prepare_latent_attention(device);
}

cudaError_t attend_prompt(cudaStream_t stream, const PromptAttention& args) {
  if (args.n == 0 || args.heads == 0) return cudaSuccess;
  return prompt_wgmma_serves(args) ? attend_prompt_wgmma(stream, args) : attend_prompt_mma(stream, args);
}

cudaError_t gather_latents(cudaStream_t stream, const PagedLatents& latents, uint32_t sequence, uint32_t begin,
                           uint32_t keys, bf16* to) {
  if (keys == 0) return cudaSuccess;
  constexpr uint32_t kThreads = 256;
  const uint64_t copies = uint64_t(keys) * ((latents.kv_rank + latents.rope_dim) / 8);
  CUDA_TRY(launch({static_cast<uint32_t>((copies + kThreads - 1) / kThreads), kThreads, 0, stream}, gather_kernel,
                  latents, sequence, begin, keys, to));
  return cudaSuccess;
}

}  // namespace perigee::cuda
