// The choice of the instruction set: one ordered table, read once.
#pragma once

#include <string>
#include <vector>

#include "engine/target.h"

namespace effv2 {

// All that are compiled in, best ISA first.
const std::vector<Target>& targets();
using Targets = std::vector<Target>;
// Null if there is none of this ISA and format, or it is unknown.
// `among`, here and below, is for tests, of processors that are not at hand.
const Target* find_target(const char* isa, const char* format, const Targets& among = targets());
bool knows_isa(const char* isa);
// Whether the processor and the operating system can.
bool can_run_isa(const char* isa);
// Throws InputError for an ISA that nobody knows, UnavailableError for one that cannot run here, be it of
// another processor, or has no such format.
const Target& target_named(const std::string& isa, const std::string& format,
                           const Targets& among = targets());
// EFFV2_FORCE_ISA, or the first available ISA. Throws what target_named() throws for an ISA where the
// variable names one that is unknown or cannot run here.
const char* default_isa(const Targets& among = targets());

}  // namespace effv2
