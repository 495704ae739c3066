// The vector operations of every ISA, and AVX-512's code on a processor without it.
#include <cmath>
#include <cstring>
#include <limits>

#include "networks.h"
#include "run_block.h"
#include "simd_cases.h"

#define X(the_isa, the_format)                                            \
  namespace effv2::the_isa##_##the_format {                               \
    void check_simd(std::uint64_t seed, const tests::Mismatch& mismatch); \
  }
#include "targets.inc"
#undef X

namespace effv2::tests {
namespace {

struct Cases {
  const char *isa, *format;
  void (*check)(std::uint64_t, const Mismatch&);
};
constexpr Cases kCases[] = {
#define X(the_isa, the_format) {#the_isa, #the_format, the_isa##_##the_format::check_simd},
#include "targets.inc"
#undef X
};

// With a NaN equal to a NaN.
bool same_values(const Outputs& a, const Outputs& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size()) return false;
    for (std::size_t at = 0; at < a[i].size(); ++at) {
      const float x = a[i][at], y = b[i][at];
      if (std::isnan(x) && std::isnan(y)) continue;
      if (std::memcmp(&x, &y, sizeof x) != 0) return false;
    }
  }
  return true;
}

}  // namespace

TEST(simd, definitions) {
  std::size_t checked = 0;
  for (const Target* target : available_targets()) {
    for (const Cases& cases : kCases) {
      if (find_target(cases.isa, cases.format) != target) continue;
      ++checked;
      cases.check(test_seed(), [&](const std::string& what) {
        CHECK_THAT(false, std::string(target->isa) + " " + target->format + ": " + what);
      });
    }
  }
  CHECK(checked == available_targets().size());
}

// The emulated instructions give the bits of the real ones, where the processor has both.
TEST(simd, emulated_as_real) {
  const Target *real = find_target("avx512", "fp32"), *emulated = find_target("avx512_emulated", "fp32");
  if (!real || !emulated || !real->available() || !emulated->available()) {
    note("not compared: this needs AVX-512 and its emulation");
    return;
  }
  Random random;
  const Map size{70, 51, 3};
  const NetworkSample sample = small_network(random, size.height, size.width);
  std::vector<float> values = random.normal(4 * size.values());
  values[static_cast<std::size_t>(size.values())] = std::numeric_limits<float>::quiet_NaN();
  values[static_cast<std::size_t>(2 * size.values())] = std::numeric_limits<float>::infinity();
  const Batch batch = batch_of(values, 4, size, nchw(size));
  CHECK(same_values(run_network(sample, *sample.build(*real), batch.images, 2, real->isa),
                    run_network(sample, *sample.build(*emulated), batch.images, 2, emulated->isa)));
}

}  // namespace effv2::tests
