// The choice of the instruction set: one ordered table, read once.
#pragma once

#include <string>
#include <vector>

#include "engine/target.h"

namespace effv2 {

// All that are compiled in, best ISA first.
const std::vector<Target>& targets();
// Null if there is none of this ISA and format, or it is unknown.
const Target* find_target(const char* isa, const char* format);
bool knows_isa(const char* isa);
// Whether the processor and the operating system can.
bool can_run_isa(const char* isa);
// Throws InputError for an ISA that is unknown, UnavailableError for one that cannot run here or has no such
// format.
const Target& target_named(const std::string& isa, const std::string& format);
// EFFV2_FORCE_ISA, or the first available ISA. Null, with a reason in `error` (256 bytes), where the variable
// names an unknown or unavailable one.
const char* default_isa(char* error);

}  // namespace effv2
