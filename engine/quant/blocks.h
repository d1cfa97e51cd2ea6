// GGUF weight blocks, byte for byte as in the file (little endian). `half` fields are IEEE halfs: half_to_float.
//
// A row is a run of blocks; a block's elements are in row order. Nibble formats of 32 keep element j in the low and element
// j + 16 in the high nibble of qs[j]. Superblocks hold 256 elements in sub-blocks of 16 or 32 with small integer scales.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace perigee {

using half = uint16_t;

// y = d * (q - 8), q 0..15. 4.5 bits a weight.
struct BlockQ4_0 {
  half d;
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_0) == 18);

// y = d * q + m, q 0..15. 5 bits a weight.
struct BlockQ4_1 {
  half d, m;
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_1) == 20);

// y = d * (q - 16), q 0..31: nibble of qs, fifth bit from bit j (j: element) of the u32 qh. 5.5 bits a weight.
struct BlockQ5_0 {
  half d;
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_0) == 22);

// y = d * q + m, q 0..31 as in Q5_0. 6 bits a weight.
struct BlockQ5_1 {
  half d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_1) == 24);

// y = d * q, q -128..127. 8.5 bits a weight.
struct BlockQ8_0 {
  half d;
  int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

// y = d * kIQ4Values[q], q 0..15, nibbles as in Q4_0. 4.5 bits a weight.
struct BlockIQ4_NL {
  half d;
  uint8_t qs[16];
};
static_assert(sizeof(BlockIQ4_NL) == 18);

// The 16 values of IQ4_NL and IQ4_XS codes: denser near zero, where weights are.
inline constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// y = d * (scales[s] & 15) * q - dmin * (scales[s] >> 4), q 0..3, s = element / 16. 2.6 bits a weight.
// Half n (128 elements) of the block: element 32 j + l is bits 2j, 2j+1 of qs[32 n + l].
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  half d, dmin;
};
static_assert(sizeof(BlockQ2_K) == 84);

// y = d * (scale - 32) * (q - 4), q 0..7: two bits as in Q2_K, third from bit 4 n + j of hmask[l]. 3.4 bits a weight.
// 16 six-bit scales, one per 16 elements: low nibbles in scales[0..7], upper two bits in scales[8..11].
struct BlockQ3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  half d;
};
static_assert(sizeof(BlockQ3_K) == 110);

// y = d * scale * q - dmin * min, q 0..15, one six-bit scale and min per 32 elements. 4.5 bits a weight.
// Elements 64 p + l and 64 p + 32 + l are the low and high nibble of qs[32 p + l].
// Scales and mins: sub-blocks 0..3 in the low six bits of scales[0..3] and [4..7]; sub-blocks 4..7 in the nibbles of
// scales[8..11] (low: scale, high: min) and the top two bits of scales[0..3] and [4..7].
struct BlockQ4_K {
  half d, dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ4_K) == 144);

// As Q4_K with q 0..31: the fifth bit of sub-block s is bit s of qh[l]. 5.5 bits a weight.
struct BlockQ5_K {
  half d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ5_K) == 176);

// y = d * scales[s] * (q - 32), q 0..63, s = element / 16. 6.6 bits a weight.
// Half n: elements l, 32 + l are the low nibbles of ql[64 n + l], ql[64 n + 32 + l], elements 64 + l, 96 + l their high
// nibbles; element 32 j + l has its upper two bits in bits 2j, 2j+1 of qh[32 n + l].
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  half d;
};
static_assert(sizeof(BlockQ6_K) == 210);

// y = d * (scale - 32) * kIQ4Values[q], one six-bit scale per 32 elements: low nibble s in scales_l, upper two bits at
// bit 2 s of scales_h. Sub-block s is qs[16 s ..], nibbles as in Q4_0. 4.25 bits a weight.
struct BlockIQ4_XS {
  half d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};
static_assert(sizeof(BlockIQ4_XS) == 136);

}  // namespace perigee
