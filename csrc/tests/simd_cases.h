// What each ISA's simd_cases.cpp offers to test_simd.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#define EFFV2_TEXT_OF(name) #name
#define EFFV2_TEXT(name) EFFV2_TEXT_OF(name)

namespace effv2::tests {

using Mismatch = std::function<void(const std::string&)>;

}  // namespace effv2::tests
