// The list of tasks of a network that runs in one launch.
#pragma once

#include <vector>

#include "cuda/network.h"

namespace effv2::cuda {

struct Schedule {
  std::vector<Task> tasks;
  std::vector<std::uint32_t> parts;  // of each flag
  int largest = 0;                   // bytes of shared memory

  std::size_t control_bytes() const { return sizeof(std::uint64_t) + parts.size() * sizeof(std::uint32_t); }
};

// Of steps in their order, each of which makes a map of its own in one of a call's buffers. Throws
// std::invalid_argument for a shape that the one launch has not.
Schedule make_schedule(const std::vector<Step>& steps);

// Whether the one launch has the shape that a step is for.
bool has_shape(const Step& step);

}  // namespace effv2::cuda
