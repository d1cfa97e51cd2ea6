// Matrix products of many rows against doubles, then times beside the device's limits.
#include <string.h>

#include "../../native/cuda/gemm_kernels.h"
#include "harness.cuh"

using namespace perigee;
using namespace perigee::cuda;

namespace {

// What an H200 reaches: cuBLAS in bf16, and a copy.
constexpr double kTeraflops = 790, kGigabytes = 4300;

// y[i][n] in double for the listed rows: row_of_a[i] of a meets the matrix of group_of[i].
__global__ void reference(const bf16* a, const bf16* b, const uint64_t* a_at, const uint64_t* b_at, uint32_t n,
                          uint32_t k, uint32_t b_stride, double* y) {
  const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= n) return;
  const bf16 *x = a + a_at[blockIdx.y], *w = b + b_at[blockIdx.y] + uint64_t(column) * b_stride;
  double sum = 0;
  for (uint32_t i = 0; i < k; i++) sum += double(__bfloat162float(x[i])) * double(__bfloat162float(w[i]));
  y[uint64_t(blockIdx.y) * n + column] = sum;
}

struct Row {
  uint64_t a, b, y;  // elements from the beginnings
};

// Compares rows of a result with doubles; `old`: what the result was added to.
double error_of(const std::vector<Row>& rows, const bf16* a, const bf16* b, uint32_t n, uint32_t k, uint32_t b_stride,
                const float* y, const bf16* y_wide, float old) {
  std::vector<uint64_t> a_at, b_at;
  for (const Row& row : rows) a_at.push_back(row.a), b_at.push_back(row.b);
  double* sums = check::device<double>(rows.size() * n);
  const uint64_t *a_list = check::upload(a_at), *b_list = check::upload(b_at);
  reference<<<dim3((n + 127) / 128, rows.size()), 128>>>(a, b, a_list, b_list, n, k, b_stride, sums);
  MUST(cudaGetLastError());
  std::vector<double> expected = check::download(sums, rows.size() * n);
  for (double& value : expected) value += old;
  std::vector<float> got;
  for (const Row& row : rows) {
    if (y) {
      const std::vector<float> part = check::download(y + row.y, n);
      got.insert(got.end(), part.begin(), part.end());
    } else {
      for (const bf16 value : check::download(y_wide + row.y, n)) got.push_back(__bfloat162float(value));
    }
  }
  MUST(cudaFree(sums));
  MUST(cudaFree(const_cast<uint64_t*>(a_list)));
  MUST(cudaFree(const_cast<uint64_t*>(b_list)));
  return check::nmse(got, expected);
}

// Up to `most` of 0..count-1, with both ends.
std::vector<uint32_t> sample(uint32_t count, uint32_t most) {
  std::vector<uint32_t> rows;
  const uint32_t step = std::max(1u, count / most);
  for (uint32_t i = 0; i < count; i += step) rows.push_back(i);
  if (rows.back() != count - 1) rows.push_back(count - 1);
  return rows;
}

__global__ void fill(float* y, uint64_t count, float value) {
  for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < count; i += uint64_t(gridDim.x) * blockDim.x)
    y[i] = value;
}

// gemm, or one kernel of it: columns of Hopper's tiles, or rows of the portable ones.
struct Variant {
  uint32_t hopper_columns = 0, portable_rows = 0, hopper_parts = 0;
};
int processors;
bool hopper;

cudaError_t multiply_by(Variant variant, cudaStream_t stream, const Gemm& g) {
  if (variant.hopper_columns) return multiply_hopper(stream, product_of(g), variant.hopper_columns, processors);
  if (variant.portable_rows) return multiply_portable(stream, product_of(g), variant.portable_rows, processors);
  if (variant.hopper_parts) return multiply_hopper_split(stream, product_of(g), variant.hopper_parts);
  return gemm(stream, g);
}

