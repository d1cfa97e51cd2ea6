// Absorbed attention of one token by all blocks of a grid, as parts of a kernel that does more (token.cuh).
//
// The heads are cut into tiles, the context into spans of 32 tokens. The blocks of a tile are its lanes: each walks some
// neighbouring spans with a running maximum and leaves its sums. Whoever needs a head merges what its lanes left. Latents of
// 512 + 64 values meet 16 heads at once on the tensor cores; others are met head by head in plain arithmetic.
#pragma once
#include "forms.cuh"
#include "norms.cuh"
#include "token.cuh"
#include "warp_products.cuh"

namespace perigee::cuda {

constexpr uint32_t kTokenSpan = 32;  // tokens: one a lane of a warp
constexpr uint32_t kTokenRows = 16;  // heads: one a warp
constexpr uint32_t kTokenLatent = 512, kTokenKey = 576;
constexpr uint32_t kMostTokenLanes = 128;
static_assert(kTokenRows == kTokenWarps);

__host__ __device__ inline bool on_tensor_cores(uint32_t kv_rank, uint32_t rope_dim) {
  return kv_rank == kTokenLatent && kv_rank + rope_dim == kTokenKey;
}

// How heads and context are dealt out. There are at least as many blocks as tiles.
struct TokenSpread {
  uint32_t rows, tiles, lanes;  // rows: heads of a tile
  __host__ __device__ TokenSpread(uint32_t blocks, uint32_t heads, uint32_t kv_rank, uint32_t rope_dim) {
    rows = on_tensor_cores(kv_rank, rope_dim) ? kTokenRows : 1;
    tiles = (heads + rows - 1) / rows;
    lanes = blocks / tiles < kMostTokenLanes ? blocks / tiles : kMostTokenLanes;
  }
};

inline uint64_t token_attention_space(uint32_t blocks, uint32_t heads, uint32_t kv_rank, uint32_t rope_dim) {
  const uint64_t parts = uint64_t{TokenSpread(blocks, heads, kv_rank, rope_dim).lanes} * heads;
  return parts * (kv_rank * sizeof(bf16) + sizeof(float2));
}

#ifdef __CUDACC__

// Where the token is: read once, at the beginning of the kernel.
struct TokenPlace {
  int32_t position;
  const int32_t* table;  // pages of its sequence
  __device__ explicit TokenPlace(const TokenStep& step)
      : position(*step.position), table(step.page_tables + uint64_t{step.table_stride} * *step.sequence) {}

