// The kernel table: every arithmetic loop of the engine, one implementation per instruction set.
//
// kernels/scalar.cc is the specification. Every other table must give the same bits:
//   1. Integer dots over one block (32 elements) or superblock (256) are exact.
//   2. Block b of a row contributes one float term, added to lane b mod 4 in ascending b:
//        32-blocks   term = (d * xd) * float(isum)                       (Q4_0 Q5_0 Q8_0 IQ4_NL)
//                    term = xd * (d * float(isum) + m * float(xsum))     (Q4_1 Q5_1; xsum = sum of the activation's q)
//        superblocks term = xd * (d * float(isum))                       (Q3_K Q6_K IQ4_XS)
//                    term = xd * (d * float(isum) - dmin * float(msum))  (Q2_K Q4_K Q5_K)
//      d, m, dmin: the block's halfs as float; xd: the activation block's scale. Result: (l0 + l2) + (l1 + l3).
//   3. Float dots and sums use 16 lanes: element i goes to lane i mod 16 in ascending i, product rounded before the add;
//      then lanes fold l with l+8, l with l+4, l with l+2, l with l+1.
//   4. Elementwise results (norm scale, silu, exp) apply the same operations in the same order to every element.
//   5. No fused multiply-add (-ffp-contract=off) but where products are exact, which makes no difference: attention of values
//      of 12 bits. No libm: exp, log, sin, cos are ours (math.h).
// A lane that gets nothing stays +0.0, so tails may be skipped or padded with zero terms alike.
#pragma once
#include "../tensor.h"

namespace perigee {

struct MatmulArgs {
  const uint8_t* w;       // [rows][row_bytes(type, cols)]
  const uint8_t* x;       // activation rows, x_stride bytes apart
  const int32_t* x_rows;  // [n] which activation row each result row takes, or null for 0..n-1
  float* y;               // [n][y_stride] floats; y[i * y_stride + r] = dot(w row r, x row x_rows[i])
  size_t x_stride;
  size_t y_stride;  // in floats
  uint32_t rows, cols, n;
};

// Attention of some query rows over one sequence's latent pages (absorbed MLA: one key-value head for all).
struct AttentionArgs {
  const float* q;             // [rows][key_dim]: absorbed query (value_dim) then its rope part
  const float* const* pages;  // page p holds positions p*page_tokens .. : [page_tokens][key_dim]
  const int32_t* lengths;     // [rows] how many positions (from 0) each query row sees, >= 1
  float* out;                 // [rows][value_dim]
  float* scores;              // scratch, [rows][score_stride]
  size_t score_stride;        // in floats, >= the largest length
  float scale;
  uint32_t rows, key_dim, value_dim, page_tokens;
  uint32_t exact;  // 1: any floats; 0: q and the pages hold values of 12 bits (math.h), as the probabilities shall
};

using MatmulFn = void (*)(const MatmulArgs&);

struct Kernels {
  const char* name;  // "scalar", "simd128", "relaxed", "avx2", "avx512", "amx", "neon"

  // [weight type][0: quantized activations, 1: float activations]; null where the type does not exist.
  MatmulFn matmul[kDTypeCount][2];

  // One weight row to floats: y[cols]. Exact: the value each format defines, product by product as in quant/dequantize.h.
  void (*dequantize)(DType type, const uint8_t* w, uint32_t cols, float* y);

  // One float row to an activation row. Q8_K: signed value of the largest magnitude maps to -127 (iscale = -127 / max,
  // round to nearest even, d = 1 / iscale); Q8_0: d = amax / 127 rounded to half, q = round(x / unrounded d).
  void (*quantize)(Activation kind, const float* x, uint32_t cols, uint8_t* out);

  // y = x / sqrt(mean(x^2) + eps) * weight, all [n].
  void (*rms_norm)(const float* x, const float* weight, float eps, uint32_t n, float* y);

  // gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
  void (*silu_mul)(float* gate, const float* up, uint32_t n);

  // x[i] = 1 / (1 + exp(-x[i]))
  void (*sigmoid)(float* x, uint32_t n);

  // x = exp(x - max(x)) / sum, all [n].
  void (*softmax)(float* x, uint32_t n);

  // y[i] += a * x[i], product rounded first
  void (*axpy)(float a, const float* x, uint32_t n, float* y);

  // x[i] = twelve_bits(x[i])
  void (*twelve_bits)(float* x, uint32_t n);

  // Softmax(scale * q . k) v per row, with k the page rows and v their first value_dim entries. Per row: score j is a 16-lane
  // dot, then * scale; softmax as above over [0, length), then twelve_bits unless exact; out[c] = sum over j ascending of
  // p_j * v_j[c], from +0.0.
  void (*attention)(const AttentionArgs&);
};

extern const Kernels kScalarKernels;
#ifdef __wasm__
extern const Kernels kSimd128Kernels;
extern const Kernels kRelaxedKernels;  // linked in the relaxed build only
#elif defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;  // needs VNNI
extern const Kernels kAmxKernels;     // needs AMX-INT8 and what kAvx512Kernels needs
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

// The tables of this build, fastest first; select.cc. Whether this CPU runs one is for the door to say.
int kernel_count();
const Kernels& kernels_at(int index);

// The table called `name`, or the first for null; null when this build has none of that name.
const Kernels* kernels_named(const char* name);

}  // namespace perigee
