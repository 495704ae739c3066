// One block on one map, run as the engine runs it, and held to everything that a block promises.
#pragma once

#include <string>
#include <vector>

#include "memory.h"
#include "samples.h"

namespace effv2::tests {

// Relative L2 over the output against double precision: in fp32, and where values are stored in halves.
inline constexpr double kBlockBound = 5e-7;
inline constexpr double kNetworkBound = 1e-6;
inline constexpr double kHalfBlockBound = 5e-3;
inline constexpr double kHalfNetworkBound = 2e-2;

// Memory for so many values of the target's format, NaN until it is written.
Guarded room_for(const Target& target, std::int64_t values);
// Floats in the target's format, and back.
Guarded stored(const Target& target, const std::vector<float>& values);
std::vector<float> loaded(const Target& target, const Guarded& memory, std::int64_t count);
// The values that the format keeps of these.
std::vector<float> rounded(const Target& target, const std::vector<float>& values);

// Fails the test, printing the worst element, where the relative L2 distance exceeds the bound, which is of
// many values: n may have 1 + 3 / sqrt(n) of it. So 676 seeds of random inputs had at most 0.8 of what they
// may. With bound 0 every element must be equal.
void check_close(const float* actual, const Exact& expected, double of_many, const std::string& what);

// The map in the strides of `view`, in memory that is NaN wherever the map is not.
struct Strided {
  Guarded memory;
  MapView view;
};
Strided dense_map(const Target& target, const std::vector<float>& x, Map size);
// NCHW, transposed, a window of a larger map, every second pixel and channel.
std::vector<Strided> strided_maps(const Target& target, const std::vector<float>& x, Map size);

// Runs the block on every available target, with teams of 1, 2, 3 and 5 threads, twice in a row:
// - the output is within `bound` of the reference (in fp32), and the same bits for every team and input
// layout;
// - every output is written, and nothing outside of the outputs and of the scratch that was promised;
// - scratch may hold anything before; input and prepared data are only read.
void check_block(const Sample& sample, Map in, const std::vector<float>& x, double bound = kBlockBound);
// The same with a random input.
void check_block(const Sample& sample, int height, int width, Random& random, double bound = kBlockBound);

}  // namespace effv2::tests
