// Whether a kernel table can be offered: the CPU has its instructions, and it gives the specification's bits.
#pragma once
#include "../engine/kernels/kernels.h"

namespace perigee {

// Null when it can; else the reason, for people.
const char* table_refusal(const Kernels& table);

}  // namespace perigee
