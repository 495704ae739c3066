#include "runner/measure.h"

#include <sys/stat.h>
#ifdef __linux__
#include <link.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <numeric>

namespace effv2::runner {
namespace {

constexpr double kPeakMilliseconds = 200;

#ifdef __linux__
// Of a program that is one piece: of everything that the system loaded for it.
int add_segments(dl_phdr_info* info, std::size_t, void* sum) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type == PT_LOAD)
      *static_cast<std::int64_t*>(sum) += static_cast<std::int64_t>(info->dlpi_phdr[i].p_memsz);
  }
  return 0;
}
#endif

std::int64_t program_bytes() {
  std::int64_t sum = 0;
#ifdef __linux__
  dl_iterate_phdr(add_segments, &sum);
#endif
  return sum;
}

std::int64_t most_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stoll(line.substr(6)) * 1024;
  }
  return 0;
}

}  // namespace

double quantile(const std::vector<double>& values, double q) {
  const double at = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

Latency measure(Call& call, int warmup, int repeat) {
  using Clock = std::chrono::steady_clock;
  for (int i = 0; i < warmup; ++i) call.run();
  std::vector<double> times;
  for (int i = 0; i < repeat; ++i) {
    const auto start = Clock::now();
    call.run();
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  const double mean = std::accumulate(times.begin(), times.end(), 0.0) / repeat;
  return {times.front(),         quantile(times, 0.5), quantile(times, 0.9),
          quantile(times, 0.99), times.back(),         mean};
}

Profile profile(const Network& network, Call& call, const std::vector<std::int64_t>& shape, int warmup,
                int repeat) {
  for (int i = 0; i < warmup; ++i) call.run();
  const auto blocks = static_cast<std::size_t>(network.about().blocks);
  std::vector<std::vector<double>> times(blocks);
  for (int i = 0; i < repeat; ++i) {
    const std::vector<double> seconds = call.profile();
    for (std::size_t block = 0; block < blocks; ++block) times[block].push_back(seconds[block] * 1e3);
  }
  Profile found{network.measure_peak(kPeakMilliseconds), {}};
  for (std::size_t i = 0; i < blocks; ++i) {
    std::sort(times[i].begin(), times[i].end());
    const effv2_block block = network.block(static_cast<int>(i), shape[2], shape[3]);
    const double gflop = 2e-9 * static_cast<double>(block.multiply_adds) * static_cast<double>(shape[0]);
    found.blocks.push_back({block.kind, block.name, block.output, quantile(times[i], 0.5), gflop});
    found.milliseconds += found.blocks.back().milliseconds;
    found.gflop += gflop;
  }
  return found;
}

Memory memory_of(const Network& network, const Call& call, const std::string& path) {
  struct stat file{};
  const std::int64_t mapping = stat(path.c_str(), &file) == 0 ? static_cast<std::int64_t>(file.st_size) : 0;
  return {program_bytes(),
          mapping,
          network.about().packed_bytes,
          network.working_bytes(),
          static_cast<std::int64_t>(call.bytes()),
          most_resident_bytes()};
}

}  // namespace effv2::runner
