// The parts of the kernel for a token that have no weights (token_attention.cuh), in a grid of their own: against doubles, then
// their times. `token_parts small` leaves the times out.
#include <numeric>

#include "../../native/cuda/token_attention.cuh"
#include "rows.cuh"

using namespace perigee::cuda;
using check::device;
using check::download;
using check::expect;
using check::normal;
using check::upload;
using check::wide_to_float;

namespace {

enum Parts : uint32_t { kStore = 1, kAttend = 2, kMerge = 4 };

// Rounds of what `parts` names, each on the next layer. Two blocks merge a head, as they would for its expansion.
__global__ void __launch_bounds__(kTokenThreads, 1)
    attention_kernel(const __grid_constant__ TokenStep step, const TokenLayer* layers, uint32_t count, uint32_t parts,
                     uint32_t rounds, float* out, unsigned long long* arrived) {
  extern __shared__ __align__(128) uint8_t scratch[];
  float* merged = reinterpret_cast<float*>(scratch + sizeof(MergeScratch));
  GridBarrier barrier(arrived);
  const TokenPlace place(step);
  for (uint32_t round = 0; round < rounds; round++) {
    const TokenLayer layer = layers[round % count];
    if (parts & kStore) {
      if (blockIdx.x == 0) store_latent(step, layer, place);
      barrier.meet();
    }
    if (parts & kAttend) attend_spans(step, layer, place, scratch);
    barrier.meet();
    if (!(parts & kMerge)) continue;
    for (uint32_t head = blockIdx.x / 2; head < step.heads; head += gridDim.x / 2) {
      merge_heads(step, place, head, 1, merged, scratch);
      __syncthreads();
      for (uint32_t c = threadIdx.x; c < step.kv_rank; c += kTokenThreads) out[head * step.kv_rank + c] = merged[c];
      __syncthreads();
    }
    barrier.meet();
  }
}

// The definition, in doubles, with the queries and pages as they are. grid (heads)
__global__ void reference(const TokenStep step, const TokenLayer* layers, double* out) {
  extern __shared__ double scores[];
  __shared__ double shared_sum;
  const TokenPlace place(step);
  const bf16* pages = layers->pages;
  const uint32_t width = step.kv_rank + step.rope_dim, head = blockIdx.x, seen = place.seen();
  const bf16* q = step.absorbed + head * width;
  for (uint32_t position = threadIdx.x / 32; position < seen; position += blockDim.x / 32) {
    double score = 0;
    for (uint32_t i = threadIdx.x % 32; i < width; i += 32)
      score += double(__bfloat162float(q[i])) * double(__bfloat162float(pages[place.row(step, position) * width + i]));
    for (int d = 16; d > 0; d /= 2) score += __shfl_xor_sync(~0u, score, d);
    scores[position] = exp(score * step.attention_scale);  // scores of these inputs are small
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    double sum = 0;
    for (uint32_t i = threadIdx.x; i < seen; i += 32) sum += scores[i];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    shared_sum = sum;
  }
  __syncthreads();
  for (uint32_t c = threadIdx.x; c < step.kv_rank; c += blockDim.x) {
    double value = 0;
    for (uint32_t position = 0; position < seen; position++)
      value += scores[position] * double(__bfloat162float(pages[place.row(step, position) * width + c]));
    out[head * step.kv_rank + c] = seen > 0 ? value / shared_sum : 0.0;
  }
}

struct Shape {
  uint32_t heads, kv_rank, rope_dim, page_tokens, context;
  uint32_t layers = 1;
};

int processors() {
  int count;
  MUST(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// A token at the end of a context whose pages are scattered, in memory that is given back at the end.
struct Bench {
  Shape shape;
  TokenStep step = {};
  std::vector<void*> memory;
  std::vector<float> qkv, kv_norm, rope;
  std::vector<int32_t> table;
  bf16* pages;
  TokenLayer* layers;
  float* out;
  double* expected;
  unsigned long long* arrived;
  uint32_t blocks = processors(), last_page;

  template <typename T>
  T* keep(T* at) {
    memory.push_back(at);
    return at;
  }

  explicit Bench(const Shape& s) : shape(s) {
    const uint32_t width = s.kv_rank + s.rope_dim, count = (s.context + s.page_tokens - 1) / s.page_tokens + 1;
    const uint64_t layer_values = uint64_t(count) * s.page_tokens * width;
    table.resize(2 * count, 0);  // of two sequences: the token is of the second
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), check::random_bits);
    std::copy(order.begin(), order.end(), table.begin() + count);
    pages = keep(device<bf16>(layer_values * s.layers));
    check::fill_normal(pages, layer_values * s.layers, 1.0f, 3);
    qkv = normal(width + 64);
    kv_norm = normal(s.kv_rank);
    rope = normal(size_t(s.context + 1) * s.rope_dim);
    std::vector<TokenLayer> layers(s.layers);
    for (uint32_t i = 0; i < s.layers; i++) {
      layers[i] = {};
      layers[i].kv_norm = i == 0 ? keep(upload(kv_norm)) : layers[0].kv_norm;
      layers[i].pages = pages + i * layer_values;
    }
    step.heads = s.heads;
    step.q_rank = 64;
    step.kv_rank = s.kv_rank;
    step.rope_dim = s.rope_dim;
    step.latent_eps = 1e-6f;
    step.attention_scale = 1 / sqrtf(width);
    this->layers = keep(upload(layers));
    step.page_tables = keep(upload(table));
    step.table_stride = count;
    step.page_tokens = s.page_tokens;
    step.sequence = keep(upload(std::vector<int32_t>{1}));
    step.position = keep(device<int32_t>(1));
    step.qkv = keep(upload(qkv));
    step.rope = keep(upload(rope));
    step.absorbed = keep(device<bf16>(s.heads * width));
    check::fill_normal(step.absorbed, s.heads * width, 1.0f, 4);
    step.parts = keep(device<uint8_t>(token_attention_space(blocks, s.heads, s.kv_rank, s.rope_dim)));
    out = keep(device<float>(s.heads * s.kv_rank));
    expected = keep(device<double>(s.heads * s.kv_rank));
    arrived = keep(device<unsigned long long>(1));
    MUST(cudaMemset(arrived, 0, 8));
  }
  ~Bench() {
    for (void* at : memory) MUST(cudaFree(at));
  }

  void place(int32_t position) {
    MUST(cudaMemcpy(const_cast<int32_t*>(step.position), &position, 4, cudaMemcpyHostToDevice));
  }

  void run(uint32_t parts, uint32_t rounds, cudaStream_t stream = nullptr) {
    MUST(cudaFuncSetAttribute(attention_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kTokenScratch));
    void* arguments[] = {&step, &layers, &shape.layers, &parts, &rounds, &out, &arrived};
    MUST(cudaLaunchCooperativeKernel(attention_kernel, dim3(blocks), dim3(kTokenThreads), arguments, kTokenScratch,
                                     stream));
  }

  // Microseconds of a round.
  double time(uint32_t parts) {
    cudaEvent_t begin, end;
    MUST(cudaEventCreate(&begin));
    MUST(cudaEventCreate(&end));
    std::vector<float> times;
    const uint32_t rounds = 400;
    for (int i = 0; i < 6; i++) {
      float few, many;
      for (uint32_t n : {rounds / 5, rounds}) {
        MUST(cudaEventRecord(begin));
        run(parts, n);
        MUST(cudaEventRecord(end));
        MUST(cudaEventSynchronize(end));
        MUST(cudaEventElapsedTime(n == rounds ? &many : &few, begin, end));
      }
      if (i > 0) times.push_back(1000 * (many - few) / (rounds - rounds / 5));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

bool stored_well(const Bench& b, int32_t position) {
  const Shape& s = b.shape;
  const uint32_t width = s.kv_rank + s.rope_dim;
  const uint64_t page = b.table[b.step.table_stride + position / s.page_tokens];
  const auto row = download(b.pages + (page * s.page_tokens + position % s.page_tokens) * width, width);
  double squares = 0;
  for (uint32_t c = 0; c < s.kv_rank; c++) squares += double(b.qkv[64 + c]) * b.qkv[64 + c];
  const double scale = 1 / sqrt(squares / s.kv_rank + 1e-6);
  bool good = true;
  for (uint32_t c = 0; c < width; c++) {
    double want = b.qkv[64 + c] * scale * (c < s.kv_rank ? b.kv_norm[c] : 0);
    if (c >= s.kv_rank) {
      const uint32_t pair = 64 + c / 2 * 2, turn = position * s.rope_dim + (c - s.kv_rank) / 2 * 2;
      const double x = b.qkv[pair], y = b.qkv[pair + 1], cosine = b.rope[turn], sine = b.rope[turn + 1];
      want = c % 2 ? x * sine + y * cosine : x * cosine - y * sine;
    }
    good &= std::fabs(wide_to_float(row[c]) - want) <= std::fabs(want) / 250 + 1e-5;
  }
  return good;
}

void check_shape(const Shape& shape, const std::vector<int32_t>& positions) {
  Bench b(shape);
  MUST(cudaFuncSetAttribute(reference, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536));
  double worst = 0;
  bool stored = true, repeated = true;
  for (const int32_t position : positions) {
    b.place(position);
    MUST(cudaMemset(b.out, 0xff, shape.heads * shape.kv_rank * 4));
    MUST(cudaMemset(b.step.parts, 0xff, token_attention_space(b.blocks, shape.heads, shape.kv_rank, shape.rope_dim)));
    b.run(kStore | kAttend | kMerge, 1);
    reference<<<shape.heads, 256, (position + 2) * sizeof(double)>>>(b.step, b.layers, b.expected);
    MUST(cudaDeviceSynchronize());
    const auto out = download(b.out, shape.heads * shape.kv_rank);
    const auto expected = download(b.expected, out.size());
    b.run(kStore | kAttend | kMerge, 20);
    MUST(cudaDeviceSynchronize());
    const auto again = download(b.out, out.size());
    for (size_t i = 0; i < out.size(); i++) repeated &= out[i] == again[i];
    if (position >= 0) {
      stored &= stored_well(b, position);
      const double difference = check::cosine_difference(out, expected);
      if (!(difference < 5e-6)) printf("     position %d: cosine difference %g\n", position, difference);
      worst = difference < 5e-6 ? std::max(worst, difference) : 1;
    } else {
      for (float x : out) worst = std::max(worst, double(std::fabs(x)));
    }
  }
  char name[128];
  snprintf(name, sizeof name, "%u heads of %u + %u, pages of %u: worst cosine difference %.2e", shape.heads,
           shape.kv_rank, shape.rope_dim, shape.page_tokens, worst);
  expect(worst < 5e-6, name);
  if (!stored) expect(false, "the latent is stored");
  if (!repeated) expect(false, "a second run gives the same bits");
}

void times() {
  printf("us a layer, cold   heads  context  barriers   store  attend   merge  latents' roofline\n");
  for (uint32_t heads : {16u, 64u, 128u})
    for (uint32_t context : {64u, 1024u, 2048u, 4096u, 8192u, 16384u, 32768u}) {
      const double bytes = context * 1152.0;
      Bench b({heads, 512, 64, 64, context, uint32_t(std::clamp(256e6 / bytes, 2.0, 128.0))});
      b.place(context - 1);
      const double none = b.time(0), store = b.time(kStore), attend = b.time(kAttend), merge = b.time(kMerge);
      printf("%24u %8u %9.2f %7.2f %7.2f %7.2f %7.2f\n", heads, context, none, store - 2 * none, attend - none,
             merge - 2 * none, bytes / 4.3e6);
      fflush(stdout);
    }
}

}  // namespace

int main(int count, char** words) {
  const bool small = count > 1 && !strcmp(words[1], "small");
  std::vector<int32_t> positions = {-1, 0, 1, 14, 15, 16, 30, 31, 32, 62, 63, 64};
  if (!small) positions.insert(positions.end(), {999, 1055, 4095});
  const uint32_t context = small ? 100 : 4100;
  for (uint32_t heads : {8u, 16u, 64u, 128u, 20u}) check_shape({heads, 512, 64, 64, context}, positions);
  check_shape({16, 512, 64, 16, context}, positions);
  check_shape({8, 256, 32, 16, context}, positions);
  check_shape({3, 96, 32, 24, context}, positions);
  if (!small) times();
  return check::done();
}
