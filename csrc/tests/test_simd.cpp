// The vector operations of every ISA, and code of ISAs that the processor lacks.
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

#ifdef EFFV2_NEON_EMULATED
namespace effv2::neon_emulated_fp32 {
void check_simd(std::uint64_t seed, const tests::Mismatch& mismatch);
}
namespace effv2::neon_emulated_fp16 {
void check_simd(std::uint64_t seed, const tests::Mismatch& mismatch);
}
#endif

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

#ifdef EFFV2_NEON_EMULATED
// Where no engine has them: NEON's headers over portable intrinsics, which take AVX2.
TEST(simd, neon_emulated) {
  if (!can_run_isa("avx2")) return note("skipped: this processor has no AVX2");
  const auto check = [](const char* format, void (*cases)(std::uint64_t, const Mismatch&)) {
    cases(test_seed(),
          [&](const std::string& what) { CHECK_THAT(false, std::string(format) + ": " + what); });
  };
  check("fp32", neon_emulated_fp32::check_simd);
  check("fp16", neon_emulated_fp16::check_simd);
}
#endif

// ISAs that give the same bits: emulated instructions and the real ones, and such as add in the same order.
// The polynomial of a GELU has another order on NEON.
TEST(simd, same_bits) {
  Random random;
  const Map size{70, 51, 3};
  const NetworkSample gelu = small_network(random, size.height, size.width);
  NetworkSample silu = gelu;
  for (Sample& block : silu.blocks) {
    if (block.kind != "conv" && block.kind != "head") {
      block.options["activation"] = static_cast<std::int64_t>(Activation::silu);
    }
  }
  std::vector<float> values = random.normal(4 * size.values());
  values[static_cast<std::size_t>(size.values())] = std::numeric_limits<float>::quiet_NaN();
  values[static_cast<std::size_t>(2 * size.values())] = std::numeric_limits<float>::infinity();
  const Batch batch = batch_of(values, 4, size, nchw(size));
  const struct {
    const char *one, *other;
    const NetworkSample& sample;
  } pairs[] = {{"avx512", "avx512_emulated", gelu}, {"avx2", "neon_emulated", silu}};
  for (const auto& [one, other, sample] : pairs) {
    const Target *a = find_target(one, "fp32"), *b = find_target(other, "fp32");
    const std::string what = std::string(one) + " and " + other;
    if (!a || !b || !a->available() || !b->available()) {
      note("not compared, as one is not here: " + what);
      continue;
    }
    CHECK_THAT(same_values(run_network(sample, *sample.build(*a), batch.images, 2, one),
                           run_network(sample, *sample.build(*b), batch.images, 2, other)),
               what);
  }
}

}  // namespace effv2::tests
