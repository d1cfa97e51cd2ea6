// Products of few rows: every weight type against doubles, then bytes per second with a cold cache.
#include "few.cuh"

#include <map>

#include "../../native/cuda/few.h"

using namespace check;

static void check_multiply(const Named& type, uint32_t rows, uint32_t cols, uint32_t n) {
  const Weights w[2] = {random_weights(type.type, rows, cols), random_weights(type.type, 90, cols)};
  const Matrix m[2] = {packed(type.type, rows, cols, {w[0]}), packed(type.type, 90, cols, {w[1]})};
  const HostRows x = random_rows(n, cols);
  const uint32_t stride = rows + 96, second = rows + 3;  // three columns between the outputs and three behind
  std::vector<float> before(size_t(n) * stride);
  for (auto& v : before) v = normal();
  float* y = upload(before);
  const Output outputs[2] = {{&m[0], y, stride, false}, {&m[1], y + second, stride, true}};
  MUST(multiply_few(nullptr, x.rows, n, outputs, 2));
  const std::vector<float> got = download(y, before.size());
  std::vector<double> want(before.begin(), before.end());
  for (uint32_t t = 0; t < n; t++) {
    for (uint32_t o = 0; o < 2; o++) {
      for (uint32_t r = 0; r < m[o].rows; r++) {
        const float* row = &w[o].value[size_t(r) * cols];
        const double value = is_quantized(type.type) ? dot(row, &x.quantized[size_t(t) * cols], cols)
                                                     : dot(row, &x.f32[size_t(t) * cols], cols);
        double& at = want[size_t(t) * stride + o * second + r];
        at = o ? at + value : value;
      }
    }
  }
  const double error = nmse(got, want);
  char line[128];
  snprintf(line, sizeof line, "multiply %-6s %5u x %5u n %2u nmse %.1e", type.name, rows, cols, n, error);
  expect(error < 1e-10, line);
}

static void check_unpack(const Named& type, uint32_t rows, uint32_t cols) {
  const Weights w = random_weights(type.type, rows, cols);
  const Matrix m = packed(type.type, rows, cols, {w});
  bf16* wide = device<bf16>(w.value.size());
  MUST(unpack(nullptr, m, 0, wide));
  const std::vector<bf16> bits = download(wide, w.value.size());
  size_t wrong = 0;
  for (size_t i = 0; i < bits.size(); i++) {
    const float got = __bfloat162float(bits[i]);
    wrong += !(fabsf(got - w.value[i]) <= fabsf(w.value[i]) * 0x1p-8f + 1e-5f);
  }
  char line[128];
  snprintf(line, sizeof line, "unpack %-6s %u x %u: %zu wrong", type.name, rows, cols, wrong);
  expect(wrong == 0, line);
}

static double silu(double x) { return x / (1 + exp(-x)); }

// gate and up of one row of x, as doubles.
static std::vector<double> mid_of(const Weights& gate, const Weights& up, const double* x, uint32_t width,
                                  uint32_t cols) {
  std::vector<double> mid;
  for (uint32_t r = 0; r < width; r++)
    mid.push_back(silu(dot(&gate.value[size_t(r) * cols], x, cols)) * dot(&up.value[size_t(r) * cols], x, cols));
  return mid;
}

static void check_gate_up(const Named& type, uint32_t width, uint32_t cols, uint32_t n) {
  const Weights gate = random_weights(type.type, width, cols), up = random_weights(type.type, width, cols);
  const Matrix g = packed(type.type, width, cols, {gate}), u = packed(type.type, width, cols, {up});
  const HostRows x = random_rows(n, cols);
  const Rows mid = empty_rows(n, width);
  MUST(gate_up_few(nullptr, x.rows, n, g, u, mid));
  std::vector<double> want;
  const std::vector<double> f32(x.f32.begin(), x.f32.end());
  for (uint32_t t = 0; t < n; t++) {
    const auto row =
        mid_of(gate, up, (is_quantized(type.type) ? x.quantized : f32).data() + size_t(t) * cols, width, cols);
    want.insert(want.end(), row.begin(), row.end());
  }
  const double error = nmse(download(mid.f32, want.size()), want);
  char line[128];
  snprintf(line, sizeof line, "gate_up %-6s %5u x %5u n %2u nmse %.1e", type.name, width, cols, n, error);
  expect(error < 1e-10 && well_quantized(mid, n), line);
}

