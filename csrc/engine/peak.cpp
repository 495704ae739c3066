#include "engine/peak.h"

#include <atomic>
#include <chrono>

#include "engine/threads.h"

namespace effv2 {
namespace {

struct Measurement {
  const Target& target;
  double seconds;
  std::atomic<double> gflops{0};
};

void measure(void* argument, int, int) {
  Measurement& m = *static_cast<Measurement*>(argument);
  using Clock = std::chrono::steady_clock;
  m.target.peak_loop(1 << 14);
  const auto start = Clock::now();
  double multiply_adds = 0, elapsed = 0;
  while (elapsed < m.seconds) {
    multiply_adds += m.target.peak_loop(1 << 14);
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  const double mine = 2 * multiply_adds / elapsed * 1e-9;
  for (double sum = m.gflops.load(); !m.gflops.compare_exchange_weak(sum, sum + mine);) {
  }
}

}  // namespace

double measure_peak(const Target& target, int threads, double milliseconds) {
  Measurement m{target, milliseconds * 1e-3, {}};
  run_on_threads(threads, measure, &m);
  return m.gflops.load();
}

}  // namespace effv2
