// What a program does with a file that it was given: for the fuzzer, and for the tests that replay its finds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effv2::tests {

// Loads a network from any bytes through the C ABI and, if it is one, asks it everything and runs it on a
// small image. Returns whether it was one. Ends the process where the ABI breaks a promise.
bool use_file(const std::uint8_t* data, std::size_t bytes);

}  // namespace effv2::tests
