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
#include "targets.h"

namespace effv2::tests {
namespace {

// The choice with EFFV2_FORCE_ISA set to `name` (null: not set), which is put back afterwards.
// Empty, with a reason in `error`, where it is refused with the status of this type.
template <class Refusal = UnavailableError>
std::string chosen_with(const char* name, std::string* error, const Targets& among = targets()) {
  const char* before = std::getenv("EFFV2_FORCE_ISA");
  const std::string kept = before ? before : "";
  if (name) {
    setenv("EFFV2_FORCE_ISA", name, 1);
  } else {
    unsetenv("EFFV2_FORCE_ISA");
  }
  std::string isa;
  try {
    isa = default_isa(among);
  } catch (const Refusal& refusal) {
    *error = refusal.what();
  }
  if (before) {
    setenv("EFFV2_FORCE_ISA", kept.c_str(), 1);
  } else {
    unsetenv("EFFV2_FORCE_ISA");
  }
  return isa;
}

// Why there is no such target among these; empty, and a failure, where it is refused for another kind of
// reason.
template <class Refusal>
std::string refusal(const std::string& isa, const std::string& format, const Targets& among = targets()) {
  try {
    target_named(isa, format, among);
    fail(__FILE__, __LINE__, isa + " was accepted");
  } catch (const Refusal& error) {
    return error.what();
  } catch (const Error& error) {
    fail(__FILE__, __LINE__, error.what());
  }
  return "";
}

bool mentions(const std::string& message, const std::string& part) {
  return message.find(part) != std::string::npos;
}

// As on a processor that is not at hand.
Target pretended(const char* isa, const char* format, bool available) {
  Target target = targets().front();
  target.isa = isa;
  target.format = format;
  target.available = available ? +[] { return true; } : +[] { return false; };
  return target;
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
  if (!adds) {
    const std::string why = refusal<UnavailableError>("neon", "fp16");
    CHECK_THAT(
        mentions(why, "cannot run 'neon' in fp16: on a CPU it needs 64-bit Arm with arithmetic in half"),
        why);
  }
  // fp32 runs on any.
  std::string error;
  for (const char* forced : {static_cast<const char*>(nullptr), "neon"}) {
    CHECK(chosen_with(forced, &error) == "neon");
  }
  CHECK(chosen_with("scalar", &error) == "scalar");
  CHECK(target_named("neon", "fp32").available());
}
#endif

TEST(dispatch, choice) {
  std::string error;
  CHECK(chosen_with(nullptr, &error) == fp32_targets().front()->isa);
  CHECK(chosen_with("", &error) == fp32_targets().front()->isa);
  CHECK(error.empty());
  for (const Target& target : targets()) {
    error.clear();
    const std::string isa = chosen_with(target.isa, &error);
    if (can_run_isa(target.isa)) {  // if only in another format
      CHECK_THAT(isa == target.isa, target.isa);
    } else {
      CHECK(isa.empty());
      CHECK_THAT(mentions(error, "EFFV2_FORCE_ISA") && mentions(error, target.isa), error);
    }
  }
}

TEST(dispatch, unknown_names_are_refused) {
  const std::string listed = "known: avx512, avx2, neon, scalar";
  for (const std::string& name : {std::string("avx1024"), std::string("AVX2"), std::string(1000, 'x')}) {
    std::string forced;
    CHECK(chosen_with<InputError>(name.c_str(), &forced).empty());
    const std::string asked = refusal<InputError>(name, "fp32");
    for (const std::string& why : {forced, asked}) {
      CHECK_THAT(mentions(why, "unknown ISA '" + name.substr(0, 60)) && mentions(why, listed), why);
      CHECK_THAT(mentions(why, "this processor can run " + std::string(fp32_targets().front()->isa)), why);
      CHECK_THAT(why.size() < 300, why);
    }
    CHECK(mentions(forced, "EFFV2_FORCE_ISA") && !mentions(asked, "EFFV2_FORCE_ISA"));
  }
  const std::string why = refusal<InputError>("a\nb\x1b[2J\xc2\x9b", "fp32");
  CHECK_THAT(mentions(why, "'a?b?[2J?'"), why);
}

// It is known, and no mistake: what it is of is said, by its name and by the variable.
TEST(dispatch, isas_of_other_processors) {
#if defined(__x86_64__)
  const std::vector<const char*> isas{"neon"};
  const std::string theirs = "64-bit Arm", ours = "x86-64";
#else
  const std::vector<const char*> isas{"avx512", "avx2"};
  const std::string theirs = "x86-64", ours = "64-bit Arm";
#endif
  for (const char* isa : isas) {
    std::string forced;
    CHECK(chosen_with(isa, &forced).empty());
    for (const char* format : {"fp32", "fp16", "bf16"}) {
      const std::string asked = refusal<UnavailableError>(isa, format);
      CHECK_THAT("EFFV2_FORCE_ISA: " + asked == forced, asked);
      CHECK_THAT(mentions(asked, "'" + std::string(isa) + "' is an ISA of " + theirs), asked);
      CHECK_THAT(mentions(asked, "is " + ours + "; it can run " + fp32_targets().front()->isa), asked);
    }
  }
}

// Processors that are not at hand.
TEST(dispatch, isas_that_a_processor_lacks) {
  const Targets older{pretended("avx512", "fp32", false), pretended("avx512", "bf16", false),
                      pretended("avx2", "fp32", true), pretended("avx2", "bf16", true),
                      pretended("scalar", "fp32", true)};
  std::string forced;
  CHECK(chosen_with("avx512", &forced, older).empty());
  std::string why = refusal<UnavailableError>("avx512", "fp32", older);
  CHECK_THAT(mentions(why, "or its operating system cannot run 'avx512'; it can run avx2, scalar"), why);
  CHECK_THAT("EFFV2_FORCE_ISA: " + why == forced, forced);
  why = refusal<UnavailableError>("avx2", "fp16", older);
  CHECK_THAT(mentions(why,
                      "'avx2' has no fp16: on a CPU it needs 64-bit Arm with arithmetic in half precision "
                      "(FEAT_FP16, from Armv8.2 on); this one can run avx2 (fp32, bf16), scalar (fp32)"),
             why);
  why = refusal<UnavailableError>("scalar", "bf16", older);
  CHECK_THAT(mentions(why, "'scalar' has no bf16: on a CPU it needs x86-64 with AVX2 or AVX-512"), why);

  const Targets cortex_a53{pretended("neon", "fp32", true), pretended("neon", "fp16", false),
                           pretended("scalar", "fp32", true)};
  why = refusal<UnavailableError>("neon", "fp16", cortex_a53);
  CHECK_THAT(mentions(why,
                      "cannot run 'neon' in fp16: on a CPU it needs 64-bit Arm with arithmetic in half "
                      "precision (FEAT_FP16, from Armv8.2 on); this one can run neon (fp32), scalar"),
             why);
  why = refusal<UnavailableError>("neon", "bf16", cortex_a53);
  CHECK_THAT(mentions(why, "'neon' has no bf16: on a CPU it needs x86-64"), why);

  // Builds for sanitizers leave some out.
  const Targets part{pretended("scalar", "fp32", true)};
#if defined(__x86_64__)
  why = refusal<UnavailableError>("avx2", "fp32", part);
#else
  why = refusal<UnavailableError>("neon", "fp32", part);
#endif
  CHECK_THAT(mentions(why, "was left out of this build; it can run scalar"), why);
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