  __device__ uint32_t seen() const { return position + 1; }
  // Which row of the layer's pages a position has.
  __device__ uint64_t row(const TokenStep& step, uint32_t at) const {
    return uint64_t(table[at / step.page_tokens]) * step.page_tokens + at % step.page_tokens;
  }
};

// One block: norm of the latent and rotation of the key, both to their place in the pages. At most 2048 values.
__device__ inline void store_latent(const TokenStep& step, const TokenLayer& layer, const TokenPlace& place) {
  const uint32_t column = 4 * threadIdx.x, cols = step.kv_rank, width = cols + step.rope_dim;
  const float4* row = reinterpret_cast<const float4*>(step.qkv + step.q_rank);
  const float4 v = column < width ? __ldcg(row + threadIdx.x) : float4{};
  const float4 weight = load_or_zero(layer.kv_norm, column, cols);
  const bool key = column >= cols && column < width && place.position >= 0;
  const float4 turn =
      key ? load_or_zero(step.rope + uint64_t(place.position) * step.rope_dim, column - cols, width) : float4{};
  const float4 latent[1] = {column < cols ? v : float4{}};
  const float scale = norm_scale<1>(latent, cols, step.latent_eps);
  if (place.position < 0 || column >= width) return;
  bf16* to = layer.pages + place.row(step, place.position) * width + column;
  store_wide(to, key ? rotated(v, turn) : normed(v, scale, weight));
}

// What lanes leave of a head: sums of latents in bf16, and what they are relative to. Columns within 32 lie as the tensor
// cores leave them: place 8 q + 2 j + e holds column 8 j + 2 q + e.
struct TokenParts {
  bf16* sums;     // [lanes][heads][kv_rank]
  float2* state;  // [heads][lanes] log2 of what weights are relative to, and the sum of weights
  uint32_t lanes, heads, kv_rank;
  __device__ TokenParts(const TokenStep& step, const TokenSpread& spread)
      : sums(static_cast<bf16*>(step.parts)), lanes(spread.lanes), heads(step.heads), kv_rank(step.kv_rank) {
    state = reinterpret_cast<float2*>(sums + uint64_t{lanes} * heads * kv_rank);
  }
  __device__ bf16* sums_of(uint32_t lane, uint32_t head) const { return sums + (lane * heads + head) * kv_rank; }
};

// The spans of a lane: first .. end. The last lanes of a short context have none.
struct TokenLane {
  uint32_t first, end;
  __device__ TokenLane(const TokenPlace& place, uint32_t lanes, uint32_t lane) {
    const uint32_t spans = (place.seen() + kTokenSpan - 1) / kTokenSpan, width = (spans + lanes - 1) / lanes;
    first = min(lane * width, spans);
    end = min(first + width, spans);
  }
};
// How many lanes have any.
__device__ inline uint32_t lanes_used(const TokenPlace& place, uint32_t lanes) {
  const uint32_t spans = (place.seen() + kTokenSpan - 1) / kTokenSpan, width = (spans + lanes - 1) / lanes;
  return spans ? (spans + width - 1) / width : 0;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

// Scores of 32 tokens, one a lane, become weights; earlier sums are to be multiplied with the result. `sum` is this lane's.
struct TokenSoftmax {
  float top = -INFINITY, sum = 0;
  __device__ float weigh(float& score) {
    const float before = top;
    top = fmaxf(top, warp_max(score));
    const float rescale = exp2_fast(before - top);
    score = exp2_fast(score - top);
    sum = sum * rescale + score;
    return rescale;
  }
};

constexpr float kLog2E = 1.4426950408889634f;

// --- 512 + 64 values: 16 heads meet 32 tokens ---------------------------------------------------------------------------

constexpr uint32_t kTokenChunks = kTokenKey * sizeof(bf16) / 16;                 // 16-byte pieces of a latent row
constexpr uint32_t kScoreWarps = 4, kScoreSteps = kTokenKey / 16 / kScoreWarps;  // warps share the columns of a score

struct SpanScratch {
  uint8_t latents[kTokenSpan * kTokenChunks * 16];
  // Parts of the scores; in rows of 128 bytes. The first is overwritten by weights: bf16, four chunks of eight tokens, and
  // behind them what earlier sums are to be multiplied with.
  uint8_t scores[kScoreWarps][kTokenRows][kTokenSpan * sizeof(float)];
};
static_assert(sizeof(SpanScratch) <= kTokenScratch);

// Chunks are moved within 128 bytes: equal columns of eight rows lie in different banks, and so do pairs of chunks of rows
// 0..3 and of rows 4..7.
__device__ inline uint32_t chunk_at(uint32_t row, uint32_t chunk) {
  return (row * kTokenChunks + (chunk ^ (row % 4 * 2 + row / 4 % 2))) * 16;
}
__device__ inline uint32_t weights_at(uint32_t row, uint32_t chunk) { return row * 128 + (chunk ^ (row % 8)) * 16; }

// A span on its way to shared memory; every warp brings two rows.
struct SpanFetch {
  static constexpr uint32_t kHeld = (2 * kTokenChunks + 31) / 32;
  uint4 held[kHeld];

  __device__ void ask(const TokenStep& step, const TokenLayer& layer, const TokenPlace& place, uint32_t span) {
    const uint32_t l = threadIdx.x % 32, first = span * kTokenSpan + threadIdx.x / 32 * 2, own = first + l % 2;
    const uint64_t row = own < place.seen() ? place.row(step, own) : 0;
    const auto rows_of = [&](int i) {
      return reinterpret_cast<const uint4*>(layer.pages) + __shfl_sync(~0u, row, i) * kTokenChunks;
    };
    const uint4 *even = rows_of(0), *odd = rows_of(1) - kTokenChunks;
#pragma unroll
    for (uint32_t i = 0; i < kHeld; i++) {
      const uint32_t chunk = i * 32 + l, second = chunk >= kTokenChunks;
      // Behind the context there may be anything; as values it must be zeros.
      const bool exists = chunk < 2 * kTokenChunks && first + second < place.seen();
      held[i] = exists ? __ldcg((second ? odd : even) + chunk) : uint4{};
    }
  }

  __device__ void put(SpanScratch& scratch) const {
#pragma unroll
    for (uint32_t i = 0; i < kHeld; i++) {
      const uint32_t chunk = i * 32 + threadIdx.x % 32, second = chunk >= kTokenChunks;
      const uint32_t row = threadIdx.x / 32 * 2 + second;
      if (chunk < 2 * kTokenChunks)
        *reinterpret_cast<uint4*>(scratch.latents + chunk_at(row, chunk - second * kTokenChunks)) = held[i];
    }
  }
};

// A quarter of the columns of 16 queries, as the left operand: of 16 columns a lane has four that lie together.
struct TokenQueries {
  uint2 low[kScoreSteps], high[kScoreSteps];  // rows g and g + 8

  __device__ void load(const TokenStep& step, uint32_t tile, uint32_t quarter) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, head = tile * kTokenRows + g;
    const bf16* at = step.absorbed + quarter * kScoreSteps * 16 + 4 * t;
    const bf16 *first = at + min(head, step.heads - 1) * kTokenKey,
               *second = at + min(head + 8, step.heads - 1) * kTokenKey;
#pragma unroll
    for (uint32_t i = 0; i < kScoreSteps; i++) {
      low[i] = __ldcg(reinterpret_cast<const uint2*>(first + 16 * i));
      high[i] = __ldcg(reinterpret_cast<const uint2*>(second + 16 * i));
    }
  }

  // Their products with 32 tokens, to shared memory.
  __device__ void score(SpanScratch& scratch, uint32_t quarter) const {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float s[4][4] = {};
#pragma unroll
    for (uint32_t i = 0; i < kScoreSteps; i++) {
      const uint32_t a[4] = {low[i].x, high[i].x, low[i].y, high[i].y};
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        const uint2 b = *reinterpret_cast<const uint2*>(
            scratch.latents + chunk_at(8 * j + g, (quarter * kScoreSteps + i) * 2 + t / 2) + t % 2 * 8);
        multiply_bf16(s[j], a, b.x, b.y);
      }
    }
#pragma unroll
    for (uint32_t half = 0; half < 2; half++)
#pragma unroll
      for (uint32_t j = 0; j < 4; j++)
        *reinterpret_cast<float2*>(scratch.scores[quarter][g + 8 * half] + ((4 * j + t) ^ (g % 4 * 4)) * 8) = {
            s[j][2 * half], s[j][2 * half + 1]};
  }
};

