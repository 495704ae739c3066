// Starts kernels: on a GPU by launch.cu, in tests by the emulator.
#pragma once

#include <cstdint>

#include "cuda/step.h"

namespace effv2::cuda {

// Of a step as planned.
struct Extent {
  int tiles;  // blocks of threads
  int threads, shared_bytes;
};
// {0, 0, 0} for a shape that there is not, or whose registers do not hold a tile.
Extent extent_of(const Step& step);

// Throws std::runtime_error with what the driver says.
void launch(const Step& step, const Buffers& buffers, void* stream);

}  // namespace effv2::cuda
