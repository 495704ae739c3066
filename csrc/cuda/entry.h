// Compiled kernels, for who starts them.
#pragma once

#include <atomic>
#include <cstdint>

#include "cuda/step.h"

namespace effv2::cuda {

struct Entry {
  const void* function;  // as the runtime knows it; takes the step's parameters and the buffers
  std::atomic<std::uint64_t>* prepared;  // a bit for each device on which it may take all shared memory
};

// What a compilation of kernels.cu is called.
#define EFFV2_ENTRY_NAME(kind, format) entry_of_##kind##_##format

}  // namespace effv2::cuda
