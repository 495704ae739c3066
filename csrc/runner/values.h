// Floats as values of a network's dtype, and back.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace effv2::runner {

// Rounded to nearest, ties to even. Throws Failure where a finite value is beyond what the dtype holds.
std::vector<std::byte> encoded(const std::vector<float>& values, const std::string& dtype);
// Exactly.
std::vector<float> decoded(const std::vector<std::byte>& values, const std::string& dtype);

}  // namespace effv2::runner
