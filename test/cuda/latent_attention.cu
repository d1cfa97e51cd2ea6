// Absorbed attention against double precision on FlashMLA's test grid and on small models' shapes, then its speed.
// Arguments: `small` and `one` leave out all that takes long, for compute-sanitizer; `times` measures only, `few` less.
#include "harness.cuh"
#include "../../native/cuda/latent_attention.cuh"

#include <numeric>
#include <string.h>
#include <string>

namespace perigee::cuda {
cudaError_t prepare_latent_attention(int device);
}

using namespace perigee::cuda;

namespace {

__device__ float normal(uint64_t i, unsigned seed) {
  uint64_t z = i * 0x9E3779B97F4A7C15ull + seed * 0xBF58476D1CE4E5B9ull + 1;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  const float u = (static_cast<unsigned>(z >> 40) + 0.5f) / 16777216.0f,
              v = static_cast<unsigned>(z & 0xffffff) / 16777216.0f;
  return fminf(1.0f, fmaxf(-1.0f, 0.1f * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v)));
}

__global__ void fill_queries(bf16* q, uint64_t count) {
  for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < count; i += uint64_t(gridDim.x) * blockDim.x)
    q[i] = __float2bfloat16(normal(i, 7));
}

// Rows 0..lengths[s] of each sequence; what else is in the pages stays NaN. grid (tokens, sequences)
__global__ void fill_latents(bf16* pages, PagedLatents latents, const int32_t* lengths) {
  const uint32_t width = latents.kv_rank + latents.rope_dim, token = blockIdx.x, sequence = blockIdx.y;
  if (int32_t(token) >= lengths[sequence]) return;
  const uint64_t page = latents.page_tables[sequence * latents.table_stride + token / latents.page_tokens];
  const uint64_t row = (page * latents.page_tokens + token % latents.page_tokens) * width;
  for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) pages[row + i] = __float2bfloat16(normal(row + i, 3));
}

// The definition, in doubles. grid (heads, tokens)
__global__ void reference(LatentAttention args, double* out) {
  extern __shared__ double scores[];
  __shared__ double shared_sum;
  const PagedLatents& latents = args.latents;
  const uint32_t width = latents.kv_rank + latents.rope_dim, head = blockIdx.x, token = blockIdx.y;
  const int32_t seen = args.positions[token] + 1;
  const bf16* q = args.q + (uint64_t(token) * args.heads + head) * width;
  const auto row = [&](int32_t position) {
    const uint64_t page =
        latents.page_tables[args.sequences[token] * latents.table_stride + position / latents.page_tokens];
    return latents.pages + (page * latents.page_tokens + position % latents.page_tokens) * width;
  };
  for (int32_t position = threadIdx.x / 32; position < seen; position += blockDim.x / 32) {
    double score = 0;
    for (uint32_t i = threadIdx.x % 32; i < width; i += 32)
      score += double(__bfloat162float(q[i])) * double(__bfloat162float(row(position)[i]));
    for (int d = 16; d > 0; d /= 2) score += __shfl_xor_sync(~0u, score, d);
    scores[position] = exp(score * args.scale);  // scores of these inputs are small
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    double sum = 0;
    for (int32_t i = threadIdx.x; i < seen; i += 32) sum += scores[i];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    shared_sum = sum;
  }
  __syncthreads();
  for (uint32_t c = threadIdx.x; c < latents.kv_rank; c += blockDim.x) {
    double value = 0;
    for (int32_t position = 0; position < seen; position++)
      value += scores[position] * double(__bfloat162float(row(position)[c]));
    out[(uint64_t(token) * args.heads + head) * latents.kv_rank + c] = seen > 0 ? value / shared_sum : 0.0;
  }
}

__global__ void compare(const float* a, const double* b, uint64_t count, double* sums) {
  double ab = 0, aa = 0, bb = 0;
  for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < count; i += uint64_t(gridDim.x) * blockDim.x) {
    ab += a[i] * b[i];
    aa += double(a[i]) * a[i];
    bb += b[i] * b[i];
  }
  atomicAdd(sums, ab);
  atomicAdd(sums + 1, aa);
  atomicAdd(sums + 2, bb);
}

__global__ void count_different(const float* a, const float* b, uint64_t count, double* sums) {
  for (uint64_t i = blockIdx.x * uint64_t(blockDim.x) + threadIdx.x; i < count; i += uint64_t(gridDim.x) * blockDim.x)
    if (__float_as_uint(a[i]) != __float_as_uint(b[i])) atomicAdd(sums + 3, 1.0);
}

