// A network from a file of effv2_kernels.save(), or from such a file's bytes. What is accepted is what
// effv2_kernels.load() accepts, and a test holds the two against each other.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/network.h"

namespace effv2 {

struct LoadedNetwork {
  struct Block {
    std::string kind, name;  // the name is the path of the module that it was read from
  };
  std::unique_ptr<Network> network;
  std::vector<Block> blocks;
  std::string dtype;                // that products' weights are stored in: "fp32" or "fp16"
  bool has_head;                    // the one output is logits, else it is maps
  std::vector<std::string> labels;  // the names of its classes, where the file has them
};

// What is to run a network whose weights are stored in this dtype. May throw.
using ChooseTarget = std::function<const Target&(const std::string& dtype)>;

// name: of the file, for messages. Weights are copied. Throws FormatError, VersionError where the file is of
// another version, OverflowError where a weight is beyond what the target holds, std::bad_alloc, and what
// `choose` throws.
LoadedNetwork load_network(const std::byte* data, std::size_t bytes, const std::string& name,
                           const ChooseTarget& choose);

}  // namespace effv2