static void check_route(const Named& type, uint32_t width, uint32_t hidden, uint32_t n) {
  constexpr uint32_t kExperts = 12, kSlots = 9, kUsed = 4;
  std::vector<Weights> gate, up, down;
  for (uint32_t s = 0; s < kSlots; s++) {
    gate.push_back(random_weights(type.type, width, hidden));
    up.push_back(random_weights(type.type, width, hidden));
    down.push_back(random_weights(type.type, hidden, width));
  }
  const Matrix g = packed(type.type, width, hidden, gate), u = packed(type.type, width, hidden, up),
               d = packed(type.type, hidden, width, down);
  std::vector<int32_t> slot_of = {3, -1, 0, 8, 1, -1, 2, 4, 5, -1, 6, 7}, chosen;
  std::vector<float> weight;
  for (uint32_t t = 0; t < n; t++) {
    std::vector<int32_t> all(kExperts);
    for (uint32_t e = 0; e < kExperts; e++) all[e] = e;
    std::shuffle(all.begin(), all.end(), generator);
    for (uint32_t k = 0; k < kUsed; k++) {
      chosen.push_back(t == 2 ? (k == 1 ? -1 : 1) : all[k]);  // token 2 meets nothing that is here
      weight.push_back(normal());
    }
  }
  const HostRows x = random_rows(n, hidden);
  RoutedFew args = {&g,
                    &u,
                    &d,
                    upload(slot_of),
                    upload(chosen),
                    upload(weight),
                    kUsed,
                    kExperts,
                    empty_rows(n * kUsed, width),
                    device<float>(size_t(n) * hidden)};
  MUST(cudaMemset(args.sum, 0xff, size_t(n) * hidden * 4));
  MUST(cudaMemset(args.mid.scale, 0xff, size_t(n) * kUsed * padded_cols(width) / 8));  // NaN where nothing is written
  MUST(cudaMemset(args.mid.sum, 0xff, size_t(n) * kUsed * padded_cols(width) / 4));
  MUST(cudaMemset(args.mid.f32, 0xff, size_t(n) * kUsed * width * 4));
  MUST(cudaDeviceSynchronize());
  MUST(route_few(nullptr, x.rows, n, args));
  const std::vector<double> mids = seen(args.mid, n * kUsed, is_quantized(type.type));
  const std::vector<float> mid_floats = download(args.mid.f32, size_t(n) * kUsed * width);
  const std::vector<double> f32(x.f32.begin(), x.f32.end());
  std::vector<double> want(size_t(n) * hidden), want_mid;
  std::vector<float> got_mid;
  for (uint32_t t = 0; t < n; t++) {
    for (uint32_t k = 0; k < kUsed; k++) {
      const uint32_t pair = t * kUsed + k;
      const int32_t slot = chosen[pair] < 0 ? -1 : slot_of[chosen[pair]];
      if (slot < 0) continue;
      const auto mid = mid_of(gate[slot], up[slot],
                              (is_quantized(type.type) ? x.quantized : f32).data() + size_t(t) * hidden, width, hidden);
      want_mid.insert(want_mid.end(), mid.begin(), mid.end());
      got_mid.insert(got_mid.end(), &mid_floats[size_t(pair) * width], &mid_floats[size_t(pair) * width] + width);
      for (uint32_t r = 0; r < hidden; r++)
        want[size_t(t) * hidden + r] +=
            weight[pair] * dot(&down[slot].value[size_t(r) * width], &mids[size_t(pair) * width], width);
    }
  }
  const double error = nmse(download(args.sum, want.size()), want),
               mid_error = want_mid.empty() ? 0 : nmse(got_mid, want_mid);
  char line[128];
  snprintf(line, sizeof line, "route %-6s %5u x %5u n %2u nmse mid %.1e sum %.1e", type.name, width, hidden, n,
           mid_error, error);
  expect(error < 1e-10 && mid_error < 1e-10, line);
}

// Rows of floats as few_heads.cu sees them: quantized per 32 for quantized weights, which is checked only to bf16's precision.
static std::vector<double> quantized_like(const float* x, uint32_t cols, bool quantized) {
  std::vector<double> values(x, x + cols);
  if (!quantized) return values;
  for (uint32_t c = 0; c < cols; c += 32) {
    float peak = 0;
    for (uint32_t i = c; i < c + 32; i++) peak = std::max(peak, fabsf(x[i]));
    const float scale = peak / 127;
    for (uint32_t i = c; i < c + 32; i++) values[i] = double(rintf(x[i] / scale)) * scale;
  }
  return values;
}

