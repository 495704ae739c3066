// The table of ISAs, the choice among them, and EFFV2_FORCE_ISA.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "engine/peak.h"
#include "engine/threads.h"

namespace effv2::tests {
namespace {

// The choice with EFFV2_FORCE_ISA set to `name` (null: not set), which is put back afterwards.
const Isa* chosen_with(const char* name, char* error) {
  const char* before = std::getenv("EFFV2_FORCE_ISA");
  const std::string kept = before ? before : "";
  if (name) {
    setenv("EFFV2_FORCE_ISA", name, 1);
  } else {
    unsetenv("EFFV2_FORCE_ISA");
  }
  const Isa* isa = default_isa(error);
  if (before) {
    setenv("EFFV2_FORCE_ISA", kept.c_str(), 1);
  } else {
    unsetenv("EFFV2_FORCE_ISA");
  }
  return isa;
}

}  // namespace

TEST(dispatch, table) {
  int count = 0;
  const Isa* table = isa_table(&count);
  CHECK(count >= 1);
  for (int i = 0; i < count; ++i) {
    CHECK_THAT(find_isa(table[i].name) == &table[i], table[i].name);
    CHECK(table[i].peak_loop);
#define EFFV2_CHECK_FACTORY(kind, Spec) CHECK(table[i].kind);
    EFFV2_BLOCKS(EFFV2_CHECK_FACTORY)
#undef EFFV2_CHECK_FACTORY
  }
  const Isa* scalar = find_isa("scalar");
  CHECK_THAT(scalar == &table[count - 1], "scalar must be there, and the last choice");
  CHECK(scalar && scalar->available());
  for (const char* unknown : {"", "avx", "AVX2", "avx512f", "scalar ", "neon2"})
    CHECK_THAT(!find_isa(unknown), unknown);
}

TEST(dispatch, available_isas_are_those_of_the_processor) {
#if defined(__x86_64__)
  const Isa* avx2 = find_isa("avx2");
  const Isa* avx512 = find_isa("avx512");
  CHECK(avx2 && avx2->available() == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
  CHECK(avx512 && (!avx512->available() || __builtin_cpu_supports("avx512f")));
#endif
  std::string names;
  for (const Isa* isa : available_isas()) names += std::string(names.empty() ? "" : ", ") + isa->name;
  note("tested here: " + names);
}

TEST(dispatch, choice) {
  char error[256] = "";
  CHECK(chosen_with(nullptr, error) == available_isas().front());
  CHECK(chosen_with("", error) == available_isas().front());
  CHECK(error[0] == '\0');

  int count = 0;
  const Isa* table = isa_table(&count);
  for (int i = 0; i < count; ++i) {
    error[0] = '\0';
    const Isa* isa = chosen_with(table[i].name, error);
    if (table[i].available()) {
      CHECK_THAT(isa == &table[i], table[i].name);
    } else {
      CHECK(isa == nullptr);
      CHECK_THAT(std::strstr(error, table[i].name) != nullptr, error);
    }
  }
}

TEST(dispatch, unknown_names_are_refused) {
  for (const std::string& name : {std::string("avx1024"), std::string("AVX2"), std::string(1000, 'x')}) {
    char error[256];
    std::memset(error, 1, sizeof error);
    CHECK(chosen_with(name.c_str(), error) == nullptr);
    CHECK_THAT(std::memchr(error, '\0', sizeof error) != nullptr, "the message has no end");
    CHECK(std::strstr(error, "EFFV2_FORCE_ISA") && std::strstr(error, name.substr(0, 60).c_str()));
  }
}

TEST(dispatch, peak) {
  for (const Isa* isa : available_isas()) {
    const double once = isa->peak_loop(100), twice = isa->peak_loop(200);
    CHECK(once > 0 && twice == 2 * once);
    for (const int threads : {1, 2}) {
      const double gflops = measure_peak(*isa, threads, 5);
      CHECK_THAT(std::isfinite(gflops) && gflops > 0, isa->name);
    }
  }
}

}  // namespace effv2::tests
