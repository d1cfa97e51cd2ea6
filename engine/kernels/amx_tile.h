// The tile instructions of AMX-INT8, by number of the tile register.
//
// Written as assembly: the compiler's own intrinsics paste the register's number into text, so that templates cannot pass
// it, and do not tell the compiler that they read and write memory. With PERIGEE_EMULATED_TILES (tests on machines without
// AMX) the same names work on arrays.
#pragma once
#include <stdint.h>

namespace perigee {
namespace {

// What LDTILECFG reads: rows and bytes of a row of each tile register, palette 1.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr void set(int tile, uint32_t tile_rows, uint32_t tile_row_bytes) {
    rows[tile] = uint8_t(tile_rows);
    row_bytes[tile] = uint16_t(tile_row_bytes);
  }
};
static_assert(sizeof(TileShapes) == 64);

#ifndef PERIGEE_EMULATED_TILES

inline void tile_configure(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes)); }

// Back to no tiles: a context switch then saves none.
inline void tile_release() { __asm__ volatile("tilerelease"); }

template <int kTile>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Rows `stride` bytes apart.
template <int kTile>
inline void tile_load(const void* p, size_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void tile_store(void* p, size_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}

// sum[m][n] += a[m][4 k + i] * b[k][4 n + i]: a signed, b signed or unsigned bytes, sums 32 bits.
template <bool kSigned, int kSum, int kA, int kB>
inline void tile_dot() {
  if constexpr (kSigned) __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
  else __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

#else

struct EmulatedTiles {
  TileShapes shapes;
  uint8_t bytes[8][16][64];
};
thread_local EmulatedTiles tiles;

inline void tile_configure(const TileShapes& shapes) {
  tiles.shapes = shapes;
  __builtin_memset(tiles.bytes, 0, sizeof(tiles.bytes));
}

inline void tile_release() { tiles.shapes = {}; }

template <int kTile>
inline void tile_zero() {
  __builtin_memset(tiles.bytes[kTile], 0, sizeof(tiles.bytes[kTile]));
}

template <int kTile>
inline void tile_load(const void* p, size_t stride) {
  tile_zero<kTile>();
  for (int m = 0; m < tiles.shapes.rows[kTile]; m++)
    __builtin_memcpy(tiles.bytes[kTile][m], static_cast<const uint8_t*>(p) + m * stride, tiles.shapes.row_bytes[kTile]);
}

template <int kTile>
inline void tile_store(void* p, size_t stride) {
  for (int m = 0; m < tiles.shapes.rows[kTile]; m++)
    __builtin_memcpy(static_cast<uint8_t*>(p) + m * stride, tiles.bytes[kTile][m], tiles.shapes.row_bytes[kTile]);
}

template <bool kSigned, int kSum, int kA, int kB>
inline void tile_dot() {
  const TileShapes& shapes = tiles.shapes;
  // The instruction's own conditions; it faults otherwise.
  if (shapes.rows[kSum] != shapes.rows[kA] || shapes.row_bytes[kSum] != shapes.row_bytes[kB] ||
      shapes.row_bytes[kA] != 4 * shapes.rows[kB])
    __builtin_trap();
  for (int m = 0; m < shapes.rows[kA]; m++)
    for (int n = 0; n < shapes.row_bytes[kB] / 4; n++) {
      int32_t sum;
      __builtin_memcpy(&sum, tiles.bytes[kSum][m] + 4 * n, 4);
      for (int k = 0; k < shapes.rows[kB]; k++)
        for (int i = 0; i < 4; i++) {
          const uint8_t b = tiles.bytes[kB][k][4 * n + i];
          sum += int32_t(int8_t(tiles.bytes[kA][m][4 * k + i])) * (kSigned ? int32_t(int8_t(b)) : int32_t(b));
        }
      __builtin_memcpy(tiles.bytes[kSum][m] + 4 * n, &sum, 4);
    }
}

#endif

}  // namespace
}  // namespace perigee