struct Shape {
  uint32_t sequences, queries, context, heads;
  bool causal, varied;
  uint32_t most = 0;  // what the grid is sized for, if not the context
  uint32_t kv_rank = kLatent, rope_dim = kRope, page_tokens = 64;
};

constexpr uint64_t kMostLatents = 64ull * 4160 * kKey, kMostRows = 256 * 128;

struct Memory {
  bf16 *pages = check::device<bf16>(kMostLatents), *q = check::device<bf16>(kMostRows * kKey);
  float *out = check::device<float>(kMostRows * kLatent), *again = check::device<float>(kMostRows * kLatent);
  double *expected = check::device<double>(kMostRows * kLatent), *sums = check::device<double>(4);
  void* space = check::device<uint8_t>(latent_attention_space(256, 128, kLatent));
};

std::mt19937 dice(11);

// The cosine difference of one shape, by each of the kernels.
void measure_error(Memory& m, const Shape& shape, const std::vector<LatentKernel>& kernels,
                   std::vector<double>& worst) {
  const uint32_t width = shape.kv_rank + shape.rope_dim, n = shape.sequences * shape.queries;
  const uint32_t stride = shape.context / shape.page_tokens + 1;
  std::vector<int32_t> tables(shape.sequences * stride), lengths, sequences, positions;
  std::iota(tables.begin(), tables.end(), 0);
  std::shuffle(tables.begin(), tables.end(), dice);
  for (uint32_t s = 0; s < shape.sequences; s++) {
    int32_t length = shape.context;
    if (shape.varied) {
      length = std::normal_distribution<float>(shape.context, shape.context / 2)(dice);
      length = std::clamp<int32_t>(length, 0, shape.context);
      if (s == shape.sequences / 2 && shape.sequences > 1) length = 0;
    }
    lengths.push_back(length);
    for (uint32_t t = 0; t < shape.queries; t++) {
      sequences.push_back(s);
      positions.push_back(shape.causal ? std::max<int32_t>(-1, length - shape.queries + t) : length - 1);
    }
  }
  int32_t *tables_d = check::upload(tables), *lengths_d = check::upload(lengths),
          *sequences_d = check::upload(sequences), *positions_d = check::upload(positions);
  LatentAttention args = {};
  args.latents = {m.pages, tables_d, stride, shape.page_tokens, shape.kv_rank, shape.rope_dim};
  args.q = m.q;
  args.sequences = sequences_d;
  args.positions = positions_d;
  args.n = n;
  args.heads = shape.heads;
  args.most_positions = shape.context;
  args.pairs = shape.queries % 2 == 0;
  args.scale = 1 / sqrtf(width);
  args.out = m.out;
  args.space = m.space;
  MUST(cudaMemset(m.pages, 0xff, uint64_t(tables.size()) * shape.page_tokens * width * sizeof(bf16)));
  fill_latents<<<dim3(shape.context, shape.sequences), 128>>>(m.pages, args.latents, lengths_d);
  fill_queries<<<512, 256>>>(m.q, uint64_t(n) * shape.heads * width);
  reference<<<dim3(shape.heads, n), 256, shape.context * sizeof(double)>>>(args, m.expected);
  MUST(cudaGetLastError());
  const uint64_t values = uint64_t(n) * shape.heads * shape.kv_rank;
  for (size_t k = 0; k < kernels.size(); k++) {
    MUST(cudaMemset(m.out, 0xff, values * sizeof(float)));
    MUST(cudaMemset(m.sums, 0, 4 * sizeof(double)));
    for (float* out : {m.again, m.out}) {
      args.out = out;
      MUST(attend_latents_by(kernels[k], cudaStreamPerThread, args));
    }
    MUST(cudaStreamSynchronize(cudaStreamPerThread));
    compare<<<256, 256>>>(m.out, m.expected, values, m.sums);
    count_different<<<256, 256>>>(m.out, m.again, values, m.sums);
    const auto sums = check::download(m.sums, 4);
    const double difference = sums[1] == 0 && sums[2] == 0 ? 0 : 1 - 2 * sums[0] / (sums[1] + sums[2]);
    if (!(difference < 5e-6))
      printf("     kernel %d b %u s_q %u s_k %u h %u causal %d varied %d: cosine difference %g, sizes %g %g\n",
             int(kernels[k]), shape.sequences, shape.queries, shape.context, shape.heads, shape.causal, shape.varied,
             difference, sums[1], sums[2]);
    if (sums[3] > 0) check::expect(false, "a second run gives the same bits");
    worst[k] = std::isnan(difference) ? 1 : std::max(worst[k], difference);
  }
  for (int32_t* p : {tables_d, lengths_d, sequences_d, positions_d}) MUST(cudaFree(p));
}

