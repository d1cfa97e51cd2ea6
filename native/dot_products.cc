// The 8-bit dot of each kernel table at the rate the CPU can sustain: operands from the first-level cache, enough
// independent sums to hide the instruction's latency.
#include <string.h>

#include "limits.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace perigee {

namespace {

constexpr uint32_t kBytes = 8192;

int32_t scalar_dots(const uint8_t* x, uint32_t turns) {
  int32_t sum = 0;
  for (uint32_t t = 0; t < turns; t++) {
    for (uint32_t i = 0; i < kBytes; i++) sum += static_cast<int8_t>(x[i]) * static_cast<int8_t>(t + i);
  }
  return sum;
}

#if defined(__x86_64__)
// Each vector meets two weights, as two rows share an activation in the kernels.
__attribute__((target("avx2"))) int32_t avx2_dots(const uint8_t* x, uint32_t turns) {
  __m256i sums[4][2] = {};
  const __m256i w[2] = {_mm256_set1_epi8(3), _mm256_set1_epi8(5)};
  for (uint32_t t = 0; t < turns; t++) {
    for (uint32_t i = 0; i < kBytes; i += 128) {
#pragma GCC unroll 4
      for (uint32_t j = 0; j < 4; j++) {
        const __m256i v = _mm256_load_si256(reinterpret_cast<const __m256i*>(x + i + 32 * j));
        for (uint32_t k = 0; k < 2; k++) sums[j][k] = _mm256_add_epi16(sums[j][k], _mm256_maddubs_epi16(v, w[k]));
      }
    }
  }
  for (uint32_t j = 1; j < 8; j++) sums[0][0] = _mm256_xor_si256(sums[0][0], sums[j / 2][j % 2]);
  return _mm256_extract_epi32(sums[0][0], 0);
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) int32_t avx512_dots(const uint8_t* x, uint32_t turns) {
  __m512i sums[8][2] = {};
  const __m512i w[2] = {_mm512_set1_epi8(3), _mm512_set1_epi8(5)};
  for (uint32_t t = 0; t < turns; t++) {
    for (uint32_t i = 0; i < kBytes; i += 512) {
#pragma GCC unroll 8
      for (uint32_t j = 0; j < 8; j++) {
        const __m512i v = _mm512_load_si512(x + i + 64 * j);
        for (uint32_t k = 0; k < 2; k++) sums[j][k] = _mm512_dpbusd_epi32(sums[j][k], v, w[k]);
      }
    }
  }
  __m512i all = sums[0][0];
  for (uint32_t j = 1; j < 16; j++) all = _mm512_xor_si512(all, sums[j / 2][j % 2]);
  alignas(64) int32_t lanes[16];
  _mm512_store_si512(lanes, all);
  return lanes[0];
}

// Tiles of 16 rows of 64 bytes: two of activations and two of weights give four of sums, eight tiles in all.
__attribute__((target("amx-tile,amx-int8"))) int32_t amx_dots(const uint8_t* x, uint32_t turns) {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t columns[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; tile++) config.columns[tile] = 64, config.rows[tile] = 16;
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (uint32_t t = 0; t < turns; t++) {
    for (uint32_t i = 0; i < kBytes; i += 4096) {
      _tile_loadd(4, x + i, 64);
      _tile_loadd(5, x + i + 1024, 64);
      _tile_loadd(6, x + i + 2048, 64);
      _tile_loadd(7, x + i + 3072, 64);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  alignas(64) int32_t sums[256];
  _tile_stored(0, sums, 64);
  _tile_release();
  return sums[0];
}
#elif defined(__aarch64__)
__attribute__((target("+dotprod"))) int32_t neon_dots(const uint8_t* x, uint32_t turns) {
  int32x4_t sums[8][2] = {};
  const int8x16_t w[2] = {vdupq_n_s8(3), vdupq_n_s8(5)};
  for (uint32_t t = 0; t < turns; t++) {
    for (uint32_t i = 0; i < kBytes; i += 128) {
#pragma GCC unroll 8
      for (uint32_t j = 0; j < 8; j++) {
        const int8x16_t v = vld1q_s8(reinterpret_cast<const int8_t*>(x + i + 16 * j));
        for (uint32_t k = 0; k < 2; k++) sums[j][k] = vdotq_s32(sums[j][k], v, w[k]);
      }
    }
  }
  for (uint32_t j = 1; j < 16; j++) sums[0][0] = veorq_s32(sums[0][0], sums[j / 2][j % 2]);
  return vgetq_lane_s32(sums[0][0], 0);
}
#endif

}  // namespace

uint64_t dot_products(const Kernels& table, const uint8_t* x, uint32_t turns, volatile int32_t& sink) {
  const auto is = [&](const char* name) { return strcmp(table.name, name) == 0; };
#if defined(__x86_64__)
  if (is("avx2")) return sink = avx2_dots(x, turns), uint64_t{2} * kBytes * turns;
  if (is("avx512")) return sink = avx512_dots(x, turns), uint64_t{2} * kBytes * turns;
  // 16 x 16 sums of 64 products for every tile pair: four of them for 4096 bytes.
  if (is("amx")) return sink = amx_dots(x, turns), uint64_t{4 * 16 * 16 * 64} * (kBytes / 4096) * turns;
#elif defined(__aarch64__)
  if (is("neon")) return sink = neon_dots(x, turns), uint64_t{2} * kBytes * turns;
#endif
  return sink = scalar_dots(x, turns), uint64_t{kBytes} * turns;
}

}  // namespace perigee
