// One call of a network as it comes from outside, of any language: nothing of it is trusted but that memory
// is where an address says.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "engine/network.h"

namespace effv2 {

// Images (N, C, H, W), strides in values; one address per output, see Network::run.
struct Call {
  const void* images;
  std::array<std::int64_t, 4> shape, strides;
  void* const* outputs;
  std::size_t output_count;
  int threads;
  double* seconds = nullptr;  // of every block, where wanted
  int stop = 0;               // after so many blocks; 0 runs the whole network
};

// Throws InputError, or ResolutionError, where the call does not fit the network.
void run(const Network& network, const Call& call);

}  // namespace effv2