void check_dense(uint32_t m, uint32_t n, uint32_t k, uint32_t batch, bool wide, bool add, uint32_t pad,
                 Variant variant = {}) {
  const uint32_t a_stride = k + pad * 8, b_stride = k + pad * 16, y_stride = n + pad * 2;
  // Heads lie side by side in a and y, as attention has them.
  Gemm g = {};
  bf16* a = check::device<bf16>(uint64_t(m) * batch * a_stride);
  bf16* b = check::device<bf16>(uint64_t(n) * batch * b_stride);
  const uint64_t y_count = uint64_t(m) * batch * y_stride, guard = 1024;
  float* y = check::device<float>(y_count + guard);
  check::fill_normal(a, uint64_t(m) * batch * a_stride, 1, 1);
  check::fill_normal(b, uint64_t(n) * batch * b_stride, 1, 2);
  fill<<<256, 256>>>(y, y_count + guard, 3);
  MUST(cudaGetLastError());
  g.a = a, g.b = b, g.m = m, g.n = n, g.k = k, g.batch = batch, g.add = add;
  g.a_stride = a_stride * batch, g.a_next = a_stride;
  g.b_stride = b_stride, g.b_next = uint64_t(n) * b_stride;
  g.y_stride = y_stride * batch, g.y_next = y_stride;
  if (wide) g.y_wide = reinterpret_cast<bf16*>(y);
  else g.y = y;
  MUST(multiply_by(variant, 0, g));
  MUST(cudaDeviceSynchronize());
  double worst = 0;
  for (uint32_t h = 0; h < batch; h++) {
    std::vector<Row> rows;
    for (const uint32_t r : sample(m, 48))
      rows.push_back({r * uint64_t(g.a_stride) + h * g.a_next, h * g.b_next, r * uint64_t(g.y_stride) + h * g.y_next});
    const double error = error_of(rows, a, b, n, k, b_stride, g.y, g.y_wide, add ? 3 : 0);
    worst = error <= worst ? worst : error;
  }
  bool untouched = true;  // behind the result, and between its rows
  const std::vector<float> all = check::download(y, y_count + guard);
  for (uint64_t i = wide ? (y_count + 1) / 2 : y_count; i < y_count + guard; i++) untouched &= all[i] == 3;
  if (!wide && pad)
    for (uint64_t i = 0; i < y_count; i++) untouched &= i % y_stride < n || all[i] == 3;
  char line[200];
  snprintf(line, sizeof line, "gemm%s %u x %u x %u, batch %u%s%s%s: nmse %.1e",
           variant.hopper_columns ? " (hopper)"
           : variant.hopper_parts ? " (split)"
                                  : "",
           m, n, k, batch, wide ? ", bf16" : "", add ? ", added" : "", pad ? ", padded rows" : "", worst);
  check::expect(worst < (wide ? 1e-5 : 1e-9) && untouched, line);
  MUST(cudaFree(a));
  MUST(cudaFree(b));
  MUST(cudaFree(y));
}

struct Routing {
  std::vector<int32_t> begin, row_of;
};

// `slots` choices over the groups: evenly at random, or with popularity falling as 1 / rank.
Routing route(uint32_t groups, uint32_t slots, uint32_t rows, bool zipf, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<double> weight(groups);
  for (uint32_t g = 0; g < groups; g++) weight[g] = zipf ? 1.0 / (g + 1) : 1;
  std::shuffle(weight.begin(), weight.end(), random);
  std::discrete_distribution<uint32_t> pick(weight.begin(), weight.end());
  std::vector<int32_t> count(groups);
  for (uint32_t i = 0; i < slots; i++) count[pick(random)]++;
  Routing routing;
  routing.begin.push_back(0);
  for (const int32_t c : count) routing.begin.push_back(routing.begin.back() + c);
  for (uint32_t i = 0; i < slots; i++) routing.row_of.push_back(random() % rows);
  return routing;
}

// gemm_grouped, or one kernel of it: rows of the portable tiles, or Hopper's.
constexpr uint32_t kOfHopper = 1000;
cudaError_t group_by(uint32_t variant, cudaStream_t stream, const GroupedGemm& g) {
  if (variant == kOfHopper) return multiply_hopper_grouped(stream, product_of(g), processors);
  if (variant) return multiply_portable(stream, product_of(g), variant, processors);
  return gemm_grouped(stream, g);
}

