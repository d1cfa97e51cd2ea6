// The native kernel tables on a bare machine, without Node: whether each gives the scalar table's bits, and how fast the
// products of avx512 and amx are beside what the machine can do.
//
//   make build/native/kernel-check && build/native/kernel-check            everything; takes two minutes
//   build/native/kernel-check --check                                      bits only
//   build/native/kernel-check --threads 16                                 default: the CPUs this process may use
//
// build/native/kernel-check-emulated is the same with AMX's tiles emulated: bits only, on any machine with AVX-512 VNNI.
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "../../engine/kernels/amx_tile.h"
#include "../../engine/kernels/kernels.h"

using namespace perigee;

namespace {

struct Type {
  const char* name;
  DType type;
  int halfs[2];  // byte offsets of the block's half fields, or -1
};
constexpr Type kTypes[] = {
    {"Q4_K", DType::Q4_K, {0, 2}},      {"Q5_K", DType::Q5_K, {0, 2}},   {"Q6_K", DType::Q6_K, {208, -1}},
    {"Q8_0", DType::Q8_0, {0, -1}},     {"Q4_0", DType::Q4_0, {0, -1}},  {"Q5_0", DType::Q5_0, {0, -1}},
    {"Q4_1", DType::Q4_1, {0, 2}},      {"Q5_1", DType::Q5_1, {0, 2}},   {"IQ4_NL", DType::IQ4_NL, {0, -1}},
    {"IQ4_XS", DType::IQ4_XS, {0, -1}}, {"Q2_K", DType::Q2_K, {80, 82}}, {"Q3_K", DType::Q3_K, {108, -1}},
};

uint32_t random_state = 1;
uint32_t random_u32() {
  random_state = random_state * 1664525u + 1013904223u;
  const uint32_t mixed = (random_state ^ random_state >> 15) * 0x2c1b3c6du;
  return mixed ^ mixed >> 13;
}

// Arbitrary codes (or every byte `fill`), halfs of random sign between 2^-8 and 2^-6.
std::vector<uint8_t> random_weights(const Type& t, uint32_t rows, uint32_t cols, int fill = -1) {
  std::vector<uint8_t> w(rows * row_bytes(t.type, cols));
  for (uint8_t& byte : w) byte = uint8_t(fill < 0 ? random_u32() >> 24 : uint32_t(fill));
  for (size_t at = 0; at < w.size(); at += block_shape(t.type).bytes)
    for (int offset : t.halfs) {
      const uint32_t bits = random_u32();
      const uint16_t half = uint16_t((bits & 0x83ff) | (7 + (bits >> 16) % 2) << 10);
      if (offset >= 0) memcpy(&w[at + uint32_t(offset)], &half, 2);
    }
  return w;
}

// Aligned activation rows; extreme: every quant 127 or -127.
struct Activations {
  std::vector<uint8_t> storage;
  uint8_t* rows;
  size_t stride;

