// The C ABI as tests call it: a network of a file in memory, and the reasons that are given.
#pragma once

#include <string>

#include "effv2.h"
#include "saved.h"

namespace effv2::tests {

inline constexpr int kHeight = 40, kWidth = 56;
inline constexpr Map kSize{kHeight, kWidth, 3};

// For images of this size.
NetworkSample sample_with_head();

// A network of a file in memory.
struct Loaded {
  effv2_network* network = nullptr;
  explicit Loaded(const std::string& bytes, const char* dtype = nullptr, const char* isa = nullptr);
  ~Loaded() { effv2_free(network); }
};

effv2_images images_of(const Images& x);

// The reason that was given with this status; empty, and a failure, for another one.
std::string reason(effv2_status expected, effv2_status status);
bool mentions(const std::string& message, const std::string& part);

effv2_description describe(const effv2_network* network);

}  // namespace effv2::tests
