// Multi-head latent attention over paged latents. A page row is [latent kv_rank | roped key rope_dim], bf16.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include "rows.h"

namespace perigee::cuda {

struct PagedLatents {
  const bf16* pages;           // of one layer: [pages][page_tokens][kv_rank + rope_dim]
  const int32_t* page_tables;  // [sequences][table_stride]
  uint32_t table_stride, page_tokens, kv_rank, rope_dim;
};

// Absorbed form: every query row reads latents only. Token t of sequence sequences[t] sees positions 0..positions[t].
struct LatentAttention {
  PagedLatents latents;
  const bf16* q;             // [n][heads][kv_rank + rope_dim]
  const int32_t* sequences;  // [n], on the device as are all
  const int32_t* positions;  // [n]
  uint32_t n, heads;
  uint32_t most_positions;  // no position is larger: sizes the grid, not the result
  // Tokens 2 i and 2 i + 1 are neighbours of one sequence (drafted tokens): their latents are read once for both.
  bool pairs;
  float scale;
  float* out;   // [n][heads][kv_rank]
  void* space;  // latent_attention_space() bytes
};
uint64_t latent_attention_space(uint32_t n, uint32_t heads, uint32_t kv_rank);
// Graph-safe: lengths are read on the device. n <= 256; a position of -1 sees nothing and gives zeros.
cudaError_t attend_latents(cudaStream_t stream, const LatentAttention& args);

// Expanded form for prompts: n consecutive tokens of one sequence, the last of which is at position `last`. Keys and
// values of a chunk of the context are made from latents by the caller's products and met chunk by chunk.
struct PromptAttention {
  const bf16* q;       // [n][heads][nope_dim + rope_dim], roped
  const bf16* k_nope;  // [keys][heads][nope_dim]
  const bf16* k_rope;  // [keys][k_rope_stride] the roped key, shared by the heads
  const bf16* v;       // [keys][heads][value_dim]
  uint32_t k_rope_stride;
  uint32_t n, heads, nope_dim, rope_dim, value_dim;
  uint32_t keys;        // of this chunk
  int32_t first_key;    // position of key 0
  int32_t first_query;  // position of query 0; query i sees keys at positions <= first_query + i
  float scale;
  float* out;  // [n][heads][value_dim]; with `merge` holds earlier chunks' result and is merged into
  float* lse;  // [n][heads] log of the sum of exponents, likewise
  bool merge;
};
cudaError_t attend_prompt(cudaStream_t stream, const PromptAttention& args);

// Latent rows of positions begin .. begin + keys of one sequence, out of their pages: [keys][kv_rank + rope_dim].
cudaError_t gather_latents(cudaStream_t stream, const PagedLatents& latents, uint32_t sequence, uint32_t begin,
                           uint32_t keys, bf16* to);

cudaError_t prepare_attention(int device);

}  // namespace perigee::cuda