const char* name(LatentKernel kernel) {
  constexpr const char* names[] = {"warpgroups", "warps", "narrow warps", "plain"};
  return names[int(kernel)];
}

void report(const char* what, const std::vector<LatentKernel>& kernels, const std::vector<double>& worst) {
  for (size_t k = 0; k < kernels.size(); k++)
    check::expect(worst[k] < 5e-6, (std::string(what) + " by " + name(kernels[k]) + ": worst cosine difference " +
                                    std::to_string(worst[k] * 1e6) + "e-6")
                                       .c_str());
}

void check_results(const std::vector<LatentKernel>& kernels, bool small) {
  Memory m;
  MUST(cudaFuncSetAttribute(reference, cudaFuncAttributeMaxDynamicSharedMemorySize, 4096 * sizeof(double)));
  for (uint32_t context : small ? std::vector<uint32_t>{20, 140} : std::vector<uint32_t>{20, 140, 4096}) {
    std::vector<double> worst(kernels.size());
    for (uint32_t sequences : {1, 2, 6, 64})
      for (uint32_t queries : {1, 2, 4})
        for (uint32_t heads : {1, 3, 9, 63, 64, 126, 128})
          for (bool causal : {false, true})
            for (bool varied : {false, true}) {
              if (sequences == 64 && (small || (context == 4096 && (!causal || (heads != 64 && heads != 128)))))
                continue;
              if (small && heads != 3 && heads != 126) continue;
              measure_error(m, {sequences, queries, context, heads, causal, varied}, kernels, worst);
            }
    report(("FlashMLA's grid, s_k " + std::to_string(context)).c_str(), kernels, worst);
  }
  std::vector<double> many(kernels.size());
  for (uint32_t context : {20, 500}) measure_error(m, {256, 1, context, 3, true, true}, kernels, many);
  report("as many groups as there may be", kernels, many);
  const std::vector<LatentKernel> plain = {LatentKernel::Plain};
  std::vector<double> worst(1);
  for (uint32_t kv_rank : {32, 256, 512})
    for (uint32_t queries : {1, 2})
      measure_error(m, {3, queries, 150, 8, true, true, 0, kv_rank, 32, 16}, plain, worst);
  report("other widths and pages", plain, worst);
}

void judge(const Shape& s, double us, double share) {
  if (s.heads != 64 || s.queries != 1 || s.varied) return;
  if (s.sequences == 128 && s.context == 4096)
    check::figure("MLA decode, 128 sequences of 4,096 tokens", us * 1e-3, "ms", check::Asked::AtMost, 0.165);
  if (s.sequences == 1 && s.context >= 32768)
    check::figure("MLA decode, 1 sequence of " + std::to_string(s.context) + " tokens, share of 4.3 TB/s", 100 * share,
                  "%", check::Asked::AtLeast, 80);
}