// A warp's 32 columns of 16 sums.
struct TokenSums {
  float o[16] = {};

  __device__ void add(const SpanScratch& scratch) {
    const uint32_t l = threadIdx.x % 32, g = l / 4, warp = threadIdx.x / 32;
    const uint8_t* weights = scratch.scores[0][0];
    const float rescale[2] = {*reinterpret_cast<const float*>(weights + weights_at(g, 4)),
                              *reinterpret_cast<const float*>(weights + weights_at(g + 8, 4))};
#pragma unroll
    for (int i = 0; i < 16; i++) o[i] *= rescale[i / 2 % 2];
#pragma unroll
    for (uint32_t k = 0; k < kTokenSpan / 16; k++) {
      uint32_t a[4];
      load_matrices(a, weights + weights_at(l % 16, 2 * k + l / 16));
#pragma unroll
      for (uint32_t c = 0; c < 4; c += 2) {
        uint32_t b[4];
        load_transposed(b, scratch.latents + chunk_at(16 * k + l % 16, 4 * warp + c + l / 16));
        multiply_bf16(o + 4 * c, a, b[0], b[1]);
        multiply_bf16(o + 4 * c + 4, a, b[2], b[3]);
      }
    }
  }

  __device__ void leave(const TokenParts& parts, uint32_t lane, uint32_t tile) const {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
      const uint32_t head = tile * kTokenRows + g + 8 * half;
      __nv_bfloat162 packed[4];
#pragma unroll
      for (int j = 0; j < 4; j++) packed[j] = __floats2bfloat162_rn(o[4 * j + 2 * half], o[4 * j + 2 * half + 1]);
      if (head < parts.heads)
        *reinterpret_cast<uint4*>(parts.sums_of(lane, head) + 32 * warp + 8 * t) =
            *reinterpret_cast<const uint4*>(packed);
    }
  }
};

