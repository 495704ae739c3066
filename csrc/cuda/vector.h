// What a thread loads and stores at once.
#pragma once

#include "cuda/device.h"

namespace effv2::cuda {

struct alignas(16) Eight {  // values of 16 bits
  Pair pair[4];
};
struct alignas(8) Four {
  Pair pair[2];
};
struct alignas(16) Floats {
  float v[4];
};

EFFV2_DEVICE Eight zeros() { return {{0, 0, 0, 0}}; }

// Eight floats that nobody writes during the launch.
EFFV2_DEVICE void load_floats(float (&to)[8], const float* from) {
  EFFV2_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Floats part = load_constant<Floats>(from + 4 * i);
    EFFV2_UNROLL
    for (int j = 0; j < 4; ++j) to[4 * i + j] = part.v[j];
  }
}

template <class T>
EFFV2_DEVICE void unpack(float (&to)[8], const Eight& from) {
  EFFV2_UNROLL
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = low<T>(from.pair[i]);
    to[2 * i + 1] = high<T>(from.pair[i]);
  }
}

}  // namespace effv2::cuda
