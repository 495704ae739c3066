// From named fields (a Python dataclass, a file) to blocks.
#pragma once

#include <string>

#include "engine/fields.h"
#include "engine/network.h"

namespace effv2 {

// Appends a block of the given kind (the stems of effv2_kernels/blocks.py). The fields are copied.
// Throws Error, naming the field, where something is missing or misshapen, and OverflowError where a weight
// is beyond what the target's format holds.
void add_block(Network& network, const std::string& kind, const Fields& fields);
// The output of the block added last is returned as well, scaled and shifted per channel unless both are
// null. The values are copied. Throws Error where that does not fit.
void add_feature(Network& network, const Tensor* scale, const Tensor* shift);

}  // namespace effv2
