// The engine's targets, as tests go over them.
#pragma once

#include <vector>

#include "cpu/dispatch.h"

namespace effv2::tests {

// Those that this processor and operating system can run.
std::vector<const Target*> available_targets();
std::vector<const Target*> fp32_targets();

}  // namespace effv2::tests
