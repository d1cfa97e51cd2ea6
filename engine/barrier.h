// A barrier among the ranks, on words of the shared state memory: look a while, then sleep.
#pragma once
#include <stdint.h>

namespace perigee {

struct alignas(64) Barrier {
  int32_t arrived;
  int32_t generation;
  int32_t aborted;   // set from outside when a rank has died: everyone waiting leaves
  int32_t sleepers;  // ranks that may be asleep: waking is a system call, and mostly nobody needs it
};

// Tells the CPU that this is a spin: its other hyperthread goes on, and the way out of the loop is not mispredicted.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `ranks` ranks have arrived. Looks `spins` times before sleeping. Leaves the step when the barrier was aborted.
void barrier_wait(Barrier& barrier, uint32_t ranks, uint32_t spins);

// Looks up to `spins` times whether *word has left `expected`; false when it has not.
bool changes_soon(const int32_t* word, int32_t expected, uint32_t spins);

// The door's word on sleeping: wasm waits on the memory, natively a futex. Returns when *word may no longer equal
// `expected`, or after a second at the latest.
void wait_while_equal(int32_t* word, int32_t expected);
void wake_all(int32_t* word);

// Sleeps for some 50 microseconds.
void rest();

// Ends this rank's part of an aborted step without returning: wasm traps, natively the rank's thread goes back to waiting.
[[noreturn]] void leave_step();

}  // namespace perigee
