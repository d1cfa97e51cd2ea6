// What the files of few rows ask of each other.
#pragma once
#include "products.h"

namespace perigee::cuda {

constexpr uint32_t kMostTokens = 8;                  // of a launch; a step of more takes two
constexpr uint32_t kMostWarps = 16, kMostTeams = 4;  // of a block
constexpr uint32_t kStaticBytes = 16384;             // most shared memory that a job has for itself

// How a launch is cut: `width` warps a team, `teams` in all (of x), `per_block` of them in a block; tiles of a warp's
// ring; steps whose activations are in shared memory at once; and shared memory of a block.
struct Cut {
  uint32_t width, per_block, teams, stages, chunk, bytes;
  dim3 grid(uint32_t y = 1) const { return dim3((teams + per_block - 1) / per_block, y); }
  uint32_t threads() const { return 32 * width * per_block; }
};

// What is to be cut. Bytes: of a tile, of the activations it meets, of a warp's sums.
struct CutOf {
  uint32_t units, parts, steps;
  uint32_t tile_bytes, met_bytes, partial_bytes, most_stages;
};
Cut cut(const CutOf& of);

// Raises the limits of the kernels for few rows; part of prepare_products.
cudaError_t prepare_few();
cudaError_t prepare_gate_up_few();
cudaError_t prepare_route_few();
cudaError_t prepare_head_products();

// The rows from `first` on.
inline Rows rows_from(const Rows& rows, uint32_t first) {
  const uint64_t exact = uint64_t(first) * rows.cols, padded = uint64_t(first) * padded_cols(rows.cols);
  return {rows.cols,
          rows.f32 ? rows.f32 + exact : nullptr,
          rows.wide ? rows.wide + exact : nullptr,
          rows.q ? rows.q + padded : nullptr,
          rows.scale ? rows.scale + padded / 32 : nullptr,
          rows.sum ? rows.sum + padded / 16 : nullptr};
}

// First half of route_few: experts.mid.
cudaError_t gate_up_routed(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts);

}  // namespace perigee::cuda
