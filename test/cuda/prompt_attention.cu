// Prompt attention and the gathering of latents against doubles, then its time beside the tensor cores' limit.
#include <string.h>

#include "../../native/cuda/prompt_attention.cuh"
#include "harness.cuh"

using namespace perigee::cuda;
using std::vector;

namespace {

struct Dims {
  uint32_t heads, nope, rope, value, rope_stride;
};
constexpr Dims kK2 = {64, 128, 64, 128, 576}, kFewHeads = {4, 128, 64, 128, 576}, kNano = {8, 32, 32, 32, 288},
               kOdd = {3, 96, 32, 64, 40};

using Attend = cudaError_t (*)(cudaStream_t, const PromptAttention&);

// All keys of a case; chunks are parts of it.
struct Case {
  Dims dims;
  uint32_t n, keys;
  vector<bf16> q, k_nope, k_rope, v;
  bf16 *dq, *dk_nope, *dk_rope, *dv;
  float *out, *lse;
};

vector<bf16> normal(size_t count, float sigma, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0, sigma);
  vector<bf16> values(count);
  for (bf16& x : values) x = __float2bfloat16(distribution(random));
  return values;
}

Case make_case(const Dims& d, uint32_t n, uint32_t keys) {
  Case c = {d, n, keys};
  c.q = normal(size_t(n) * d.heads * (d.nope + d.rope), 1, 1);
  c.k_nope = normal(size_t(keys) * d.heads * d.nope, 1, 2);
  c.k_rope = normal(size_t(keys) * d.rope_stride, 1, 3);
  c.v = normal(size_t(keys) * d.heads * d.value, 1, 4);
  c.dq = check::upload(c.q), c.dk_nope = check::upload(c.k_nope);
  c.dk_rope = check::upload(c.k_rope), c.dv = check::upload(c.v);
  c.out = check::device<float>(size_t(n) * d.heads * d.value);
  c.lse = check::device<float>(size_t(n) * d.heads);
  return c;
}

void free_case(const Case& c) {
  for (void* at : {(void*)c.dq, (void*)c.dk_nope, (void*)c.dk_rope, (void*)c.dv, (void*)c.out, (void*)c.lse})
    MUST(cudaFree(at));
}

PromptAttention arguments(const Case& c, uint32_t begin, uint32_t end, int first_query, bool merge) {
  const Dims& d = c.dims;
  PromptAttention a = {};
  a.q = c.dq;
  a.k_nope = c.dk_nope + size_t(begin) * d.heads * d.nope;
  a.k_rope = c.dk_rope + size_t(begin) * d.rope_stride;
  a.v = c.dv + size_t(begin) * d.heads * d.value;
  a.k_rope_stride = d.rope_stride;
  a.n = c.n, a.heads = d.heads, a.nope_dim = d.nope, a.rope_dim = d.rope, a.value_dim = d.value;
  a.keys = end - begin;
  a.first_key = begin;
  a.first_query = first_query;
  a.scale = 1.0f / sqrtf(d.nope + d.rope);
  a.out = c.out, a.lse = c.lse;
  a.merge = merge;
  return a;
}

