// A step of one token in one kernel: what its parts see of the model and of each other.
//
// One block of kTokenThreads threads a multiprocessor runs all layers; blocks meet at a grid barrier between stages. Weights
// are a stream that runs ahead of all this (token_stream.cuh). What one block writes and another reads is read by __ldcg, never
// through the first-level cache, and only after a grid barrier.
#pragma once
#include "exchange.cuh"
#include "token_work.h"

namespace perigee::cuda {

constexpr uint32_t kTokenWarps = 16, kTokenThreads = 32 * kTokenWarps;
// Shared memory of a block for activations and for what the parts without weights need: the rest holds weights on their way.
constexpr uint32_t kTokenScratch = 45056;
constexpr uint32_t kMostTokenUsed = 8;  // experts of a token

// The step: a kernel's parameter. Arrays lie in device memory.
struct TokenStep {
  uint32_t hidden, heads, q_rank, kv_rank, nope_dim, rope_dim, value_dim;
  uint32_t experts, used, groups, groups_used;
  bool sigmoid, normalize;
  float weight_scale, eps, latent_eps, attention_scale;
  // The token's place: `position` [1] may be -1 (nothing is stored, nothing seen); its page table is
  // page_tables + table_stride * *sequence.
  const int32_t *position, *sequence, *page_tables;
  uint32_t table_stride, page_tokens;
  const float* rope;   // [context][rope_dim / 2][2] cos, sin
  float* x;            // [hidden] the residual
  float* qkv;          // [q_rank + kv_rank + rope_dim]
  float* q;            // [heads][nope_dim + rope_dim]
  bf16* absorbed;      // [heads][kv_rank + rope_dim] queries in latent space, rotated
  void* parts;         // token_attention_space() bytes
  float* values;       // [heads][value_dim]
  uint32_t mid_width;  // the widest network's
  float* mid;          // [1 + used][mid_width] of the dense or shared network, then of each chosen expert
  float* scores;       // [experts]
  int32_t* chosen;     // [used]
  float* weight;       // [used]
  float* logits;       // [vocabulary]
  // The ranks; number of a layer > 0 and by_ranks: they do the experts that are not on the device.
  ExchangeView exchange;
  bool by_ranks;
  uint32_t wait_milliseconds;
};

// Choices of a token in shared memory: slot -1 where an expert is not on the device.
struct TokenChoice {
  int32_t expert[kMostTokenUsed], slot[kMostTokenUsed];
  float weight[kMostTokenUsed];
};

// The parts without weights. All threads of a block call them. `scratch` is shared memory, 128-byte aligned, that nobody uses
// when they are called, and not in use any more when the last thread returns: callers put barriers before and behind.

// token_attention.cuh. Bytes of `parts` for a grid of `blocks` blocks.
uint64_t token_attention_space(uint32_t blocks, uint32_t heads, uint32_t kv_rank);
// One block: norm of the latent, rotation of the key, both to their place in the pages.
__device__ void store_latent(const TokenStep& step, const TokenLayer& layer, uint8_t* scratch /* 1 KB */);
// All blocks, each its share (blockIdx.x of gridDim.x): partial sums over spans of the context.
__device__ void attend_spans(const TokenStep& step, const TokenLayer& layer, uint8_t* scratch /* kTokenScratch */);
// Sums of heads first .. first + count out of the partial ones, to shared memory [count][kv_rank].
__device__ void merge_heads(const TokenStep& step, uint32_t first, uint32_t count, float* to,
                            uint8_t* scratch /* 8 KB */);

// token_routing.cuh. Scores (after sigmoid or as logits, as Router.scores) to the choice, by every block for itself; block 0
// also writes chosen, weight and counts.
__device__ void choose_token_experts(const TokenStep& step, const TokenLayer& layer, TokenChoice& choice,
                                     uint8_t* scratch /* 6 KB */);
// One block: brings h (in shared memory, [hidden]) to the ranks; later, behind a barrier, their choice, and lets them begin.
__device__ void hand_over_h(const TokenStep& step, const float* h);
__device__ void hand_over_choice(const TokenStep& step, const TokenLayer& layer, const TokenChoice& choice);
// All blocks, of which a few await the ranks and add the columns of their sum to x.
__device__ void add_ranks_sum(const TokenStep& step, const TokenLayer& layer);

// Lets blocks of a grid whose blocks are all resident meet. The count in device memory only grows: every launch leaves a
// multiple of the grid, so nothing is reset.
class GridBarrier {
 public:
  __device__ explicit GridBarrier(unsigned long long* arrived) : arrived_(arrived) {}

  // All threads of all blocks. What they wrote before is seen by all after.
  __device__ void meet() {
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long before;
      asm volatile("atom.add.acq_rel.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(arrived_) : "memory");
      const unsigned long long all = (before / gridDim.x + 1) * gridDim.x;
      const uint64_t begin = nanoseconds();
      for (uint32_t look = 1;; look++) {
        unsigned long long count;
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(count) : "l"(arrived_) : "memory");
        if (count >= all) break;
        if (look % 1024 == 0 && nanoseconds() - begin > kMost) __trap();
      }
    }
    __syncthreads();
  }

 private:
  // Longer than any wait for the ranks: a mistake of ours must not hang the device.
  static constexpr uint64_t kMost = 120'000'000'000;
  unsigned long long* arrived_;
};

}  // namespace perigee::cuda
