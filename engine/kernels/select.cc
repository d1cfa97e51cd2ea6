// Which kernel tables this build has, fastest first.
#include "kernels.h"

namespace perigee {
namespace {

const Kernels* const kTables[] = {
#ifdef PERIGEE_RELAXED
    &kRelaxedKernels,
#endif
#ifdef __wasm__
    &kSimd128Kernels,
#endif
#ifdef __x86_64__
    &kAmxKernels,     &kAvx512Kernels, &kAvx2Kernels,
#endif
#ifdef __aarch64__
    &kNeonKernels,
#endif
    &kScalarKernels,
};

bool equal(const char* a, const char* b) {
  while (*a != 0 && *a == *b) a++, b++;
  return *a == *b;
}

}  // namespace

int kernel_count() { return int(sizeof(kTables) / sizeof(kTables[0])); }

const Kernels& kernels_at(int index) { return *kTables[index]; }

const Kernels* kernels_named(const char* name) {
  if (name == nullptr) return kTables[0];
  for (const Kernels* table : kTables)
    if (equal(table->name, name)) return table;
  return nullptr;
}

}  // namespace perigee
