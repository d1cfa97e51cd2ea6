// Weight blocks as bf16 and as float rows: equal to the engine's own reading, and at what share of a copy's speed.
#include "../../engine/quant/dequantize.h"
#include "../../native/cuda/matrix.h"
#include "blocks.h"
#include "harness.cuh"

using namespace perigee;
using namespace perigee::cuda;

namespace {

constexpr double kGigabytes = 4300;  // a copy on an H200

void check_widen(const check::Format& format, uint32_t rows, uint32_t cols) {
  const std::vector<uint8_t> raw = check::random_blocks(format, rows, cols);
  const size_t bytes = row_bytes(format.type, cols);
  std::vector<double> expected(uint64_t(rows) * cols);
  std::vector<float> row(cols);
  for (uint32_t r = 0; r < rows; r++) {
    dequantize_row(format.type, &raw[r * bytes], cols, row.data());
    std::copy(row.begin(), row.end(), expected.begin() + uint64_t(r) * cols);
  }
  uint8_t* from = check::upload(raw);
  bf16* to = check::device<bf16>(expected.size());
  MUST(widen(0, format.type, from, rows, cols, to));
  std::vector<float> got;
  for (const bf16 value : check::download(to, expected.size())) got.push_back(__bfloat162float(value));
  const double wide_error = check::nmse(got, expected);

  const std::vector<int32_t> tokens = {int32_t(rows - 1), 0, int32_t(rows / 2)};
  int32_t* token_list = check::upload(tokens);
  float* x = check::device<float>(tokens.size() * cols);
  MUST(look_up(0, format.type, from, cols, token_list, tokens.size(), x));
  std::vector<double> wanted;
  for (const int32_t t : tokens)
    wanted.insert(wanted.end(), expected.begin() + uint64_t(t) * cols, expected.begin() + uint64_t(t + 1) * cols);
  const double look_up_error = check::nmse(check::download(x, wanted.size()), wanted);
  char line[120];
  snprintf(line, sizeof line, "widen %s %u x %u: nmse %.1e; look_up %.1e", format.name, rows, cols, wide_error,
           look_up_error);
  check::expect(wide_error < 4e-6 && look_up_error < 1e-13, line);
  MUST(cudaFree(from));
  MUST(cudaFree(to));
  MUST(cudaFree(token_list));
  MUST(cudaFree(x));
}

void time_widen() {
  printf("\nwiden 2048 x 7168\n%-8s %8s %8s %8s\n", "type", "us", "GB/s", "% copy");
  constexpr uint32_t kRows = 2048, kCols = 7168, kCopies = 10;
  bf16* to = check::device<bf16>(uint64_t(kRows) * kCols * kCopies);
  for (const check::Format& format : check::kFormats) {
    const uint64_t bytes = kRows * row_bytes(format.type, kCols);
    uint8_t* raw = check::device<uint8_t>(bytes * kCopies);
    MUST(cudaMemset(raw, 0x21, bytes * kCopies));
    const double us = check::microseconds(kCopies, [&](cudaStream_t stream, int i) {
      MUST(widen(stream, format.type, raw + i * bytes, kRows, kCols, to + uint64_t(i) * kRows * kCols));
    });
    const double rate = (bytes + 2.0 * kRows * kCols) / us * 1e-3;
    printf("%-8s %8.1f %8.0f %7.0f%%\n", format.name, us, rate, 100 * rate / kGigabytes);
    MUST(cudaFree(raw));
  }
  MUST(cudaFree(to));
}

}  // namespace

// `small`: without times, for sanitizers.
int main(int argc, char** argv) {
  for (const check::Format& format : check::kFormats) {
    check_widen(format, 37, 256);
    check_widen(format, 64, 1024);
  }
  if (argc < 2 || strcmp(argv[1], "small") != 0) time_widen();
  return check::done();
}
