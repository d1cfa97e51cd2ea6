// What the halves of a layer share.
#pragma once
#include "forward.h"

namespace perigee::cuda {

// The forms that products of `n` rows read.
Rows forms_for(const Rows& rows, uint32_t n);

// Copies the step's rows, where there are taps.
cudaError_t tap(Part& part, const Step& step, Tap tap, uint32_t layer, const void* from);

// x += what is pending, h = RMSNorm(x).
cudaError_t norm(Part& part, const Step& step, const float* weight);

// From x to what attention adds to it, which is left pending (attend.cc).
cudaError_t attend(Part& part, const Step& step, uint32_t layer);

}  // namespace perigee::cuda