// Compares up to 64 rows of every third head or so with doubles.
bool agrees(const Case& c, int first_query, const char* name) {
  const Dims& d = c.dims;
  const vector<float> out = check::download(c.out, size_t(c.n) * d.heads * d.value);
  const vector<float> lse = check::download(c.lse, size_t(c.n) * d.heads);
  const double scale = 1.0f / sqrtf(d.nope + d.rope);
  vector<float> got;
  vector<double> want;
  double worst_lse = 0;
  bool zeros = true;
  const uint32_t step = std::max(1u, c.n / 64);
  for (uint32_t i = 0; i < c.n; i = i + 1 < c.n && i + step >= c.n ? c.n - 1 : i + step) {
    for (uint32_t h = i % 3; h<d.heads; h += d.heads> 8 ? 13 : 1) {
      const int sees = std::min<int>(std::max(first_query + int(i) + 1, 0), c.keys);
      const bf16* q = &c.q[(size_t(i) * d.heads + h) * (d.nope + d.rope)];
      const float* o = &out[(size_t(i) * d.heads + h) * d.value];
      const float l = lse[size_t(i) * d.heads + h];
      if (sees == 0) {
        zeros &= l == -INFINITY;
        for (uint32_t x = 0; x < d.value; x++) zeros &= o[x] == 0;
        continue;
      }
      vector<double> s(sees), sum(d.value);
      double most = -INFINITY, total = 0;
      for (int k = 0; k < sees; k++) {
        const bf16* nope = &c.k_nope[(size_t(k) * d.heads + h) * d.nope];
        const bf16* rope = &c.k_rope[size_t(k) * d.rope_stride];
        double dot = 0;
        for (uint32_t x = 0; x < d.nope; x++) dot += double(float(q[x])) * float(nope[x]);
        for (uint32_t x = 0; x < d.rope; x++) dot += double(float(q[d.nope + x])) * float(rope[x]);
        s[k] = dot * scale;
        most = std::max(most, s[k]);
      }
      for (int k = 0; k < sees; k++) {
        const double p = exp(s[k] - most);
        total += p;
        for (uint32_t x = 0; x < d.value; x++) sum[x] += p * float(c.v[(size_t(k) * d.heads + h) * d.value + x]);
      }
      for (uint32_t x = 0; x < d.value; x++) got.push_back(o[x]), want.push_back(sum[x] / total);
      const double off = fabs(l - (most + log(total)));
      worst_lse = off <= worst_lse ? worst_lse : off;
    }
    if (i + 1 == c.n) break;
  }
  const double cosine = want.empty() ? 0 : check::cosine_difference(got, want);
  const double nmse = want.empty() ? 0 : check::nmse(got, want);
  const bool ok = zeros && cosine < 5e-6 && nmse < 5e-6 && worst_lse < 1e-4;
  char line[160];
  snprintf(line, sizeof line, "%-34s cos %.1e nmse %.1e lse %.1e zeros %d", name, cosine, nmse, worst_lse, zeros);
  check::expect(ok, line);
  return ok;
}

// One pass, then three chunks that are merged; poisoned outputs show rows that were not written.
void check_attention(Attend attend, const Dims& d, const char* dims, uint32_t n, uint32_t keys, int first_query) {
  Case c = make_case(d, n, keys);
  char name[96];
  const auto poison = [&] {
    MUST(cudaMemset(c.out, 0xff, size_t(n) * d.heads * d.value * 4));
    MUST(cudaMemset(c.lse, 0xff, size_t(n) * d.heads * 4));
  };
  poison();
  MUST(attend(nullptr, arguments(c, 0, keys, first_query, false)));
  MUST(cudaDeviceSynchronize());
  snprintf(name, sizeof name, "%s n %u keys %u from %d", dims, n, keys, first_query);
  agrees(c, first_query, name);
  if (keys < 3) return free_case(c);
  poison();
  const uint32_t cut[4] = {0, keys / 3, keys / 3 + keys / 4 + 1, keys};
  for (int i = 0; i < 3; i++) MUST(attend(nullptr, arguments(c, cut[i], cut[i + 1], first_query, i > 0)));
  MUST(cudaDeviceSynchronize());
  snprintf(name, sizeof name, "  in chunks");
  agrees(c, first_query, name);
  free_case(c);
}

void check_gather() {
  constexpr uint32_t kPage = 64, kWidth = 576, kPages = 40, kStride = 12;
  const vector<bf16> pages = normal(size_t(kPages) * kPage * kWidth, 1, 5);
  vector<int32_t> tables(3 * kStride);
  std::mt19937 random(6);
  for (int32_t& page : tables) page = random() % kPages;
  const PagedLatents latents = {check::upload(pages), check::upload(tables), kStride, kPage, 512, 64};
  for (const auto& [begin, keys] : {std::pair<uint32_t, uint32_t>{0, 1}, {63, 2}, {5, 700}, {128, 0}}) {
    const size_t count = size_t(keys) * kWidth;
    bf16* to = check::device<bf16>(count + 8);
    MUST(cudaMemset(to, 0xff, (count + 8) * 2));
    MUST(gather_latents(nullptr, latents, 2, begin, keys, to));
    const vector<bf16> got = check::download(to, count + 8);
    bool ok = true;
    for (uint32_t k = 0; k < keys; k++) {
      const size_t row = size_t(tables[2 * kStride + (begin + k) / kPage]) * kPage + (begin + k) % kPage;
      ok &= memcmp(&got[size_t(k) * kWidth], &pages[row * kWidth], kWidth * 2) == 0;
    }
    for (int i = 0; i < 8; i++) ok &= reinterpret_cast<const uint16_t&>(got[count + i]) == 0xffff;
    char line[80];
    snprintf(line, sizeof line, "gather %u latents from %u, nothing behind", keys, begin);
    check::expect(ok, line);
    MUST(cudaFree(to));
  }
}

