// How many threads are started by default, on processors that this machine does not have.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "check.h"
#include "engine/cores.h"
#include "engine/threads.h"

namespace effv2::tests {
namespace {

// A folder like /sys/devices/system/cpu, with a file for each processor: what it says, none where it is
// empty.
class FakeSystem {
 public:
  FakeSystem() {
    std::string name = (std::filesystem::temp_directory_path() / "effv2_coresXXXXXX").string();
    if (!mkdtemp(name.data())) fail(__FILE__, __LINE__, "no folder can be made");
    folder_ = name;
  }
  ~FakeSystem() { std::filesystem::remove_all(folder_); }

  FakeSystem& with(const std::string& file, const std::vector<std::string>& says) {
    for (std::size_t i = 0; i < says.size(); ++i) {
      if (says[i].empty()) continue;
      const auto path = folder_ / ("cpu" + std::to_string(i)) / file;
      std::filesystem::create_directories(path.parent_path());
      std::ofstream(path) << says[i] << "\n";
    }
    return *this;
  }
  int fast(const std::vector<int>& processors) const { return fast_cores(folder_.string(), processors); }

 private:
  std::filesystem::path folder_;
};

std::vector<int> first(int count) {
  std::vector<int> processors(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) processors[static_cast<std::size_t>(i)] = i;
  return processors;
}

constexpr const char* kCapacity = "cpu_capacity";
constexpr const char* kFrequency = "cpufreq/cpuinfo_max_freq";

}  // namespace

TEST(cores, small_ones_are_left_out) {
  // Four small, two middle, two fast, as on a Pixel 6.
  FakeSystem system;
  system.with(kCapacity, {"160", "160", "160", "160", "498", "498", "1024", "1024"});
  CHECK(system.fast(first(8)) == 4);
  // A process that may run on some only.
  CHECK(system.fast({0, 1, 2, 3}) == 4);
  CHECK(system.fast({0, 4, 5, 6}) == 3);
  CHECK(system.fast({3, 6}) == 1);
  CHECK(system.fast({}) == 0);
}

TEST(cores, capacity_says_more_than_frequency) {
  FakeSystem system;
  system.with(kCapacity, {"250", "250", "1024", "1024"})
      .with(kFrequency, {"2000000", "2000000", "2000000", "2000000"});
  CHECK(system.fast(first(4)) == 2);
}

TEST(cores, frequencies) {
  FakeSystem system;
  system.with(kFrequency,
              {"1803000", "1803000", "1803000", "1803000", "2253000", "2253000", "2802000", "2802000"});
  CHECK(system.fast(first(8)) == 4);
}

TEST(cores, alike) {
  CHECK(FakeSystem().fast(first(6)) == 6);
  CHECK(FakeSystem().with(kCapacity, {"1024", "1024", "1024"}).fast(first(3)) == 3);
  CHECK(FakeSystem().with(kFrequency, {"3700000", "3700000"}).fast(first(2)) == 2);
}

TEST(cores, what_is_no_figure_says_nothing) {
  for (const char* odd : {"", "none", "-5", "0"}) {
    FakeSystem system;
    system.with(kCapacity, {"1024", odd, "100"});
    CHECK_THAT(system.fast(first(3)) == 3, odd);
    system.with(kFrequency, {"3000000", "3000000", "1000000"});
    CHECK_THAT(system.fast(first(3)) == 2, odd);
  }
}

TEST(cores, of_this_machine) {
  const std::vector<int> processors = usable_processors();
  CHECK(static_cast<int>(processors.size()) == usable_cpus());
  CHECK(std::is_sorted(processors.begin(), processors.end()));
  CHECK(default_threads() >= 1 && default_threads() <= usable_cpus());
}

}  // namespace effv2::tests
