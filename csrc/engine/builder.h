// From named fields (a Python dataclass, a file) to blocks.
#pragma once

#include <string>

#include "engine/fields.h"
#include "engine/network.h"

namespace effv2 {

// Appends a block of the given kind (the stems of effv2_kernels/blocks.py). The fields are copied.
// Throws Error, naming the field, where something is missing or misshapen.
void add_block(Network& network, const std::string& kind, const Fields& fields);

}  // namespace effv2
