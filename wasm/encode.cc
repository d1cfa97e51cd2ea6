// The encoders' door: `convert` runs them on instances of their own, one per worker.
#include "../engine/quant/encode.h"

// Rows of floats to rows of `type`; 1 when done, 0 for a type that has no encoder.
extern "C" __attribute__((export_name("encode_rows"))) int encode_rows(uint32_t type, const float* x, uint32_t rows,
                                                                       uint32_t cols, uint8_t* out) {
  const perigee::DType dtype = perigee::DType(type);
  if (!perigee::can_encode(dtype)) return 0;
  const size_t bytes = perigee::row_bytes(dtype, cols);
  for (uint32_t r = 0; r < rows; ++r) perigee::encode_row(dtype, x + size_t(r) * cols, cols, out + r * bytes);
  return 1;
}
