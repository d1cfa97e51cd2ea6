#include "cpu.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace perigee {
namespace {

bool is(const Kernels& table, const char* name) { return strcmp(table.name, name) == 0; }

#if defined(__x86_64__)
bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

// Linux hands the tile registers out on request, per process and for its later threads (arch/x86/include/uapi/asm/prctl.h).
bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_int8() {
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool tile = d >> 24 & 1, int8 = d >> 25 & 1;
  return tile && int8 && may_use_tiles();
}
#endif

}  // namespace

bool cpu_runs(const Kernels& table) {
  if (is(table, "scalar")) return true;
#if defined(__x86_64__)
  if (is(table, "avx2")) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
  if (is(table, "avx512")) return has_avx512_vnni();
  if (is(table, "amx")) return has_avx512_vnni() && has_amx_int8();
#elif defined(__aarch64__)
  if (is(table, "neon")) return true;  // part of every 64-bit ARM
#endif
  return false;
}

}  // namespace perigee
