// Arrays of floats, and NumPy's files of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace effv2::runner {

// In C order: the last dimension is innermost.
struct Array {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// "1x3x224x224".
std::string shown(const std::vector<std::int64_t>& shape);

// What a .npy begins with.
inline constexpr char kMagic[] = "\x93NUMPY";
inline constexpr std::size_t kMagicBytes = 6;

// A .npy of little-endian float32 or float16 in C order. Throws Failure.
Array read_npy(const std::string& path);
// In float32. Throws Failure.
void write_npy(const std::string& path, const Array& array);

}  // namespace effv2::runner
