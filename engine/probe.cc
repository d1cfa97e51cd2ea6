// One kernel at a time, for tests and benchmarks: plain arguments in, bytes in memory out. The tables come from isa_kernels.
#ifdef __wasm__
#include <wasm_simd128.h>

#include "kernels/kernels.h"
#include "math.h"

using namespace perigee;

#define PROBE(name) extern "C" __attribute__((export_name("probe_" #name)))

PROBE(activation_row_bytes) uint32_t probe_activation_row_bytes(DType type, uint32_t exact, uint32_t cols) {
  return uint32_t(activation_row_bytes(activation_for(type, exact != 0), cols));
}

PROBE(matmul)
void probe_matmul(const Kernels* k, DType type, uint32_t exact, const MatmulArgs* args) {
  k->matmul[uint32_t(type)][exact](*args);
}

PROBE(dequantize) void probe_dequantize(const Kernels* k, DType type, const uint8_t* w, uint32_t cols, float* y) {
  k->dequantize(type, w, cols, y);
}

PROBE(quantize) void probe_quantize(const Kernels* k, DType type, const float* x, uint32_t cols, uint8_t* out) {
  k->quantize(activation_for(type, false), x, cols, out);
}

PROBE(rms_norm)
void probe_rms_norm(const Kernels* k, const float* x, const float* weight, float eps, uint32_t n, float* y) {
  k->rms_norm(x, weight, eps, n, y);
}
PROBE(silu_mul) void probe_silu_mul(const Kernels* k, float* gate, const float* up, uint32_t n) {
  k->silu_mul(gate, up, n);
}
PROBE(sigmoid) void probe_sigmoid(const Kernels* k, float* x, uint32_t n) { k->sigmoid(x, n); }
PROBE(softmax) void probe_softmax(const Kernels* k, float* x, uint32_t n) { k->softmax(x, n); }
PROBE(axpy) void probe_axpy(const Kernels* k, float a, const float* x, uint32_t n, float* y) { k->axpy(a, x, n, y); }
PROBE(twelve_bits) void probe_twelve_bits(const Kernels* k, float* x, uint32_t n) { k->twelve_bits(x, n); }
PROBE(attention) void probe_attention(const Kernels* k, const AttentionArgs* args) { k->attention(*args); }

PROBE(exp_float) void probe_exp_float(float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) x[i] = exp_float(x[i]);
}
PROBE(exp) double probe_exp(double x) { return exp_double(x); }
PROBE(log) double probe_log(double x) { return log_double(x); }
PROBE(sin) double probe_sin(double x) { return sin_cos_double(x).sin; }
PROBE(cos) double probe_cos(double x) { return sin_cos_double(x).cos; }

// The machine's limits as WebAssembly sees them. Reads `bytes` (a multiple of 128) once.
PROBE(read) uint32_t probe_read(const uint8_t* p, uint32_t bytes) {
  v128_t a[8] = {};
  for (uint32_t i = 0; i < bytes; i += 128)
    for (uint32_t j = 0; j < 8; j++) a[j] = wasm_v128_xor(a[j], wasm_v128_load(p + i + 16 * j));
  for (uint32_t j = 1; j < 8; j++) a[0] = wasm_v128_xor(a[0], a[j]);
  return uint32_t(wasm_i32x4_extract_lane(a[0], 0) ^ wasm_i32x4_extract_lane(a[0], 2));
}

// Integer dots as the kernels do them, from L1: each of `vectors` (a multiple of 4) at p against two weights, `turns`
// times over. Returns the multiply-adds of one vector.
PROBE(dot) uint32_t probe_dot(uint8_t* p, uint32_t vectors, uint32_t turns) {
  v128_t sum[4][2] = {};
  const v128_t w[2] = {wasm_i8x16_splat(3), wasm_i8x16_splat(5)};
  for (uint32_t t = 0; t < turns; t++)
    for (uint32_t i = 0; i < vectors; i += 4)
      for (uint32_t j = 0; j < 4; j++) {
        const v128_t x = wasm_v128_load(p + 16 * (i + j));
        for (uint32_t k = 0; k < 2; k++) {
#ifdef PERIGEE_RELAXED
          sum[j][k] = wasm_i16x8_add(sum[j][k], wasm_i16x8_relaxed_dot_i8x16_i7x16(x, w[k]));
#else
          sum[j][k] = wasm_i32x4_add(sum[j][k], wasm_i32x4_dot_i16x8(x, w[k]));
#endif
        }
      }
  for (uint32_t j = 0; j < 4; j++)
    for (uint32_t k = 0; k < 2; k++) wasm_v128_store(p, wasm_v128_xor(wasm_v128_load(p), sum[j][k]));
#ifdef PERIGEE_RELAXED
  return 2 * 16;
#else
  return 2 * 8;
#endif
}
#endif