void check_grouped(uint32_t groups, uint32_t slots, uint32_t n, uint32_t k, bool zipf, bool gathered,
                   uint32_t variant = 0) {
  const uint32_t source_rows = gathered ? slots / 4 + 1 : slots;
  const Routing routing = route(groups, slots, source_rows, zipf, slots);
  bf16 *a = check::device<bf16>(uint64_t(source_rows) * k), *b = check::device<bf16>(uint64_t(groups) * n * k),
       *y = check::device<bf16>(uint64_t(slots) * n);
  check::fill_normal(a, uint64_t(source_rows) * k, 1, 3);
  check::fill_normal(b, uint64_t(groups) * n * k, 1, 4);
  MUST(cudaMemset(y, 0xff, uint64_t(slots) * n * sizeof(bf16)));
  int32_t *begin = check::upload(routing.begin), *row_of = check::upload(routing.row_of);
  const GroupedGemm g = {a, gathered ? row_of : nullptr, begin, groups, slots, k, n, b, uint64_t(n) * k, y};
  MUST(group_by(variant, 0, g));
  MUST(cudaDeviceSynchronize());
  std::vector<Row> rows;
  for (uint32_t group = 0; group < groups; group++) {
    const uint32_t first = routing.begin[group], last = routing.begin[group + 1];
    if (first == last) continue;
    for (const uint32_t i : sample(last - first, std::max(2u, 256 / groups))) {
      const uint64_t slot = first + i, row = gathered ? routing.row_of[slot] : slot;
      rows.push_back({row * k, uint64_t(group) * n * k, slot * n});
    }
  }
  const double error = error_of(rows, a, b, n, k, k, nullptr, y, 0);
  char line[200];
  snprintf(line, sizeof line, "grouped%s %u groups, %u slots, %u x %u%s%s: nmse %.1e", variant ? " (hopper)" : "",
           groups, slots, n, k, zipf ? ", zipf" : "", gathered ? ", gathered" : "", error);
  check::expect(error < 1e-5, line);
  for (void* at : {static_cast<void*>(a), static_cast<void*>(b), static_cast<void*>(y), static_cast<void*>(begin),
                   static_cast<void*>(row_of)})
    MUST(cudaFree(at));
}

// --- times of products ------------------------------------------------------------------------------------------------
void time_dense() {
  const uint32_t shapes[][2] = {{2112, 7168}, {12288, 1536}, {16384, 512},  {7168, 8192},
                                {4096, 7168}, {7168, 2048},  {36864, 7168}, {7168, 18432}};
  bf16 *a = check::device<bf16>(uint64_t(4096) * 18432), *b = check::device<bf16>(uint64_t(3) << 28);
  float* y = check::device<float>(uint64_t(4096) * 36864);
  check::fill_normal(a, uint64_t(4096) * 18432, 1, 5);
  check::fill_normal(b, uint64_t(3) << 28, 0.02f, 6);
  printf("\ngemm to float, cold weights\n%14s", "n x k");
  const uint32_t most[] = {32, 64, 128, 512, 4096};
  for (const uint32_t m : most) printf("%8s=%-5u%14s", "m", m, m < 512 ? "us    GB/s" : "us  TFLOP/s");
  printf("\n");
  double worst = 1e9;  // TFLOP/s of 4,096 rows
  for (const auto [n, k] : shapes) {
    printf("%6u x %5u", n, k);
    for (const uint32_t m : most) {
      const uint64_t size = uint64_t(n) * k;
      const uint32_t copies = std::min<uint64_t>(20, (uint64_t(3) << 28) / size);
      const double us = check::microseconds(
          std::max(copies, m > 1000 ? 2u : 5u),
          [&](cudaStream_t stream, int i) {
            Gemm g = {};
            g.a = a, g.b = b + i % copies * size, g.y = y, g.m = m, g.n = n, g.k = k;
            g.a_stride = g.b_stride = k, g.y_stride = n;
            MUST(gemm(stream, g));
          },
          5);
      const double teraflops = 2.0 * m * n * k / us * 1e-6, rate = 2.0 * size / us * 1e-3;
      printf("  %10.1f %7.0f %4.0f%%", us, m < 512 ? rate : teraflops,
             100 * (m < 512 ? rate / kGigabytes : teraflops / kTeraflops));
      fflush(stdout);
      if (m == 4096) worst = std::min(worst, teraflops);
    }
    printf("\n");
  }
  check::figure("GEMM of 4,096 rows, worst shape's share of 790 TFLOP/s", 100 * worst / kTeraflops, "%",
                check::Asked::AtLeast, 60);
  MUST(cudaFree(a));
  MUST(cudaFree(b));
  MUST(cudaFree(y));
}