__device__ inline void attend_by_tiles(const TokenStep& step, const TokenLayer& layer, const TokenPlace& place,
                                       const TokenSpread& spread, SpanScratch& scratch) {
  const uint32_t tile = blockIdx.x % spread.tiles, lane = blockIdx.x / spread.tiles;
  const uint32_t warp = threadIdx.x / 32, l = threadIdx.x % 32;
  const TokenLane run(place, spread.lanes, lane);
  if (lane >= spread.lanes || run.first == run.end) return;
  SpanFetch fetch;
  TokenQueries queries;
  fetch.ask(step, layer, place, run.first);
  if (warp < kScoreWarps) queries.load(step, tile, warp);
  TokenSoftmax softmax;
  TokenSums sums;
  const float scale = step.attention_scale * kLog2E;
  for (uint32_t span = run.first; span < run.end; span++) {
    fetch.put(scratch);
    __syncthreads();
    if (span + 1 < run.end) fetch.ask(step, layer, place, span + 1);
    if (warp < kScoreWarps) queries.score(scratch, warp);
    __syncthreads();
    const uint32_t at = ((l / 2) ^ (warp % 4 * 4)) * 8 + l % 2 * 4;
    float score = 0;
#pragma unroll
    for (uint32_t i = 0; i < kScoreWarps; i++) score += *reinterpret_cast<const float*>(scratch.scores[i][warp] + at);
    score = span * kTokenSpan + l < place.seen() ? score * scale : -INFINITY;
    const float rescale = softmax.weigh(score);
    __syncwarp();
    uint8_t* weights = scratch.scores[0][0];
    *reinterpret_cast<bf16*>(weights + weights_at(warp, l / 8) + l % 8 * 2) = __float2bfloat16(score);
    if (l == 0) *reinterpret_cast<float*>(weights + weights_at(warp, 4)) = rescale;
    __syncthreads();
    sums.add(scratch);
    if (span + 1 < run.end) __syncthreads();
  }
  const TokenParts parts(step, spread);
  sums.leave(parts, lane, tile);
  const float sum = warp_sum(softmax.sum);
  const uint32_t head = tile * kTokenRows + warp;
  if (l == 0 && head < step.heads) parts.state[head * spread.lanes + lane] = {softmax.top, sum};
}

// --- any width: a head meets 32 tokens; columns at most as many as threads ------------------------------------------------

struct PlainScratch {
  float scores[kTokenSpan];
};

__device__ inline void attend_by_heads(const TokenStep& step, const TokenLayer& layer, const TokenPlace& place,
                                       const TokenSpread& spread, PlainScratch& scratch) {
  const uint32_t head = blockIdx.x % spread.tiles, lane = blockIdx.x / spread.tiles;
  const uint32_t warp = threadIdx.x / 32, l = threadIdx.x % 32, column = threadIdx.x;
  const uint32_t width = step.kv_rank + step.rope_dim;
  const TokenLane run(place, spread.lanes, lane);
  if (lane >= spread.lanes || run.first == run.end) return;
  const auto load = [](const bf16* at) {
    return __uint_as_float(uint32_t(__ldcg(reinterpret_cast<const unsigned short*>(at))) << 16);
  };
  const bf16* query = step.absorbed + head * width;
  TokenSoftmax softmax;
  float o = 0;
  for (uint32_t span = run.first; span < run.end; span++) {
    const uint32_t own = span * kTokenSpan + l;
    const uint64_t row = own < place.seen() ? place.row(step, own) * width : 0;
    for (uint32_t j = warp; j < kTokenSpan; j += kTokenWarps) {
      const bf16* latent = layer.pages + __shfl_sync(~0u, row, j);
      float score = 0;
      for (uint32_t c = l; c < width; c += 32) score += load(query + c) * load(latent + c);
      score = warp_sum(score);
      if (l == 0) scratch.scores[j] = score;
    }
    __syncthreads();
    float weight = own < place.seen() ? scratch.scores[l] * step.attention_scale * kLog2E : -INFINITY;
    o *= softmax.weigh(weight);
    const uint32_t visible = min(kTokenSpan, place.seen() - span * kTokenSpan);
#pragma unroll 8
    for (uint32_t j = 0; j < visible; j++) {
      const uint64_t from = __shfl_sync(~0u, row, j);
      const float factor = __shfl_sync(~0u, weight, j);
      if (column < step.kv_rank) o += factor * load(layer.pages + from + column);
    }
    __syncthreads();
  }
  const TokenParts parts(step, spread);
  const uint32_t in_32 = column % 32, place_in_32 = in_32 % 8 / 2 * 8 + in_32 / 8 * 2 + in_32 % 2;
  if (column < step.kv_rank) parts.sums_of(lane, head)[column - in_32 + place_in_32] = __float2bfloat16(o);
  const float sum = warp_sum(softmax.sum);
  if (threadIdx.x == 0) parts.state[head * spread.lanes + lane] = {softmax.top, sum};
}