  Activations(const Type& t, uint32_t n, uint32_t cols, bool extreme) {
    const Activation kind = activation_for(t.type, false);
    stride = activation_row_bytes(kind, cols);
    storage.resize(n * stride + 64);
    rows = storage.data() + (64 - uintptr_t(storage.data()) % 64) % 64;
    std::vector<float> x(cols);
    for (uint32_t i = 0; i < n; i++) {
      for (float& v : x) v = extreme ? (i % 2 ? 1.0f : -1.0f) : float(int32_t(random_u32())) * 0x1p-31f;
      kScalarKernels.quantize(kind, x.data(), cols, rows + i * stride);
    }
  }
};

// --- the tables that this machine runs ----------------------------------------------------------------------------------

bool runs_avx512() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw"); }

#ifdef PERIGEE_EMULATED_TILES
bool runs_amx() { return runs_avx512(); }
#else
bool runs_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return runs_avx512() && __builtin_cpu_supports("amx-int8") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::vector<const Kernels*> running_tables() {
  std::vector<const Kernels*> tables;
  if (runs_avx512()) tables.push_back(&kAvx512Kernels);
  if (runs_amx()) tables.push_back(&kAmxKernels);
  return tables;
}

// --- bits ---------------------------------------------------------------------------------------------------------------

// One product by the table and by the scalar one; false, and a line where `tell`, if a bit differs.
bool same_bits(const Kernels& table, const Type& t, uint32_t rows, uint32_t cols, uint32_t n, int fill, bool extreme,
               bool tell) {
  std::vector<uint8_t> w = random_weights(t, rows, cols, fill);
  w.insert(w.begin(), 2, 0);  // weights need no alignment beyond a half's
  const Activations x(t, n, cols, extreme);
  std::vector<int32_t> order(n);
  for (uint32_t i = 0; i < n; i++) order[i] = int32_t(random_u32() % n);
  const size_t y_stride = rows + 3;
  std::vector<float> ours(n * y_stride, -1.0f), spec(n * y_stride, -1.0f);
  MatmulArgs a = {w.data() + 2, x.rows, n % 2 ? order.data() : nullptr, ours.data(), x.stride, y_stride, rows, cols, n};
  table.matmul[uint32_t(t.type)][0](a);
  a.y = spec.data();
  kScalarKernels.matmul[uint32_t(t.type)][0](a);
  for (size_t i = 0; i < ours.size(); i++)
    if (memcmp(&ours[i], &spec[i], 4) != 0) {
      if (!tell) return false;
      printf("%s %s rows %u cols %u n %u fill %d: y[%zu][%zu] is %a, scalar says %a\n", table.name, t.name, rows, cols,
             n, fill, i / y_stride, i % y_stride, double(ours[i]), double(spec[i]));
      return false;
    }
  return true;
}

int check(const Kernels& table) {
  int products = 0, wrong = 0;
  const auto expect = [&](const Type& t, uint32_t rows, uint32_t cols, uint32_t n, int fill, bool extreme) {
    products++;
    if (!same_bits(table, t, rows, cols, n, fill, extreme, wrong < 10)) wrong++;
  };
  for (const Type& t : kTypes) {
    const uint32_t elements = block_shape(t.type).elements;
    constexpr uint32_t kBlocks[] = {1, 2, 3, 4, 5, 7, 8, 9, 13};
    for (uint32_t n = 1; n <= 70; n++) expect(t, 1 + (n * 7) % 70, kBlocks[n % 9] * elements, n, -1, false);
    for (uint32_t least : {8u, 24u})
      for (uint32_t rows = 15; rows <= 66; rows++)
        expect(t, rows, kBlocks[rows % 9] * elements, least + rows % 13, -1, false);
    for (uint32_t n : {128u, 129u, 190u}) expect(t, 40, 5 * elements, n, -1, false);
    for (int fill : {0x00, 0x7f, 0x80, 0xff})
      for (uint32_t n : {20u, 40u}) expect(t, 40, 9 * elements, n, fill, true);
  }
  printf("%-7s %d products, %d differ from scalar\n", table.name, products, wrong);
  return wrong;
}

// --- speed --------------------------------------------------------------------------------------------------------------

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  sched_getaffinity(0, sizeof(set), &set);
  std::vector<int> cpus;
  for (int i = 0; i < CPU_SETSIZE; i++)
    if (CPU_ISSET(i, &set)) cpus.push_back(i);
  return cpus;
}

// Calls of work(thread) a second by each thread together, best of three stretches of 40 ms.
double rate(int threads, const std::function<void(int)>& work) {
  const std::vector<int> cpus = allowed_cpus();
  std::atomic<int> ready = 0;
  std::atomic<double> best[3] = {};
  std::vector<std::thread> running;
  for (int thread = 0; thread < threads; thread++)
    running.emplace_back([&, thread] {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(cpus[size_t(thread) % cpus.size()], &set);
      pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
      work(thread);  // first touch
      for (int stretch = 0; stretch < 3; stretch++) {
        ready++;
        while (ready < threads * (stretch + 1)) __builtin_ia32_pause();
        const double start = seconds();
        double now = start;
        int calls = 0;
        for (; now - start < 0.04; now = seconds()) work(thread), calls++;
        best[stretch].fetch_add(calls / (now - start));
      }
    });
  for (std::thread& thread : running) thread.join();
  return std::max({best[0].load(), best[1].load(), best[2].load()});
}

[[gnu::target("avx512f")]] void read_all(const std::vector<uint8_t>& bytes) {
  using Wide = uint64_t __attribute__((vector_size(64)));
  Wide sum[4] = {};
  const auto* p = reinterpret_cast<const Wide*>((uintptr_t(bytes.data()) + 63) & ~uintptr_t{63});
  for (size_t i = 0; i + 5 <= bytes.size() / 64; i += 4)
    for (size_t j = 0; j < 4; j++) sum[j] ^= p[i + j];
  Wide all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  __asm__ volatile("" : : "m"(all));
}

// 8 independent chains of VPDPBUSD from registers, 1 << 13 times: 8 * 128 operations each.
void dot_vectors() {
  for (int i = 0; i < 1 << 13; i++)
    __asm__ volatile(
        "vpdpbusd %%zmm16, %%zmm17, %%zmm18\n vpdpbusd %%zmm16, %%zmm17, %%zmm19\n vpdpbusd %%zmm16, %%zmm17, %%zmm20\n"
        "vpdpbusd %%zmm16, %%zmm17, %%zmm21\n vpdpbusd %%zmm16, %%zmm17, %%zmm22\n vpdpbusd %%zmm16, %%zmm17, %%zmm23\n"
        "vpdpbusd %%zmm16, %%zmm17, %%zmm24\n vpdpbusd %%zmm16, %%zmm17, %%zmm25"
        :
        :
        : "memory");
}

