// What every check here needs: random data, comparison with doubles, and times with a cold second-level cache.
#pragma once
#include <cuda_bf16.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../../native/cuda/check.h"

// Ends the program with the failing call.
#define MUST(what)                                                                                      \
  do {                                                                                                  \
    if (const cudaError_t must_code = (what); must_code != cudaSuccess) {                               \
      const perigee::cuda::Failure f = perigee::cuda::take_failure();                                   \
      fprintf(stderr, "%s:%d: %s: %s (%s)\n", __FILE__, __LINE__, #what, cudaGetErrorString(must_code), \
              f.call ? f.call : "");                                                                    \
      exit(1);                                                                                          \
    }                                                                                                   \
  } while (0)

namespace check {

inline int failures = 0;

// Prints the line, and counts a failure unless `ok`.
inline void expect(bool ok, const char* what) {
  if (!ok) failures++;
  printf("%s %s\n", ok ? "ok  " : "FAIL", what);
  fflush(stdout);
}

enum class Asked { AtMost, AtLeast };

// Prints one of the figures that all of this is judged by, with what is asked for on an H200; test/cuda/figures.sh gathers them.
inline void figure(const std::string& what, double value, const char* unit, Asked asked, double bound) {
  const bool most = asked == Asked::AtMost, reached = most ? value <= bound : value >= bound;
  printf("figure %-66s %9.3f %-9s %s %g%s\n", what.c_str(), value, unit, most ? "at most" : "at least", bound,
         reached ? "" : "  MISSED");
  fflush(stdout);
}

// Device memory of `count` values, freed with the process.
template <typename T>
T* device(size_t count) {
  T* at = nullptr;
  MUST(cudaMalloc(&at, std::max<size_t>(count, 1) * sizeof(T)));
  return at;
}

template <typename T>
T* upload(const std::vector<T>& values) {
  T* at = device<T>(values.size());
  MUST(cudaMemcpy(at, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return at;
}

template <typename T>
std::vector<T> download(const T* at, size_t count) {
  std::vector<T> values(count);
  MUST(cudaMemcpy(values.data(), at, count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

// Random weight bytes or floats on the device without a long upload: a counter hashed per element.
static __global__ void fill_normal_kernel(float* f, __nv_bfloat16* b, size_t count, float sigma, unsigned seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
    unsigned long long z = i * 0x9E3779B97F4A7C15ull + seed * 0xBF58476D1CE4E5B9ull + 1;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    const float u = (static_cast<unsigned>(z >> 40) + 0.5f) / 16777216.0f,
                v = static_cast<unsigned>(z & 0xffffff) / 16777216.0f;
    const float x = sigma * sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    if (f) f[i] = x;
    if (b) b[i] = __float2bfloat16(x);
  }
}
inline void fill_normal(float* at, size_t count, float sigma, unsigned seed) {
  fill_normal_kernel<<<1024, 256>>>(at, nullptr, count, sigma, seed);
  MUST(cudaGetLastError());
}
inline void fill_normal(__nv_bfloat16* at, size_t count, float sigma, unsigned seed) {
  fill_normal_kernel<<<1024, 256>>>(nullptr, at, count, sigma, seed);
  MUST(cudaGetLastError());
}

// Normalized squared error |a - b|^2 / |b|^2; NaN where either has one.
inline double nmse(const std::vector<float>& a, const std::vector<double>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); i++) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return error / size;
}

// 1 - 2 <a, b> / (<a, a> + <b, b>), as FlashMLA and DeepGEMM measure it.
inline double cosine_difference(const std::vector<float>& a, const std::vector<double>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < b.size(); i++) {
    ab += a[i] * b[i];
    aa += double(a[i]) * a[i];
    bb += b[i] * b[i];
  }
  return 1 - 2 * ab / (aa + bb);
}

// Median microseconds of one call of `run(i)`, i = 0, 1, ...: a graph of `calls` of them, replayed, so that launch gaps of
// the host do not count. For a cold cache let run(i) rotate over inputs that together are five times the cache.
inline double microseconds(int calls, const std::function<void(cudaStream_t, int)>& run, int replays = 7) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  run(stream, 0);  // loads modules
  MUST(cudaStreamSynchronize(stream));
  MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; i++) run(stream, i);
  MUST(cudaStreamEndCapture(stream, &graph));
  MUST(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  MUST(cudaEventCreate(&begin));
  MUST(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < replays + 1; i++) {
    MUST(cudaEventRecord(begin, stream));
    MUST(cudaGraphLaunch(exec, stream));
    MUST(cudaEventRecord(end, stream));
    MUST(cudaEventSynchronize(end));
    float milliseconds;
    MUST(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i > 0) times.push_back(1000.0 * milliseconds / calls);
  }
  MUST(cudaGraphExecDestroy(exec));
  MUST(cudaGraphDestroy(graph));
  MUST(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// The last line of every check, and its exit code.
inline int done() {
  printf("%s: %d failed\n", failures ? "FAIL" : "ok", failures);
  return failures != 0;
}

}  // namespace check
