// The choice of the instruction set: one ordered table, read once.
#pragma once

#include "engine/isa.h"

namespace effv2 {

// All that are compiled in, best first. `count` receives their number.
const Isa* isa_table(int* count);
// By name; null if unknown.
const Isa* find_isa(const char* name);
// EFFV2_FORCE_ISA, or the first available one. Null, with a reason in `error` (256 bytes), where the
// variable names an unknown or unavailable ISA.
const Isa* default_isa(char* error);
// The processor's own name, or "unknown". At most 63 characters are written to `name` (64 bytes).
void cpu_name(char* name);

}  // namespace effv2
