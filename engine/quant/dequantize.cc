#include "dequantize.h"

namespace perigee {
namespace {

int low(uint8_t byte) { return byte & 15; }
int high(uint8_t byte) { return byte >> 4; }

uint32_t load_u32(const uint8_t bytes[4]) {
  return bytes[0] | uint32_t(bytes[1]) << 8 | uint32_t(bytes[2]) << 16 | uint32_t(bytes[3]) << 24;
}

// Nibble j and the fifth bit of Q5_0 and Q5_1.
void five_bit_codes(const uint8_t qs[16], const uint8_t qh[4], int offset, int8_t q[32]) {
  const uint32_t fifth = load_u32(qh);
  for (int j = 0; j < 16; j++) {
    q[j] = int8_t((low(qs[j]) | int(fifth >> j & 1) << 4) - offset);
    q[j + 16] = int8_t((high(qs[j]) | int(fifth >> (j + 16) & 1) << 4) - offset);
  }
}

// Values of blocks with one scale: d * q, or d * q + m.
template <typename Block, bool kHasMin>
void dequantize_blocks32(const uint8_t* w, uint32_t cols, float* y) {
  const auto* blocks = reinterpret_cast<const Block*>(w);
  for (uint32_t b = 0; b < cols / 32; b++) {
    Codes32 codes;
    unpack(blocks[b], codes);
    for (int i = 0; i < 32; i++) {
      const float value = codes.d * float(codes.q[i]);
      y[32 * b + i] = kHasMin ? value + codes.m : value;
    }
  }
}

template <typename Block, bool kHasMin>
void dequantize_blocks256(const uint8_t* w, uint32_t cols, float* y) {
  const auto* blocks = reinterpret_cast<const Block*>(w);
  for (uint32_t b = 0; b < cols / 256; b++) {
    Codes256 codes;
    unpack(blocks[b], codes);
    for (int i = 0; i < 256; i++) {
      const float value = codes.d * float(codes.scale[i / 16]) * float(codes.q[i]);
      y[256 * b + i] = kHasMin ? value - codes.dmin * float(codes.min[i / 16]) : value;
    }
  }
}

}  // namespace

void unpack(const BlockQ4_0& block, Codes32& out) {
  out.d = half_to_float(block.d);
  out.m = 0.0f;
  for (int j = 0; j < 16; j++) {
    out.q[j] = int8_t(low(block.qs[j]) - 8);
    out.q[j + 16] = int8_t(high(block.qs[j]) - 8);
  }
}

void unpack(const BlockQ4_1& block, Codes32& out) {
  out.d = half_to_float(block.d);
  out.m = half_to_float(block.m);
  for (int j = 0; j < 16; j++) {
    out.q[j] = int8_t(low(block.qs[j]));
    out.q[j + 16] = int8_t(high(block.qs[j]));
  }
}

void unpack(const BlockQ5_0& block, Codes32& out) {
  out.d = half_to_float(block.d);
  out.m = 0.0f;
  five_bit_codes(block.qs, block.qh, 16, out.q);
}

void unpack(const BlockQ5_1& block, Codes32& out) {
  out.d = half_to_float(block.d);
  out.m = half_to_float(block.m);
  five_bit_codes(block.qs, block.qh, 0, out.q);
}

void unpack(const BlockQ8_0& block, Codes32& out) {
  out.d = half_to_float(block.d);
  out.m = 0.0f;
  for (int j = 0; j < 32; j++) out.q[j] = block.qs[j];
}

void unpack(const BlockIQ4_NL& block, Codes32& out) {
  out.d = half_to_float(block.d);
  out.m = 0.0f;
  for (int j = 0; j < 16; j++) {
    out.q[j] = kIQ4Values[low(block.qs[j])];
    out.q[j + 16] = kIQ4Values[high(block.qs[j])];
  }
}

void unpack(const BlockQ2_K& block, Codes256& out) {
  out.d = half_to_float(block.d);
  out.dmin = half_to_float(block.dmin);
  for (int s = 0; s < 16; s++) {
    out.scale[s] = int8_t(low(block.scales[s]));
    out.min[s] = uint8_t(high(block.scales[s]));
  }
  for (int i = 0; i < 256; i++) {
    const int n = i / 128, j = i % 128 / 32, l = i % 32;
    out.q[i] = int8_t(block.qs[32 * n + l] >> 2 * j & 3);
  }
}

void unpack(const BlockQ3_K& block, Codes256& out) {
  out.d = half_to_float(block.d);
  out.dmin = 0.0f;
  for (int s = 0; s < 16; s++) {
    const uint8_t packed = block.scales[s % 8];
    const int nibble = s < 8 ? low(packed) : high(packed);
    const int upper = block.scales[8 + s % 4] >> 2 * (s / 4) & 3;
    out.scale[s] = int8_t((nibble | upper << 4) - 32);
    out.min[s] = 0;
  }
  for (int i = 0; i < 256; i++) {
    const int n = i / 128, j = i % 128 / 32, l = i % 32;
    const int third = block.hmask[l] >> (4 * n + j) & 1;
    out.q[i] = int8_t((block.qs[32 * n + l] >> 2 * j & 3) + 4 * third - 4);
  }
}

void unpack_scales_k4(const uint8_t packed[12], uint8_t scale[8], uint8_t min[8]) {
  for (int s = 0; s < 4; s++) {
    scale[s] = packed[s] & 63;
    min[s] = packed[s + 4] & 63;
    scale[s + 4] = uint8_t(low(packed[s + 8]) | packed[s] >> 6 << 4);
    min[s + 4] = uint8_t(high(packed[s + 8]) | packed[s + 4] >> 6 << 4);
  }
}

void unpack(const BlockQ4_K& block, Codes256& out) {
  out.d = half_to_float(block.d);
  out.dmin = half_to_float(block.dmin);
  uint8_t scale[8], min[8];
  unpack_scales_k4(block.scales, scale, min);
  for (int s = 0; s < 16; s++) {
    out.scale[s] = int8_t(scale[s / 2]);
    out.min[s] = min[s / 2];
  }
  for (int i = 0; i < 256; i++) {
    const uint8_t byte = block.qs[i / 64 * 32 + i % 32];
    out.q[i] = int8_t(i % 64 < 32 ? low(byte) : high(byte));
  }
}

void unpack(const BlockQ5_K& block, Codes256& out) {
  out.d = half_to_float(block.d);
  out.dmin = half_to_float(block.dmin);
  uint8_t scale[8], min[8];
  unpack_scales_k4(block.scales, scale, min);
  for (int s = 0; s < 16; s++) {
    out.scale[s] = int8_t(scale[s / 2]);
    out.min[s] = min[s / 2];
  }
  for (int i = 0; i < 256; i++) {
    const uint8_t byte = block.qs[i / 64 * 32 + i % 32];
    const int fifth = block.qh[i % 32] >> i / 32 & 1;
    out.q[i] = int8_t((i % 64 < 32 ? low(byte) : high(byte)) | fifth << 4);
  }
}

void unpack(const BlockQ6_K& block, Codes256& out) {
  out.d = half_to_float(block.d);
  out.dmin = 0.0f;
  for (int s = 0; s < 16; s++) {
    out.scale[s] = block.scales[s];
    out.min[s] = 0;
  }
  for (int i = 0; i < 256; i++) {
    const int n = i / 128, j = i % 128 / 32, l = i % 32;
    const uint8_t byte = block.ql[64 * n + 32 * (j % 2) + l];
    const int upper = block.qh[32 * n + l] >> 2 * j & 3;
    out.q[i] = int8_t(((j < 2 ? low(byte) : high(byte)) | upper << 4) - 32);
  }
}

void unpack(const BlockIQ4_XS& block, Codes256& out) {
  out.d = half_to_float(block.d);
  out.dmin = 0.0f;
  for (int s = 0; s < 16; s++) {
    const int sub = s / 2;
    const int nibble = block.scales_l[sub / 2] >> 4 * (sub % 2) & 15;
    out.scale[s] = int8_t((nibble | (block.scales_h >> 2 * sub & 3) << 4) - 32);
    out.min[s] = 0;
  }
  for (int i = 0; i < 256; i++) {
    const uint8_t byte = block.qs[i / 32 * 16 + i % 16];
    out.q[i] = kIQ4Values[i % 32 < 16 ? low(byte) : high(byte)];
  }
}

void dequantize_row(DType type, const uint8_t* w, uint32_t cols, float* y) {
  switch (type) {
    case DType::F32: {
      const auto* x = reinterpret_cast<const float*>(w);
      for (uint32_t i = 0; i < cols; i++) y[i] = x[i];
      return;
    }
    case DType::F16: {
      const auto* x = reinterpret_cast<const uint16_t*>(w);
      for (uint32_t i = 0; i < cols; i++) y[i] = half_to_float(x[i]);
      return;
    }
    case DType::BF16: {
      const auto* x = reinterpret_cast<const uint16_t*>(w);
      for (uint32_t i = 0; i < cols; i++) y[i] = bf16_to_float(x[i]);
      return;
    }
    case DType::Q4_0:
      return dequantize_blocks32<BlockQ4_0, false>(w, cols, y);
    case DType::Q4_1:
      return dequantize_blocks32<BlockQ4_1, true>(w, cols, y);
    case DType::Q5_0:
      return dequantize_blocks32<BlockQ5_0, false>(w, cols, y);
    case DType::Q5_1:
      return dequantize_blocks32<BlockQ5_1, true>(w, cols, y);
    case DType::Q8_0:
      return dequantize_blocks32<BlockQ8_0, false>(w, cols, y);
    case DType::IQ4_NL:
      return dequantize_blocks32<BlockIQ4_NL, false>(w, cols, y);
    case DType::Q2_K:
      return dequantize_blocks256<BlockQ2_K, true>(w, cols, y);
    case DType::Q3_K:
      return dequantize_blocks256<BlockQ3_K, false>(w, cols, y);
    case DType::Q4_K:
      return dequantize_blocks256<BlockQ4_K, true>(w, cols, y);
    case DType::Q5_K:
      return dequantize_blocks256<BlockQ5_K, true>(w, cols, y);
    case DType::Q6_K:
      return dequantize_blocks256<BlockQ6_K, false>(w, cols, y);
    case DType::IQ4_XS:
      return dequantize_blocks256<BlockIQ4_XS, false>(w, cols, y);
  }
}

}  // namespace perigee
