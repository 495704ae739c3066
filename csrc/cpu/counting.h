// Targets that count the work of an instruction set's tiles on any processor and compute nothing: a table of
// its own, which no engine that runs networks needs.
#pragma once

#include "engine/target.h"

namespace effv2 {

// For Network::count(); null if nothing counts for this ISA.
const Target* counting_target(const char* isa);

}  // namespace effv2