static void check_heads(const Named& type, uint32_t heads, uint32_t nope, uint32_t rope, uint32_t kv_rank,
                        uint32_t value, uint32_t n) {
  std::vector<Weights> k, v;
  const bool wide_only = block_shape(type.type).elements == 256;
  if (wide_only) nope = (nope + 255) / 256 * 256;
  for (uint32_t h = 0; h < heads; h++) {
    k.push_back(random_weights(type.type, kv_rank, nope));
    v.push_back(random_weights(type.type, value, kv_rank));
  }
  const Matrix k_b = packed(type.type, kv_rank, nope, k), v_b = packed(type.type, value, kv_rank, v);
  const uint32_t query = nope + rope, width = kv_rank + rope, context = 50;
  std::vector<float> q(size_t(n) * heads * query), latent(size_t(n) * heads * kv_rank), angles(context * rope);
  for (auto* all : {&q, &latent})
    for (auto& x : *all) x = normal();
  for (uint32_t i = 0; i < context * rope / 2; i++) angles[2 * i] = cosf(i), angles[2 * i + 1] = sinf(i);
  std::vector<int32_t> positions(n);
  for (auto& p : positions) p = generator() % context;
  const AbsorbFew args = {
      &k_b, upload(q), upload(angles), upload(positions), nope, rope, device<bf16>(size_t(n) * heads * width)};
  MUST(absorb_few(nullptr, n, args));
  const Rows values = empty_rows(n, heads * value);
  MUST(expand_few(nullptr, n, v_b, upload(latent), values));
  std::vector<float> absorbed;
  for (const bf16 x : download(args.absorbed, size_t(n) * heads * width)) absorbed.push_back(__bfloat162float(x));
  std::vector<double> want, want_values;
  for (uint32_t t = 0; t < n; t++) {
    for (uint32_t h = 0; h < heads; h++) {
      const float* row = &q[(size_t(t) * heads + h) * query];
      const auto x = quantized_like(row, nope, is_quantized(type.type));
      for (uint32_t r = 0; r < kv_rank; r++) want.push_back(dot(&k[h].value[size_t(r) * nope], x.data(), nope));
      for (uint32_t i = 0; i < rope / 2; i++) {
        const float* turn = &angles[(positions[t] * rope / 2 + i) * 2];
        const double a = row[nope + 2 * i], b = row[nope + 2 * i + 1];
        want.push_back(a * turn[0] - b * turn[1]);
        want.push_back(a * turn[1] + b * turn[0]);
      }
      const auto y = quantized_like(&latent[(size_t(t) * heads + h) * kv_rank], kv_rank, is_quantized(type.type));
      for (uint32_t r = 0; r < value; r++)
        want_values.push_back(dot(&v[h].value[size_t(r) * kv_rank], y.data(), kv_rank));
    }
  }
  const double error = nmse(absorbed, want), value_error = nmse(download(values.f32, want_values.size()), want_values);
  char line[128];
  snprintf(line, sizeof line, "heads %-6s %u x %u/%u n %2u nmse absorb %.1e expand %.1e", type.name, heads, nope,
           kv_rank, n, error, value_error);
  expect(error < 1e-5 && value_error < 1e-7 && well_quantized(values, n), line);
}

// Weights that need only be random: packed bytes with scales of all types near one.
static Matrix filler(DType type, uint32_t rows, uint32_t cols, uint32_t count) {
  const Weights some = random_weights(type, 64, cols);
  const uint64_t stride = packed_bytes(type, rows, cols), piece = packed_bytes(type, 64, cols);
  const Matrix m = {type, rows, cols, count, stride, device<uint8_t>(stride * count)};
  uint8_t* raw = upload(some.raw);
  const Matrix small = {type, 64, cols, 1, piece, device<uint8_t>(piece)};
  MUST(pack(nullptr, small, 0, raw));
  const uint64_t exact = uint64_t(64) * stride / rows;
  for (uint64_t at = 0; at < stride * count; at += std::min(exact, piece))
    MUST(cudaMemcpyAsync(m.packed + at, small.packed, std::min({exact, piece, stride * count - at}),
                         cudaMemcpyDeviceToDevice));
  MUST(cudaDeviceSynchronize());
  MUST(cudaFree(small.packed));
  MUST(cudaFree(raw));
  return m;
}