// `chosen`: it is the kernel that this device gets.
void measure_times(LatentKernel kernel, const std::vector<Shape>& shapes, bool chosen = true) {
  uint64_t most = 0;
  for (const Shape& s : shapes) most = std::max(most, uint64_t(s.sequences) * s.context);
  const uint64_t pool = std::max<uint64_t>(most, 64 * 1024 * 8) / 64;
  bf16* pages = check::device<bf16>(pool * 64 * kKey);
  check::fill_normal(pages, pool * 64 * kKey, 0.1f, 5);
  bf16* q = check::device<bf16>(kMostRows * kKey);
  fill_queries<<<512, 256>>>(q, kMostRows * kKey);
  float* out = check::device<float>(kMostRows * kLatent);
  void* space = check::device<uint8_t>(latent_attention_space(256, 128, kLatent));
  std::vector<int32_t> order(pool);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), dice);
  int32_t* order_d = check::upload(order);
  printf("%s\n  b   s_k  h s_q varied       us   TB/s  %%of4.3  TFLOP/s\n", name(kernel));
  for (const Shape& shape : shapes) {
    const uint32_t n = shape.sequences * shape.queries, stride = shape.context / 64;
    std::vector<int32_t> sequences, positions;
    double tokens = 0;
    std::mt19937 lengths(3);
    for (uint32_t s = 0; s < shape.sequences; s++) {
      int32_t length = shape.context;
      if (shape.varied) length = std::uniform_int_distribution<int>(shape.context / 16, shape.context)(lengths);
      tokens += length;
      for (uint32_t t = 0; t < shape.queries; t++) {
        sequences.push_back(s);
        positions.push_back(length - shape.queries + t);
      }
    }
    int32_t *sequences_d = check::upload(sequences), *positions_d = check::upload(positions);
    LatentAttention args = {};
    args.q = q;
    args.sequences = sequences_d;
    args.positions = positions_d;
    args.n = n;
    args.heads = shape.heads;
    args.most_positions = shape.most ? shape.most : shape.context;
    args.pairs = shape.queries == 2;
    args.scale = 1 / sqrtf(192);
    args.out = out;
    args.space = space;
    const uint32_t sets = std::max<uint32_t>(1, pool / (uint64_t(shape.sequences) * stride));
    const int calls = tokens > 1e6 ? 4 : tokens > 1e5 ? 10 : 64;
    const double us = check::microseconds(calls, [&](cudaStream_t stream, int i) {
      args.latents = {pages, order_d + uint64_t(i % sets) * shape.sequences * stride, stride, 64, kLatent, kRope};
      MUST(attend_latents_by(kernel, stream, args));
    });
    const double rows = double(n) * shape.heads;
    const double bytes = tokens * kKey * 2 + rows * (kKey * 2 + kLatent * 4);
    const double flops = 2.0 * tokens * shape.queries * shape.heads * (kKey + kLatent);
    printf("%3u %6u %3u %2u %4d %10.2f  %5.2f  %5.1f   %6.0f\n", shape.sequences, shape.context, shape.heads,
           shape.queries, shape.varied, us, bytes / us / 1e6, bytes / us / 1e6 / 4.3 * 100, flops / us / 1e6);
    fflush(stdout);
    if (chosen) judge(shape, us, bytes / us * 1e-6 / 4.3);
    MUST(cudaFree(sequences_d));
    MUST(cudaFree(positions_d));
  }
  for (void* p : {(void*)pages, (void*)q, (void*)out, space, (void*)order_d}) MUST(cudaFree(p));
}

}  // namespace

int main(int count, char** words) {
  const std::string mode = count > 1 ? words[1] : "";
  MUST(prepare_latent_attention(0));
  int major = 0;
  MUST(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  std::vector<LatentKernel> kernels = {LatentKernel::NarrowWarps};
  if (wide_warps_fit()) kernels.insert(kernels.begin(), LatentKernel::Warps);
  if (major == 9) kernels.insert(kernels.begin(), LatentKernel::Warpgroups);
  if (mode == "one") {
    Memory m;
    std::vector<double> worst(kernels.size());
    measure_error(m, {2, 2, 140, 63, true, true}, kernels, worst);
    report("one shape", kernels, worst);
    return check::done();
  }
  if (mode == "few") {
    measure_times(kernels[0], {{128, 1, 4096, 64, true, false},
                               {1, 1, 32768, 64, true, false},
                               {1, 1, 131072, 64, true, false},
                               {128, 1, 4096, 128, true, false}});
    return check::done();
  }
  if (mode != "times") check_results(kernels, mode == "small");
  if (mode != "small") {
    std::vector<Shape> shapes;
    for (uint32_t sequences : {1, 4, 32, 128})
      for (uint32_t context : {1024, 4096, 8192, 32768, 131072})
        for (uint32_t heads : {64, 128})
          for (uint32_t queries : {1, 2})
            if (uint64_t(sequences) * context <= 32 * 32768)
              shapes.push_back({sequences, queries, context, heads, true, false});
    for (uint32_t sequences : {4, 32, 128}) shapes.push_back({sequences, 1, 8192, 64, true, true});
    measure_times(kernels[0], shapes);
    if (kernels.size() > 1)
      measure_times(kernels[1],
                    {{128, 1, 4096, 64, true, false},
                     {1, 1, 32768, 64, true, false},
                     {1, 1, 131072, 64, true, false},
                     {128, 1, 4096, 128, true, false}},
                    false);
  }
  return check::done();
}
