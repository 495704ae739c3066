// A saved network's bytes, as effv2_kernels.save() writes them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "networks.h"

namespace effv2::tests {

// The header's fields may be changed before it is written.
struct Saved {
  nlohmann::json header;  // safetensors': __metadata__ and every tensor
  std::string values;     // of all tensors

  explicit Saved(const NetworkSample& sample);
  nlohmann::json structure() const;
  void set_structure(const nlohmann::json& structure);
  std::string bytes() const;
};

}  // namespace effv2::tests