void time_attention(Attend attend, const char* name, uint32_t n, uint32_t keys) {
  const Dims& d = kK2;
  Case c = {d, n, keys};
  c.dq = check::device<bf16>(size_t(n) * d.heads * 192);
  c.dk_nope = check::device<bf16>(size_t(keys) * d.heads * 128);
  c.dk_rope = check::device<bf16>(size_t(keys) * 576);
  c.dv = check::device<bf16>(size_t(keys) * d.heads * 128);
  c.out = check::device<float>(size_t(n) * d.heads * 128);
  c.lse = check::device<float>(size_t(n) * d.heads);
  check::fill_normal(c.dq, size_t(n) * d.heads * 192, 1, 1);
  check::fill_normal(c.dk_nope, size_t(keys) * d.heads * 128, 1, 2);
  check::fill_normal(c.dk_rope, size_t(keys) * 576, 1, 3);
  check::fill_normal(c.dv, size_t(keys) * d.heads * 128, 1, 4);
  const bool causal = n == keys;
  const PromptAttention a = arguments(c, 0, keys, causal ? 0 : keys, !causal);
  const double us = check::microseconds(
      n > 8192 ? 1 : 3, [&](cudaStream_t s, int) { MUST(attend(s, a)); }, 5);
  const double flops = 2.0 * n * keys * d.heads * (192 + 128) / (causal ? 2 : 1);
  printf("%-6s n %6u keys %6u %-8s %10.1f us %6.1f TFLOP/s %5.1f %% of 790\n", name, n, keys,
         causal ? "causal" : "merged", us, flops / us * 1e-6, flops / us * 1e-6 / 7.9);
  fflush(stdout);
  if (attend == attend_prompt && causal && n == 8192)
    check::figure("MLA prefill, 8,192 tokens", flops / us * 1e-6, "TFLOP/s", check::Asked::AtLeast, 450);
  free_case(c);
}

}  // namespace

int main(int count, char** arguments) {
  const bool small = count > 1 && !strcmp(arguments[1], "small");  // for compute-sanitizer
  const Dims& k2 = small ? kFewHeads : kK2;
  MUST(prepare_attention(0));
  check_gather();
  // The kernel for every device, then the one that this device gets.
  const struct {
    Attend attend;
    const char* name;
  } kernels[] = {{attend_prompt_mma, "mma"}, {attend_prompt, "chosen"}};
  for (const auto& [attend, name] : kernels) {
    printf("%s\n", name);
    for (const uint32_t n : {1u, 17u, 63u, 128u, 200u}) {
      check_attention(attend, k2, "K2", n, n, 0);
      check_attention(attend, k2, "K2", n, n + 300, 300);
    }
    check_attention(attend, k2, "K2, some see nothing", 200, 130, -70);
    check_attention(attend, k2, "K2, nobody sees", 70, 64, -100);
    if (small) continue;
    check_attention(attend, k2, "K2", 1000, 1000, 0);
    check_attention(attend, k2, "K2", 300, 1777, 1477);
  }
  check_attention(attend_prompt, kNano, "Nano", 77, 177, 100);
  check_attention(attend_prompt, kOdd, "96/32/64", 130, 141, 11);
  if (small) return check::done();
  for (const auto& [attend, name] : kernels) {
    for (const uint32_t n : {1024u, 2048u, 4096u, 8192u, 16384u, 32768u}) time_attention(attend, name, n, n);
    for (const uint32_t n : {128u, 512u, 4096u}) time_attention(attend, name, n, 8192);
  }
  return check::done();
}
