#include "engine/cores.h"

#include <algorithm>
#include <fstream>

#include "engine/threads.h"

namespace effv2 {
namespace {

// What a file of each processor's folder says; empty where one has none that is a positive number.
std::vector<long> figures(const std::string& folder, const std::vector<int>& processors, const char* file) {
  std::vector<long> found;
  for (const int processor : processors) {
    std::ifstream opened(folder + "/cpu" + std::to_string(processor) + "/" + file);
    long figure = 0;
    if (!(opened >> figure) || figure <= 0) return {};
    found.push_back(figure);
  }
  return found;
}

// A figure counts if it is at least this share of the largest.
struct Source {
  const char* file;
  double share;
};
constexpr Source kSources[] = {{"cpu_capacity", 1.0 / 3.0}, {"cpufreq/cpuinfo_max_freq", 0.8}};

}  // namespace

int fast_cores(const std::string& folder, const std::vector<int>& processors) {
  for (const Source& source : kSources) {
    const std::vector<long> found = figures(folder, processors, source.file);
    if (found.empty()) continue;
    const double least = source.share * static_cast<double>(*std::max_element(found.begin(), found.end()));
    const auto fast = [&](long figure) { return static_cast<double>(figure) >= least; };
    return static_cast<int>(std::count_if(found.begin(), found.end(), fast));
  }
  return static_cast<int>(processors.size());
}

int default_threads() {
  const int usable = usable_cpus();
  const std::vector<int> processors = usable_processors();
  if (processors.empty()) return usable;
  return std::min(usable, fast_cores("/sys/devices/system/cpu", processors));
}

}  // namespace effv2
