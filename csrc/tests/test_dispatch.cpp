// The table of ISAs, the choice among them, and EFFV2_FORCE_ISA.
#include <setjmp.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "engine/errors.h"
#include "engine/peak.h"
#include "engine/threads.h"

namespace effv2::tests {
namespace {

// The choice with EFFV2_FORCE_ISA set to `name` (null: not set), which is put back afterwards.
std::string chosen_with(const char* name, char* error) {
  const char* before = std::getenv("EFFV2_FORCE_ISA");
  const std::string kept = before ? before : "";
  if (name) {
    setenv("EFFV2_FORCE_ISA", name, 1);
  } else {
    unsetenv("EFFV2_FORCE_ISA");
  }
  const char* isa = default_isa(error);
  if (before) {
    setenv("EFFV2_FORCE_ISA", kept.c_str(), 1);
  } else {
    unsetenv("EFFV2_FORCE_ISA");
  }
  return isa ? isa : "";
}

}  // namespace

TEST(dispatch, table) {
  CHECK(!targets().empty());
  for (const Target& target : targets()) {
    const std::string name = std::string(target.isa) + " " + target.format;
    CHECK_THAT(find_target(target.isa, target.format) == &target, name);
    CHECK_THAT(knows_isa(target.isa) && can_run_isa(target.isa) >= target.available(), name);
    CHECK_THAT(target.value_bytes == (std::strcmp(target.format, "fp32") == 0 ? 4 : 2), name);
    CHECK(target.peak_loop && target.scale_and_shift && target.copy_rows);
#define EFFV2_CHECK_FACTORY(kind, Spec) CHECK(target.kind);
    EFFV2_BLOCKS(EFFV2_CHECK_FACTORY)
#undef EFFV2_CHECK_FACTORY
  }
#ifndef EFFV2_WITHOUT_SCALAR  // as only a sanitizer's build is
  const Target* scalar = find_target("scalar", "fp32");
  CHECK_THAT(scalar == &targets().back(), "scalar must be there, and the last choice");
  CHECK(scalar && scalar->available());
#endif
  CHECK_THAT(!find_target("scalar", "bf16"), "scalar code would be too slow to convert");
  for (const char* unknown : {"", "avx", "AVX2", "avx512f", "scalar ", "neon2"}) {
    CHECK_THAT(!knows_isa(unknown) && !find_target(unknown, "fp32"), unknown);
  }
  for (const char* unknown : {"", "fp16", "FP32", "bf16 "})
    CHECK_THAT(!find_target("scalar", unknown), unknown);
}

TEST(dispatch, available_isas_are_those_of_the_processor) {
#if defined(__x86_64__)
  CHECK(can_run_isa("avx2") == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
  CHECK(!can_run_isa("avx512") || __builtin_cpu_supports("avx512f"));
#endif
  std::string names;
  for (const Target* target : available_targets()) {
    names += std::string(names.empty() ? "" : ", ") + target->isa + " " + target->format;
  }
  note("tested here: " + names);
}

#if defined(__aarch64__) && defined(__linux__)
// Whatever the system says of the processor: what happens when it is told to add halves.
static sigjmp_buf before_the_sum;
static bool adds_halves() {
  struct sigaction found, ours{};
  ours.sa_handler = [](int) { siglongjmp(before_the_sum, 1); };
  sigaction(SIGILL, &ours, &found);
  volatile bool adds = false;
  if (sigsetjmp(before_the_sum, 1) == 0) {
    asm volatile(".inst 0x4e401400" ::: "v0");  // fadd v0.8h, v0.8h, v0.8h
    adds = true;
  }
  sigaction(SIGILL, &found, nullptr);
  return adds;
}

TEST(dispatch, fp16_where_the_processor_adds_halves) {
  const Target* target = find_target("neon", "fp16");
  const bool adds = adds_halves();
  note(adds ? "this processor adds halves" : "this processor adds no halves");
  CHECK(target && target->available() == adds);
  std::string refusal;
  try {
    target_named("neon", "fp16");
  } catch (const UnavailableError& error) {
    refusal = error.what();
  }
  CHECK_THAT(refusal == (adds ? "" : "this processor or operating system cannot run 'neon' in fp16"),
             refusal);
  // fp32 runs on any.
  char error[256] = "";
  for (const char* forced : {static_cast<const char*>(nullptr), "neon"}) {
    CHECK(chosen_with(forced, error) == "neon");
  }
  CHECK(chosen_with("scalar", error) == "scalar");
  CHECK(target_named("neon", "fp32").available());
}
#endif

TEST(dispatch, choice) {
  char error[256] = "";
  CHECK(chosen_with(nullptr, error) == fp32_targets().front()->isa);
  CHECK(chosen_with("", error) == fp32_targets().front()->isa);
  CHECK(error[0] == '\0');
  for (const Target& target : targets()) {
    error[0] = '\0';
    const std::string isa = chosen_with(target.isa, error);
    if (can_run_isa(target.isa)) {  // if only in another format
      CHECK_THAT(isa == target.isa, target.isa);
    } else {
      CHECK(isa.empty());
      CHECK_THAT(std::strstr(error, target.isa) != nullptr, error);
    }
  }
}

TEST(dispatch, unknown_names_are_refused) {
  for (const std::string& name : {std::string("avx1024"), std::string("AVX2"), std::string(1000, 'x')}) {
    char error[256];
    std::memset(error, 1, sizeof error);
    CHECK(chosen_with(name.c_str(), error).empty());
    CHECK_THAT(std::memchr(error, '\0', sizeof error) != nullptr, "the message has no end");
    CHECK(std::strstr(error, "EFFV2_FORCE_ISA") && std::strstr(error, name.substr(0, 60).c_str()));
  }
}

TEST(dispatch, peak) {
  for (const Target* target : fp32_targets()) {
    const double once = target->peak_loop(100), twice = target->peak_loop(200);
    CHECK(once > 0 && twice == 2 * once);
    for (const int threads : {1, 2}) {
      const double gflops = measure_peak(*target, threads, 5);
      CHECK_THAT(std::isfinite(gflops) && gflops > 0, target->isa);
    }
  }
}

}  // namespace effv2::tests