static void print_time(uint32_t n, double us, uint64_t bytes, double peak) {
  printf(" | n%u %6.2f us %4.0f GB/s %3.0f%%", n, us, bytes / us / 1e3, 100 * bytes / us / 1e3 / peak);
}

static void time_multiply(double peak) {
  constexpr uint32_t kShapes[][2] = {{2112, 7168}, {12288, 1536}, {7168, 8192},  {4096, 7168},  {7168, 2048},
                                     {16384, 512}, {36864, 7168}, {7168, 18432}, {163840, 7168}};
  for (const Named& type : {kTypes[0], kTypes[2], kTypes[3]}) {
    std::map<uint32_t, double> worst;  // by n: share of the peak
    for (const auto& shape : kShapes) {
      const uint32_t rows = shape[0], cols = shape[1];
      const uint64_t bytes = uint64_t(rows) * row_bytes(type.type, cols);
      const uint32_t copies = std::max<uint64_t>(2, (400u << 20) / bytes);
      const Matrix all = filler(type.type, rows, cols, copies);
      const HostRows x = random_rows(16, cols);
      float* y = device<float>(size_t(16) * rows);
      printf("%s %6u x %5u", type.name, rows, cols);
      for (const uint32_t n : {1, 2, 4, 8, 16}) {
        const double us = microseconds(
            std::clamp<uint64_t>((2000u << 20) / bytes, 4, 60),
            [&](cudaStream_t stream, int i) {
              Matrix one = all;
              one.packed += i % copies * all.stride;
              const Output out = {&one, y, rows, false};
              MUST(multiply_few(stream, x.rows, n, &out, 1));
            },
            5);
        print_time(n, us, bytes, peak);
        const double share = 100 * bytes / us / 1e3 / peak;
        worst[n] = worst.count(n) ? std::min(worst[n], share) : share;
      }
      printf("\n");
      fflush(stdout);
      MUST(cudaFree(all.packed));
      MUST(cudaFree(y));
    }
    for (const auto [n, asked] : {std::pair{1u, 80.0}, std::pair{8u, 70.0}})
      figure("GEMV " + std::string(type.name) + " of " + std::to_string(n) +
                 " rows, worst shape's share of memory's speed",
             worst[n], "%", Asked::AtLeast, asked);
  }
}