// One kernel beside the other at sizes where either may win.
void time_variants(bool wide) {
  if (!hopper) return;
  const uint32_t shapes[][2] = {{2112, 7168}, {12288, 1536}, {16384, 512}, {7168, 8192}, {4096, 7168}, {7168, 2048}};
  bf16 *a = check::device<bf16>(uint64_t(4096) * 8192), *b = check::device<bf16>(uint64_t(1) << 29);
  float* y = check::device<float>(uint64_t(4096) * 16384);
  check::fill_normal(a, uint64_t(4096) * 8192, 1, 5);
  check::fill_normal(b, uint64_t(1) << 29, 0.02f, 6);
  printf("\nTFLOP/s by kernel, to %s\n%14s %6s %8s %8s %8s %8s %8s %8s %8s %8s %8s\n", wide ? "bf16" : "float", "n x k",
         "m", "mma 64", "mma 128", "wg 128", "wg 192", "wg 256", "k / 1", "k / 2", "k / 4", "k / 8");
  for (const auto [n, k] : shapes)
    for (const uint32_t m : {32u, 128u, 256u, 512u, 1024u, 4096u}) {
      printf("%6u x %5u %6u", n, k, m);
      const uint64_t size = uint64_t(n) * k;
      const uint32_t copies = (uint64_t(1) << 29) / size;
      for (const Variant variant : {Variant{0, 64}, Variant{0, 128}, Variant{128}, Variant{192}, Variant{256},
                                    Variant{0, 0, 2}, Variant{0, 0, 4}, Variant{0, 0, 8}}) {
        const double us = check::microseconds(
            4,
            [&](cudaStream_t stream, int i) {
              Gemm g = {};
              g.a = a, g.b = b + i % copies * size, g.y = y, g.m = m, g.n = n, g.k = k;
              g.a_stride = g.b_stride = k, g.y_stride = n;
              if (wide) g.y = nullptr, g.y_wide = reinterpret_cast<bf16*>(y);
              MUST(multiply_by(variant, stream, g));
            },
            5);
        printf(" %8.0f", 2.0 * m * n * k / us * 1e-6);
        fflush(stdout);
      }
      printf("\n");
    }
  MUST(cudaFree(a));
  MUST(cudaFree(b));
  MUST(cudaFree(y));
}

void time_grouped() {
  constexpr uint32_t kGroups = 384, kUsed = 8;
  const uint32_t shapes[][2] = {{4096, 7168}, {7168, 2048}};
  const uint32_t most_tokens = 16384;
  bf16 *a = check::device<bf16>(uint64_t(most_tokens) * kUsed * 2048),
       *b = check::device<bf16>(uint64_t(kGroups) * 4096 * 7168),
       *y = check::device<bf16>(uint64_t(most_tokens) * kUsed * 7168);
  check::fill_normal(a, uint64_t(most_tokens) * kUsed * 2048, 1, 7);
  check::fill_normal(b, uint64_t(kGroups) * 4096 * 7168, 0.02f, 8);
  printf("\ngrouped, 384 experts, 8 of each token; us\n%14s %8s %7s %8s %8s %8s %8s %8s %8s  %5s %11s\n", "n x k",
         "routing", "tokens", "chosen", "mma 16", "mma 32", "mma 64", "mma 128", "wgmma", "GB/s", "TFLOP/s");
  for (const auto [n, k] : shapes)
    for (const bool zipf : {false, true})
      for (const uint32_t tokens : {32u, 128u, 512u, 2048u, 4096u, 16384u}) {
        const Routing routing = route(kGroups, tokens * kUsed, tokens, zipf, tokens);
        int32_t *begin = check::upload(routing.begin), *row_of = check::upload(routing.row_of);
        double used = 0;
        for (uint32_t g = 0; g < kGroups; g++) used += routing.begin[g + 1] > routing.begin[g];
        const GroupedGemm g = {
            a, k == 7168 ? row_of : nullptr, begin, kGroups, tokens * kUsed, k, n, b, uint64_t(n) * k, y};
        printf("%6u x %5u %8s %7u", n, k, zipf ? "zipf" : "even", tokens);
        double chosen = 0;
        for (const uint32_t variant : {0u, 16u, 32u, 64u, 128u, kOfHopper}) {
          if (variant == kOfHopper && !hopper) continue;
          if (variant && variant < 64 && tokens > 512 * variant / 16) {
            printf(" %8s", "-");
            continue;
          }
          const double us = check::microseconds(
              1, [&](cudaStream_t stream, int) { MUST(group_by(variant, stream, g)); }, 3);
          if (!variant) chosen = us;
          printf(" %8.0f", us);
          fflush(stdout);
        }
        const double rate = 2.0 * used * n * k / chosen * 1e-3,
                     teraflops = 2.0 * tokens * kUsed * n * k / chosen * 1e-6;
        printf("  %5.0f %3.0f%% %5.0f %3.0f%%\n", rate, 100 * rate / kGigabytes, teraflops,
               100 * teraflops / kTeraflops);
        MUST(cudaFree(begin));
        MUST(cudaFree(row_of));
      }
  MUST(cudaFree(a));
  MUST(cudaFree(b));
  MUST(cudaFree(y));
}

