// The meaning of every weight format: codes, scales and values of one block, in plain C++.
#pragma once
#include "../tensor.h"
#include "blocks.h"
#include "half.h"

namespace perigee {

// One 32-element block: y[i] = d * q[i], or d * q[i] + m for Q4_1 and Q5_1.
struct Codes32 {
  float d, m;
  int8_t q[32];
};

// One superblock: y[i] = (d * scale[i / 16]) * q[i], less dmin * min[i / 16] for Q2_K, Q4_K and Q5_K.
// Sub-blocks of 32 have their scale and min twice.
struct Codes256 {
  float d, dmin;
  int8_t q[256];
  int8_t scale[16];
  uint8_t min[16];
};

void unpack(const BlockQ4_0& block, Codes32& out);
void unpack(const BlockQ4_1& block, Codes32& out);
void unpack(const BlockQ5_0& block, Codes32& out);
void unpack(const BlockQ5_1& block, Codes32& out);
void unpack(const BlockQ8_0& block, Codes32& out);
void unpack(const BlockIQ4_NL& block, Codes32& out);
void unpack(const BlockQ2_K& block, Codes256& out);
void unpack(const BlockQ3_K& block, Codes256& out);
void unpack(const BlockQ4_K& block, Codes256& out);
void unpack(const BlockQ5_K& block, Codes256& out);
void unpack(const BlockQ6_K& block, Codes256& out);
void unpack(const BlockIQ4_XS& block, Codes256& out);

// The six-bit scales and mins of Q4_K and Q5_K, one per 32 elements.
void unpack_scales_k4(const uint8_t packed[12], uint8_t scale[8], uint8_t min[8]);

// One row, or any whole number of blocks, to floats: y[cols].
void dequantize_row(DType type, const uint8_t* w, uint32_t cols, float* y);

}  // namespace perigee
