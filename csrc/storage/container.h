// The safetensors file that a network is stored in: a header in JSON, and the tensors' bytes behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace effv2 {

struct StoredTensor {
  std::string dtype;  // as the file calls it: "F32", "F16", ...
  std::vector<std::int64_t> shape;
  const std::byte* data;  // at any address
  std::int64_t bytes;
};

// Points into the file's memory.
struct Container {
  std::map<std::string, std::string> metadata;
  std::map<std::string, StoredTensor> tensors;
};

// Throws FormatError where the memory is not one such file from beginning to end: its tensors lie one behind
// the other, and nothing else is there.
Container read_container(const std::byte* data, std::size_t bytes);
// Throws FormatError where a tensor is not of 32-bit or 16-bit floating-point values, as many as its shape
// says.
void check_values(const Container& container);

}  // namespace effv2
