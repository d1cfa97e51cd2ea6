// What the door knows about the thread it is called on.
#pragma once
#include <setjmp.h>

#include "../engine/door.h"
#include "stretch.h"

namespace perigee {

struct RankThread {
  const Kernels* kernels;
  Stretch* stretches;  // [ranks] of the session
  uint32_t ranks, index;
  double last;  // when the previous stage ended, in milliseconds()
  double stage_milliseconds[static_cast<uint32_t>(Stage::Count)];
  jmp_buf outside;  // where leave_step() goes: out of engine_forward
};

extern thread_local RankThread* rank_thread;

// The monotonic clock.
double milliseconds();

}  // namespace perigee