// Shared expert, routed experts and the heads' products at Kimi K2's sizes.
static void time_others(double peak) {
  constexpr uint32_t kHidden = 7168, kWidth = 2048, kSlots = 96, kUsed = 8;
  for (const Named& type : {kTypes[0], kTypes[2], kTypes[3]}) {
    const Matrix gate = filler(type.type, kWidth, kHidden, kSlots), up = filler(type.type, kWidth, kHidden, kSlots),
                 down = filler(type.type, kHidden, kWidth, kSlots);
    const HostRows x = random_rows(16, kHidden);
    const Rows mid = empty_rows(16 * kUsed, kWidth);
    printf("%s gate_up 2 x %u x %u", type.name, kWidth, kHidden);
    for (const uint32_t n : {1, 8, 16}) {
      const double us = microseconds(
          48,
          [&](cudaStream_t stream, int i) {
            Matrix g = gate, u = up;
            g.packed += i % kSlots * g.stride, u.packed += i % kSlots * u.stride;
            MUST(gate_up_few(stream, x.rows, n, g, u, mid));
          },
          5);
      print_time(n, us, 2 * gate.stride, peak);
    }
    printf("\n%s route 8 experts a token", type.name);
    std::vector<int32_t> slot_of(kSlots);
    for (uint32_t i = 0; i < kSlots; i++) slot_of[i] = i;
    for (const uint32_t n : {1, 4, 8, 16}) {
      std::vector<int32_t> chosen;
      for (uint32_t i = 0; i < 12 * n * kUsed; i++) chosen.push_back(i % kSlots);  // 96 slots are enough for 12 tokens
      const int32_t* all = upload(chosen);
      RoutedFew args = {
          &gate, &up,    &down, upload(slot_of),           nullptr, upload(std::vector<float>(n * kUsed, 1.0f)),
          kUsed, kSlots, mid,   device<float>(n * kHidden)};
      const uint64_t distinct = std::min(n * kUsed, kSlots);
      const double us = microseconds(
          12,
          [&](cudaStream_t stream, int i) {
            args.chosen = all + i * n * kUsed;
            MUST(route_few(stream, x.rows, n, args));
          },
          5);
      print_time(n, us, distinct * (2 * gate.stride + down.stride), peak);
    }
    printf("\n");
    fflush(stdout);
    for (const Matrix* m : {&gate, &up, &down}) MUST(cudaFree(m->packed));
  }
  for (const Named& type : {kTypes[3], kTypes[5], kTypes[14]}) {
    const Matrix k_b = filler(type.type, 512, 128, 64 * 60), v_b = filler(type.type, 128, 512, 64 * 60);
    const Rows values = empty_rows(16, 8192);
    float *q = device<float>(16 * 64 * 192), *latent = device<float>(16 * 64 * 512), *rope = device<float>(64 * 64);
    fill_normal(q, 16 * 64 * 192, 1, 1);
    fill_normal(latent, 16 * 64 * 512, 1, 2);
    fill_normal(rope, 64 * 64, 1, 2);
    const int32_t* positions = upload(std::vector<int32_t>(16, 5));
    bf16* absorbed = device<bf16>(16 * 64 * 576);
    printf("%s absorb, expand 64 heads", type.name);
    for (const uint32_t n : {1, 8, 16}) {
      const double first = microseconds(
          60,
          [&](cudaStream_t stream, int i) {
            Matrix m = k_b;
            m.count = 64, m.packed += i * 64 * m.stride;
            MUST(absorb_few(stream, n, {&m, q, rope, positions, 128, 64, absorbed}));
          },
          5);
      print_time(n, first, 64 * 512 * row_bytes(type.type, 128), peak);
      const double second = microseconds(
          60,
          [&](cudaStream_t stream, int i) {
            Matrix m = v_b;
            m.count = 64, m.packed += i * 64 * m.stride;
            MUST(expand_few(stream, n, m, latent, values));
          },
          5);
      print_time(n, second, 64 * 128 * row_bytes(type.type, 512), peak);
    }
    printf("\n");
    fflush(stdout);
    MUST(cudaFree(k_b.packed));
    MUST(cudaFree(v_b.packed));
  }
}

static void check_all() {
  for (const Named& type : kTypes) {
    check_unpack(type, 90, 768);
    if (block_shape(type.type).elements != 256) check_unpack(type, 33, 96);
  }
  for (const Named& type : kTypes) {
    const uint32_t step = block_shape(type.type).elements == 256 ? 256 : 32;
    for (const uint32_t n : {1u, 3u, 8u, 11u, 16u}) check_multiply(type, 213, 1536, n);
    check_multiply(type, 17, step, 2);
    check_multiply(type, 2112, 7 * step, 5);
    for (const uint32_t n : {1u, 7u, 13u}) check_multiply(type, 1040, 7168, n);  // of Kimi K2's width
  }
  for (const Named& type : kTypes)
    for (const uint32_t n : {1u, 5u, 16u}) {
      check_gate_up(type, 352, 512, n);
      if (n == 5) check_gate_up(type, 128, 3584, n);
      check_route(type, 256, 512, n);
      check_heads(type, 3, 32, 32, 256, 32, n);
      check_heads(type, 2, 128, 64, 512, 128, n);
    }
  check_multiply(kTypes[0], 1040, 18432, 16);
  check_multiply(kTypes[2], 4240, 1536, 9);
}

// One type of each way of packing, for sanitizers.
static void check_small() {
  for (const uint32_t i : {0, 2, 3, 5, 6, 12, 14}) {
    const Named& type = kTypes[i];
    check_unpack(type, 40, 512);
    for (const uint32_t n : {1u, 8u, 11u}) check_multiply(type, 150, 512, n);
    check_multiply(type, 70, 7168, 16);  // of Kimi K2's width
    check_gate_up(type, 64, 512, 3);
    check_route(type, 256, 256, 3);
    check_heads(type, 2, 128, 64, 256, 64, 3);
  }
}

// `small`: for sanitizers.
int main(int argc, char** argv) {
  cudaDeviceProp device;
  MUST(cudaGetDeviceProperties(&device, 0));
  const double peak = strstr(device.name, "H200") ? 4300 : 3000;
  printf("%s\n", device.name);
  MUST(prepare_few());
  if (argc > 1 && strcmp(argv[1], "small") == 0) {
    check_small();
    return done();
  }
  check_all();
  time_multiply(peak);
  time_others(peak);
  return done();
}
