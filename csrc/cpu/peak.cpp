// The most multiply-adds the processor can do: every accumulator register busy, no memory touched.
#include "cpu/target.h"

namespace effv2::EFFV2_TARGET {

// Returns the multiply-adds done (per lane and accumulator, `steps` times).
double peak_loop(long steps) {
  constexpr int kAccumulators = kTileRows * kTileVectors;
  Vec sum[kAccumulators];
#pragma GCC unroll 32
  for (int i = 0; i < kAccumulators; ++i) sum[i] = set1(static_cast<float>(i));
  Vec x = set1(0.999f), y = set1(0.001f);
  for (long step = 0; step < steps; ++step) {
    // Opaque to the compiler: otherwise it may compute the loop in closed form.
    asm volatile("" : "+m"(*reinterpret_cast<char*>(&step)));
#pragma GCC unroll 32
    for (int i = 0; i < kAccumulators; ++i) sum[i] = fma(sum[i], x, y);
  }
  Vec total = zero();
#pragma GCC unroll 32
  for (int i = 0; i < kAccumulators; ++i) total = add(total, sum[i]);
  volatile float sink = reduce_add(total);
  static_cast<void>(sink);
  return static_cast<double>(steps) * kAccumulators * kLanes;
}

}  // namespace effv2::EFFV2_TARGET