// `small`: every kernel and every way through it in the least sizes, without times: for sanitizers.
void check_small() {
  for (const uint32_t m : {17u, 130u}) {
    check_dense(m, 256, 160, 1, false, false, 0);
    check_dense(m, 90, 32, 3, m == 17, m == 130, 1);
    for (const uint32_t rows : {16u, 32u, 64u, 128u}) check_dense(m, 90, 160, 2, false, false, 0, {0, rows});
  }
  if (hopper) {
    for (const uint32_t columns : {128u, 192u, 256u}) {
      check_dense(300, 700, 512, 1, false, true, 1, {columns});
      check_dense(130, 40000, 64, 1, true, false, 0, {columns});  // several tiles for each block
    }
    for (const uint32_t parts : {1u, 2u, 8u})
      for (const uint32_t m : {33u, 130u}) check_dense(m, 200, 544, 2, m == 33, false, 0, {0, 0, parts});
    check_grouped(16, 700, 512, 160, true, true, kOfHopper);
  }
  check_grouped(16, 200, 200, 160, true, true);
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = argc > 1 && strcmp(argv[1], "small") == 0;
  MUST(prepare_gemm(0));
  MUST(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  MUST(prepare_hopper(&hopper));
  if (small) {
    check_small();
    return check::done();
  }
  for (const uint32_t m : {1u, 17u, 33u, 64u, 100u, 129u, 300u}) {
    check_dense(m, 256, 256, 1, false, false, 0);
    check_dense(m, 4352, 96, 1, false, true, 1);
    check_dense(m, 90, 32, 3, false, false, 1);
    check_dense(m, 192, 224, 8, true, false, 1);
    check_dense(m, 33, 64, 2, m % 2 == 0, m % 2 == 1, 0);
  }
  for (const uint32_t columns : {128u, 192u, 256u}) {
    if (!hopper) break;
    for (const uint32_t m : {1u, 200u, 257u, 700u}) {
      check_dense(m, 256, 256, 1, false, false, 0, {columns});
      check_dense(m, 4352, 96, 1, false, true, 1, {columns});
      check_dense(m, 90, 32, 3, false, false, 1, {columns});
      check_dense(m, 192, 224, 8, true, false, 1, {columns});
      check_dense(m, 33, 64, 2, m % 2 == 0, m % 2 == 1, 0, {columns});
    }
    check_dense(1100, 5000, 224, 2, true, false, 0, {columns});  // several tiles for each block
  }
  for (const uint32_t parts : {1u, 2u, 5u, 8u}) {
    if (!hopper) break;
    for (const uint32_t m : {1u, 100u, 128u, 300u}) {
      check_dense(m, 256, 512, 1, false, false, 0, {0, 0, parts});
      check_dense(m, 4352, 608, 1, false, true, 1, {0, 0, parts});
      check_dense(m, 90, 544, 3, true, false, 1, {0, 0, parts});
    }
  }
  for (const bool zipf : {false, true})
    for (const bool gathered : {false, true}) {
      if (hopper) {
        check_grouped(16, 40, 512, 256, zipf, gathered, kOfHopper);
        check_grouped(64, 700, 96, 160, zipf, gathered, kOfHopper);
        check_grouped(512, 3000, 160, 96, zipf, gathered, kOfHopper);
        check_grouped(3, 1500, 256, 32, zipf, gathered, kOfHopper);
      }
      check_grouped(16, 40, 512, 256, zipf, gathered);
      check_grouped(64, 700, 96, 160, zipf, gathered);
      check_grouped(512, 3000, 160, 96, zipf, gathered);
      check_grouped(3, 1500, 256, 32, zipf, gathered);
    }
  for (const uint32_t m : {32u, 128u, 512u, 4096u}) {
    check_dense(m, 2112, 7168, 1, false, false, 0);
    check_dense(m, 12288, 1536, 1, false, true, 0);
    check_dense(m, 512, 128, 64, true, false, 0);
    check_dense(m, 4096, 7168, 1, true, false, 0);
  }
  check_grouped(384, 1024, 4096, 7168, true, true);
  check_grouped(384, 32768, 7168, 2048, false, false);
  if (hopper) check_grouped(384, 32768, 4096, 7168, true, true, kOfHopper);
  time_dense();
  time_variants(false);
  time_variants(true);
  time_grouped();
  return check::done();
}
