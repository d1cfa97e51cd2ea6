// The generic table with products of quantized weights in the table's own vectors: few activation rows by wide_gemv, more
// by panels.

template <typename Format, uint32_t kN = 1>
void wide_matmul(const MatmulArgs& a) {
  if constexpr (kN <= kDecodeRows<Format>) {
    if (a.n == kN) wide_gemv<Format, kN>(a);
    else wide_matmul<Format, kN + 1>(a);
  } else {
    wide_panels<Format>(a);
  }
}

constexpr Kernels make_wide_table(const char* name) {
  Kernels k = make_table(name);
  const auto set = [&k](DType type, MatmulFn quantized) { k.matmul[uint32_t(type)][0] = quantized; };
  using enum DType;
  set(Q4_0, wide_matmul<WideQ4_0>);
  set(Q4_1, wide_matmul<WideQ4_1>);
  set(Q5_0, wide_matmul<WideQ5_0>);
  set(Q5_1, wide_matmul<WideQ5_1>);
  set(Q8_0, wide_matmul<WideQ8_0>);
  set(IQ4_NL, wide_matmul<WideIQ4_NL>);
  set(Q2_K, wide_matmul<WideQ2_K>);
  set(Q3_K, wide_matmul<WideQ3_K>);
  set(Q4_K, wide_matmul<WideQ4_K>);
  set(Q5_K, wide_matmul<WideQ5_K>);
  set(Q6_K, wide_matmul<WideQ6_K>);
  set(IQ4_XS, wide_matmul<WideIQ4_XS>);
  return k;
}