// 4 independent chains of tile products, 1 << 10 times: 4 * 32768 operations each.
void dot_tiles() {
  TileShapes shapes;
  for (int tile = 0; tile < 8; tile++) shapes.set(tile, 16, 64);
  tile_configure(shapes);
  for (int i = 0; i < 1 << 10; i++) {
    tile_dot<true, 0, 4, 5>();
    tile_dot<true, 1, 4, 6>();
    tile_dot<true, 2, 7, 5>();
    tile_dot<true, 3, 7, 6>();
  }
  tile_release();
}

// Products of n activation rows with 64 MB of weights for each thread, walked through 64 rows at a time.
struct Products {
  const Kernels& table;
  const Type& type;
  uint32_t cols, n, rows;
  const std::vector<std::vector<uint8_t>>& weights;  // by thread
  const Activations& x;
  std::vector<uint32_t> at;  // next row, by thread
  std::vector<std::vector<float>> y;

  static constexpr uint32_t kRows = 64;

  Products(const Kernels& k, const Type& t, uint32_t columns, uint32_t tokens, int threads,
           const std::vector<std::vector<uint8_t>>& w, const Activations& activations)
      : table(k),
        type(t),
        cols(columns),
        n(tokens),
        rows(uint32_t(w[0].size() / row_bytes(t.type, columns))),
        weights(w),
        x(activations),
        at(size_t(threads)),
        y(size_t(threads), std::vector<float>(size_t(n) * kRows)) {}

  void step(size_t thread) {
    if (at[thread] + kRows > rows) at[thread] = 0;
    const uint8_t* w = weights[thread].data() + at[thread] * row_bytes(type.type, cols);
    table.matmul[uint32_t(type.type)][0]({w, x.rows, nullptr, y[thread].data(), x.stride, kRows, kRows, cols, n});
    at[thread] += kRows;
  }

  double calls_per_second(int threads) {
    return rate(threads, [this](int thread) { step(size_t(thread)); });
  }
};

void measure(const std::vector<const Kernels*>& tables, int threads) {
  constexpr size_t kBytes = 64 << 20;
  std::vector<std::vector<uint8_t>> bytes(size_t(threads), std::vector<uint8_t>(kBytes, 1));
  printf("\n%d thread%s: reads %.1f GB/s, VNNI %.2f Top/s", threads, threads > 1 ? "s" : "",
         rate(threads, [&](int thread) { read_all(bytes[size_t(thread)]); }) * kBytes / 1e9,
         rate(threads, [](int) { dot_vectors(); }) * (1 << 13) * 8 * 128 / 1e12);
  if (tables.back() == &kAmxKernels)
    printf(", AMX %.2f Top/s", rate(threads, [](int) { dot_tiles(); }) * (1 << 10) * 4 * 32768 / 1e12);
  printf("\ndecode: GB/s of weights; prefill: Gop/s\n%-7s %-7s %5s |", "table", "type", "cols");
  constexpr uint32_t kDecode[] = {1, 2, 3, 4, 6, 8}, kPrefill[] = {6, 8, 12, 16, 43, 64, 128, 512};
  for (uint32_t n : kDecode) printf(" %5s%u", "n=", n);
  printf(" |");
  for (uint32_t n : kPrefill) printf(" %4s%-3u", "n=", n);
  printf("\n");
  for (uint32_t cols : {2048u, 7168u})
    for (const Type& t : kTypes) {
      if (&t - kTypes >= 6) break;
      for (int i = 0; i < threads; i++) {
        std::vector<uint8_t>& w = bytes[size_t(i)];
        if (i > 0) w = bytes[0];
        else w = random_weights(t, uint32_t(kBytes / row_bytes(t.type, cols)), cols);
      }
      const Activations x(t, 512, cols, false);
      for (const Kernels* table : tables) {
        printf("%-7s %-7s %5u |", table->name, t.name, cols);
        const double row_gb = double(row_bytes(t.type, cols)) * Products::kRows / 1e9;
        const double row_gop = 2.0 * cols * Products::kRows / 1e9;
        for (uint32_t n : kDecode)
          printf(" %6.1f", Products(*table, t, cols, n, threads, bytes, x).calls_per_second(threads) * row_gb);
        printf(" |");
        for (uint32_t n : kPrefill)
          printf(" %7.0f", Products(*table, t, cols, n, threads, bytes, x).calls_per_second(threads) * row_gop * n);
        printf("\n");
        fflush(stdout);
      }
    }
}

}  // namespace

int main(int argc, char** argv) {
  bool only_check = false;
  int threads = int(allowed_cpus().size());
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--check") == 0) only_check = true;
    if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) threads = atoi(argv[++i]);
  }
  const std::vector<const Kernels*> tables = running_tables();
  if (tables.empty()) {
    printf("this CPU has no AVX-512 VNNI: nothing to do\n");
    return 0;
  }
  if (tables.back() != &kAmxKernels)
    printf("this CPU has no AMX (or the kernel does not permit it): table amx skipped\n");
  int wrong = 0;
  for (const Kernels* table : tables) wrong += check(*table);
  if (wrong != 0) return 1;
  if (only_check) return 0;
  measure(tables, 1);
  if (threads > 1) measure(tables, threads);
  return 0;
}
