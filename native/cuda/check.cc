#include "check.h"

namespace perigee::cuda {

namespace {
thread_local Failure first = {cudaSuccess, nullptr, nullptr, 0};
}

cudaError_t note_failure(cudaError_t code, const char* call, const char* file, int line) {
  if (first.code == cudaSuccess) first = {code, call, file, line};
  return code;
}

Failure take_failure() {
  const Failure taken = first;
  first = {cudaSuccess, nullptr, nullptr, 0};
  return taken;
}

}  // namespace perigee::cuda
