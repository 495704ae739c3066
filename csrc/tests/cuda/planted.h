// How the emulator itself is tested: what is right runs, whatever the order, and planted faults of every kind
// that it claims to find are found. Kernels are lambdas, run by every thread.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "../check.h"
#include "cuda/device.h"
#include "memory.h"

namespace effv2::tests {

using namespace effv2::cuda;
using emulator::Array;
using emulator::Config;
using Kernel = std::function<void()>;

inline constexpr unsigned kSeeds[] = {0, 1, 2, 3, 4, 5};

struct Shape {
  int blocks = 1, threads = 32;
  std::size_t shared = 4096;
  int resident = 1 << 20;
};

// What a launch was ended for; empty if it was not.
inline std::string error_of(const Shape& shape, const Kernel& kernel) {
  emulator::config.resident = shape.resident;
  try {
    emulator::launch(shape.blocks, shape.threads, shape.shared, kernel);
    return "";
  } catch (const emulator::Error& error) {
    return error.what();
  }
}

// In every order of threads, with copies early and late, watched and not.
inline void everywhere(const std::function<void()>& body) {
  for (const bool watched : {false, true}) {
    for (const unsigned seed : kSeeds) {
      emulator::config = Config{};
      emulator::config.seed = seed;
      emulator::config.early_copies = seed % 2;
      emulator::config.watch = watched;
      body();
    }
  }
  emulator::config = Config{};
}
inline void watched_everywhere(const std::function<void()>& body) {
  everywhere([&] {
    if (emulator::config.watch) body();
  });
}

inline void is_right(const Shape& shape, const Kernel& kernel) {
  const std::string error = error_of(shape, kernel);
  CHECK_THAT(error.empty(), error);
}
// Ends with one of these words, which are apart by '|'.
inline void is_wrong(const Shape& shape, const std::string& words, const Kernel& kernel) {
  const std::string error = error_of(shape, kernel);
  for (std::size_t begin = 0; begin <= words.size();) {
    const std::size_t end = std::min(words.find('|', begin), words.size());
    if (error.find(words.substr(begin, end - begin)) != std::string::npos) return;
    begin = end + 1;
  }
  CHECK_THAT(false, words + ": " + (error.empty() ? "nothing was found" : error));
}

inline constexpr char kUnordered[] = "not ordered|nobody has written there";

}  // namespace effv2::tests
