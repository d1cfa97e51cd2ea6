// What the files of few rows ask of each other.
#pragma once
#include "products.h"

namespace perigee::cuda {

inline uint32_t few_warps_per_multiprocessor = 16;

// Raises the limits of the kernels for few rows; part of prepare_products.
cudaError_t prepare_few();
cudaError_t prepare_gate_up_few();
cudaError_t prepare_route_few();
cudaError_t prepare_head_products();

// First half of route_few: experts.mid.
cudaError_t gate_up_routed(cudaStream_t stream, const Rows& x, uint32_t n, const RoutedFew& experts);

}  // namespace perigee::cuda
