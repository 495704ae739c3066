// The vector operations of every ISA, and AVX-512's code on a processor without it.
#include <cmath>
#include <cstring>
#include <limits>

#include "networks.h"
#include "run_block.h"
#include "simd_cases.h"

#define EFFV2_DECLARE_CASES(isa)                                        \
  namespace effv2::isa {                                                \
  void check_simd(std::uint64_t seed, const tests::Mismatch& mismatch); \
  }
EFFV2_DECLARE_CASES(scalar)
#ifdef EFFV2_WITH_AVX2
EFFV2_DECLARE_CASES(avx2)
#endif
#ifdef EFFV2_WITH_AVX512
EFFV2_DECLARE_CASES(avx512)
#endif
#ifdef EFFV2_WITH_AVX512_EMULATED
EFFV2_DECLARE_CASES(avx512_emulated)
#endif

namespace effv2::tests {
namespace {

struct Cases {
  const char* isa;
  void (*check)(std::uint64_t, const Mismatch&);
};
constexpr Cases kCases[] = {
    {"scalar", scalar::check_simd},
#ifdef EFFV2_WITH_AVX2
    {"avx2", avx2::check_simd},
#endif
#ifdef EFFV2_WITH_AVX512
    {"avx512", avx512::check_simd},
#endif
#ifdef EFFV2_WITH_AVX512_EMULATED
    {"avx512_emulated", avx512_emulated::check_simd},
#endif
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
  for (const Isa* isa : available_isas()) {
    for (const Cases& cases : kCases) {
      if (std::strcmp(cases.isa, isa->name) != 0) continue;
      ++checked;
      cases.check(test_seed(),
                  [&](const std::string& what) { CHECK_THAT(false, isa->name + (": " + what)); });
    }
  }
  CHECK(checked == available_isas().size());
}

// The emulated instructions give the bits of the real ones, where the processor has both.
TEST(simd, emulated_as_real) {
  const Isa *real = find_isa("avx512"), *emulated = find_isa("avx512_emulated");
  if (!real || !emulated || !real->available() || !emulated->available()) {
    note("not compared: this needs AVX-512 and its emulation");
    return;
  }
  Random random;
  const Map size{70, 51, 3};
  const NetworkSample sample = small_network(random, size.height, size.width);
  std::vector<float> values = random.normal(4 * size.floats());
  values[static_cast<std::size_t>(size.floats())] = std::numeric_limits<float>::quiet_NaN();
  values[static_cast<std::size_t>(2 * size.floats())] = std::numeric_limits<float>::infinity();
  const Batch batch = batch_of(values, 4, size, nchw(size));
  CHECK(same_values(run_network(sample, *sample.build(*real), batch.images, 2, real->name),
                    run_network(sample, *sample.build(*emulated), batch.images, 2, emulated->name)));
}

}  // namespace effv2::tests
