// What each block does at each stage of a token: made once by the host (token_program.cu), followed by the kernel.
#pragma once
#include "rows.h"

namespace perigee::cuda {

enum class TokenStage : uint8_t { Inputs, Query, Absorb, Attend, Expand, Output, Router, GateUp, Down, AddRanks, Head };

// What becomes of a product's rows.
enum class TokenTarget : uint8_t { Qkv, Q, Absorbed, Values, Residual, Scores, Mid, Logits };

// Consecutive units of one packed matrix, a unit being what makes 16 rows of a product (of float weights, one). Its tiles lie
// one behind the other.
struct TokenSegment {
  const uint8_t* from;  // of a routed expert: where the tiles of slot 0 lie
  uint32_t tiles;       // of all units
  uint32_t begin;       // tiles of the block's segments before
  uint32_t row, rows;   // of the target: the first, and behind the matrix' last
  uint32_t stride;      // from slot to slot, in 256 bytes
  uint16_t steps;       // tiles of a unit
  uint16_t bytes;       // of a tile
  uint16_t met;         // where its activations lie in shared memory, in 16 bytes
  uint16_t first_unit;  // units of the block's segments before
  uint8_t type;         // DType
  TokenTarget target;
  int8_t expert;  // k of the routed expert, or -1
};
constexpr uint32_t kMostSegments = 10;

// How activations lie for the weights that meet them: floats, or 8-bit integers in the order of few_tile.cuh, a tile of 128
// columns after the other, with a factor for each 32.
constexpr uint8_t kFloatForm = 1, kWideForm = 2 /* 256 columns a tile */, kHalfForm = 4 /* a factor for each 16 */,
                  kSumForm = 8 /* sums as well */;

// A vector of activations that is brought into shared memory.
struct TokenBring {
  uint16_t cols, met;  // as of segments
  uint16_t pieces;     // of 128 columns, of this one and those before
  uint8_t form;
  int8_t which;  // head or k of the routed expert; -1: neither
};

// A layer's vectors and places.
struct TokenLayer {
  const float *attn_norm, *q_norm, *kv_norm, *ffn_norm;  // [hidden], [q_rank], [kv_rank], [hidden]
  const float* router_bias;                              // [experts]
  bf16* pages;                                           // of the layer
  const int32_t* slot_of;                                // [experts] slot of an expert on the device; -1: not here
  uint32_t* counts;                                      // [experts] += 1 for each choice
  uint32_t number;                                       // of the MoE layer, from 1; 0: a dense one
  uint32_t resident;                                     // experts on the device
};

// One block's share of a stage.
struct TokenWork {
  TokenStage stage;
  uint8_t segments, brings;
  uint8_t unit_rows;  // floats that each unit's sums take: 16, or 1 where all weights are floats
  uint32_t tiles;     // of all segments
  uint32_t stores;    // whether this block stores the latent
  uint32_t spare[3];
  TokenLayer layer;
  TokenSegment segment[kMostSegments];
  TokenBring bring[kMostSegments];
};
static_assert(sizeof(TokenSegment) == 40 && sizeof(TokenBring) == 8 && sizeof(TokenWork) % 16 == 0);

}  // namespace perigee::cuda
