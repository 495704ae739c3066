// The machine's peak, as a yardstick for everything else.
#pragma once

#include "engine/target.h"

namespace effv2 {

// fp32 multiply-add GFLOP/s of `threads` threads together, measured for about `milliseconds`.
double measure_peak(const Target& target, int threads, double milliseconds);

}  // namespace effv2
