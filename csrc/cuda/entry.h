// Compiled kernels, for who starts them.
#pragma once

#include <atomic>
#include <cstdint>

namespace effv2::cuda {

struct Entry {
  const void* function;                  // as the runtime knows it; takes parameters and buffers
  std::atomic<std::uint64_t>* prepared;  // a bit for each device on which it may take all shared memory
};

// What compilations of kernels.cu and network.cu are called.
#define EFFV2_ENTRY_NAME(kind, format) entry_of_##kind##_##format
#define EFFV2_ENTRY(kind, format) EFFV2_ENTRY_NAME(kind, format)

}  // namespace effv2::cuda