// All blocks, each its share.
__device__ inline void attend_spans(const TokenStep& step, const TokenLayer& layer, const TokenPlace& place,
                                    uint8_t* scratch) {
  const TokenSpread spread(gridDim.x, step.heads, step.kv_rank, step.rope_dim);
  if (spread.rows == kTokenRows) attend_by_tiles(step, layer, place, spread, *reinterpret_cast<SpanScratch*>(scratch));
  else attend_by_heads(step, layer, place, spread, *reinterpret_cast<PlainScratch*>(scratch));
}

// --- what lanes left, merged in their order -------------------------------------------------------------------------------

struct MergeScratch {
  float sums[4 * kTokenThreads];  // [turns][kv_rank]
};

// Heads first .. first + count to shared memory [count][kv_rank]. A thread has four columns of every turns-th lane's sums.
__device__ inline void merge_heads(const TokenStep& step, const TokenPlace& place, uint32_t first, uint32_t count,
                                   float* to, uint8_t* scratch) {
  constexpr uint32_t kStates = kMostTokenLanes / 32, kInFlight = 9;
  const TokenSpread spread(gridDim.x, step.heads, step.kv_rank, step.rope_dim);
  const TokenParts parts(step, spread);
  MergeScratch& shared = *reinterpret_cast<MergeScratch*>(scratch);
  const uint32_t used = lanes_used(place, spread.lanes), l = threadIdx.x % 32;
  const uint32_t column_threads = step.kv_rank / 4, turns = kTokenThreads / column_threads;
  const uint32_t turn = threadIdx.x / column_threads, piece = threadIdx.x % column_threads;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t head = first + i;
    float2 state[kStates];
#pragma unroll
    for (uint32_t s = 0; s < kStates; s++)
      state[s] = 32 * s + l < used ? __ldcg(parts.state + head * spread.lanes + 32 * s + l) : float2{-INFINITY, 0};
    uint2 held[kInFlight];
    const auto ask = [&](uint32_t from) {
#pragma unroll
      for (uint32_t p = 0; p < kInFlight; p++) {
        const uint32_t lane = from + p * turns;
        held[p] = lane < used && turn < turns
                      ? __ldcg(reinterpret_cast<const uint2*>(parts.sums_of(lane, head) + 4 * piece))
                      : uint2{};
      }
    };
    ask(turn);
    float top = -INFINITY, weight[kStates], total = 0;
#pragma unroll
    for (uint32_t s = 0; s < kStates; s++) top = fmaxf(top, state[s].x);
    top = warp_max(top);
#pragma unroll
    for (uint32_t s = 0; s < kStates; s++) {
      weight[s] = state[s].y > 0 ? exp2_fast(state[s].x - top) : 0;
      total += weight[s] * state[s].y;
    }
    total = warp_sum(total);
    float sum[4] = {};
    for (uint32_t from = turn; from - turn < used; from += kInFlight * turns) {
      if (from != turn) ask(from);
#pragma unroll
      for (uint32_t p = 0; p < kInFlight; p++) {
        const uint32_t lane = from + p * turns;
        float factor = weight[0];
#pragma unroll
        for (uint32_t s = 1; s < kStates; s++) factor = lane / 32 == s ? weight[s] : factor;
        factor = __shfl_sync(~0u, factor, lane % 32);
        sum[0] += factor * __uint_as_float(held[p].x << 16);
        sum[1] += factor * __uint_as_float(held[p].x & 0xffff0000u);
        sum[2] += factor * __uint_as_float(held[p].y << 16);
        sum[3] += factor * __uint_as_float(held[p].y & 0xffff0000u);
      }
    }
    // Places 4 piece .. + 3 are two columns of each of two blocks of eight.
    const uint32_t column = piece / 8 * 32 + piece % 2 * 16 + piece % 8 / 2 * 2;
    if (turn < turns) {
      float* own = shared.sums + turn * step.kv_rank + column;
      *reinterpret_cast<float2*>(own) = {sum[0], sum[1]};
      *reinterpret_cast<float2*>(own + 8) = {sum[2], sum[3]};
    }
    __syncthreads();
    if (threadIdx.x < step.kv_rank) {
      float all = 0;
      for (uint32_t t = 0; t < turns; t++) all += shared.sums[t * step.kv_rank + threadIdx.x];
      to[i * step.kv_rank + threadIdx.x] = used ? all / total : 0.0f;
    }
    if (i + 1 < count) __syncthreads();
  }
}

#endif

}  // namespace perigee::cuda
