// From named fields (a Python dataclass, a file) to blocks: every shape is checked here, once.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/network.h"

namespace effv2 {

struct Tensor {
  const float* data;
  std::vector<std::int64_t> shape;
};

struct Fields {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::int64_t> options;
};

// Appends a block of the given kind (the stems of effv2_kernels/blocks.py). The fields are copied.
// Throws Error, naming the field, where something is missing or misshapen.
void add_block(Network& network, const std::string& kind, const Fields& fields);

}  // namespace effv2
