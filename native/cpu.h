// Which kernel tables this machine runs: its instructions, and the system's leave to use their registers.
#pragma once
#include "../engine/kernels/kernels.h"

namespace perigee {

bool cpu_runs(const Kernels& table);

}  // namespace perigee
