// How long calls take, and what memory they take.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "runner/network.h"

namespace effv2::runner {

// Of times in milliseconds.
struct Latency {
  double min, p50, p90, p99, max, mean;
};

// q: between 0 and 1; between two values in proportion. values: sorted, at least one.
double quantile(const std::vector<double>& values, double q);
Latency measure(Call& call, int warmup, int repeat);

inline double gflops_of(double gflop, double milliseconds) { return gflop / milliseconds * 1e3; }

struct BlockTime {
  std::string kind, name;
  effv2_shape output;
  double milliseconds;  // median of the runs
  double gflop;         // of the batch; a multiply-add counts two
};

struct Profile {
  double peak_gflops;  // in fp32, of all threads
  std::vector<BlockTime> blocks;
  double milliseconds = 0, gflop = 0;  // of all blocks
};

Profile profile(const Network& network, Call& call, const std::vector<std::int64_t>& shape, int warmup,
                int repeat);

// In bytes. Not counted are what is short-lived, such as the weights of one block before they are packed and
// the picture of a file, and the threads' stacks.
struct Memory {
  std::int64_t program, mapping, packed_weights, arena, images_and_outputs;
  std::int64_t system;  // the most that the process had, as Linux counts it; 0 where it does not say
  // The file is mapped only while it is loaded, and the others are made afterwards.
  std::int64_t loading() const { return program + mapping + packed_weights; }
  std::int64_t running() const { return program + packed_weights + arena + images_and_outputs; }
  std::int64_t peak() const { return std::max(loading(), running()); }
};

Memory memory_of(const Network& network, const Call& call, const std::string& path);

}  // namespace effv2::runner
