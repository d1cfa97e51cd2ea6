#include "barrier.h"

namespace perigee {

bool changes_soon(const int32_t* word, int32_t expected, uint32_t spins) {
  for (uint32_t i = 0; i < spins; i++) {
    if (__atomic_load_n(word, __ATOMIC_SEQ_CST) != expected) return true;
    relax();
  }
  return false;
}

void barrier_wait(Barrier& barrier, uint32_t ranks, uint32_t spins) {
  if (ranks == 1) return;
  const int32_t generation = __atomic_load_n(&barrier.generation, __ATOMIC_SEQ_CST);
  if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_SEQ_CST) == static_cast<int32_t>(ranks)) {
    __atomic_store_n(&barrier.arrived, 0, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&barrier.generation, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&barrier.sleepers, __ATOMIC_SEQ_CST) > 0) wake_all(&barrier.generation);
    return;
  }
  if (changes_soon(&barrier.generation, generation, spins)) return;
  __atomic_add_fetch(&barrier.sleepers, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&barrier.generation, __ATOMIC_SEQ_CST) == generation) {
    if (__atomic_load_n(&barrier.aborted, __ATOMIC_SEQ_CST)) leave_step();
    wait_while_equal(&barrier.generation, generation);
  }
  __atomic_sub_fetch(&barrier.sleepers, 1, __ATOMIC_SEQ_CST);
}

}  // namespace perigee
