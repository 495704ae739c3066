#include "cpu/dispatch.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "cpu/processor_name.h"
#include "cpu/target_row.h"
#include "engine/errors.h"

namespace effv2 {

#if defined(__x86_64__)
// The compiler's run-time checks include the operating system's part (XCR0).
[[maybe_unused]] static bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
[[maybe_unused]] static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
// For tests: code of ISAs that the processor lacks.
[[maybe_unused]] static bool has_avx512_emulated() { return has_avx2(); }
[[maybe_unused]] static bool has_neon_emulated() { return has_avx2(); }
#endif
#if defined(__aarch64__)
[[maybe_unused]] static bool has_neon() { return true; }
#endif
static bool has_scalar() { return true; }

// What a format asks of the processor beyond its instruction set.
static bool computes_fp32() { return true; }
[[maybe_unused]] static bool computes_bf16() { return true; }
[[maybe_unused]] static bool computes_fp16() {
#if defined(__aarch64__) && defined(__APPLE__)
  int has = 0;
  std::size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_FP16", &has, &size, nullptr, 0) == 0 && has;
#elif defined(__aarch64__)
  constexpr unsigned long kVectorsOfHalves = 1ul << 10;  // HWCAP_ASIMDHP
  return getauxval(AT_HWCAP) & kVectorsOfHalves;
#else
  return true;  // emulated
#endif
}

// The build lists the targets of an engine, best ISA first: X(isa, format).
#define X(the_isa, the_format) \
  EFFV2_TARGET_ROW(the_isa, the_format, [] { return has_##the_isa() && computes_##the_format(); })
#include "targets.inc"
#undef X

const std::vector<Target>& targets() {
#define X(the_isa, the_format) the_isa##_##the_format::row(),
  static const std::vector<Target> table{
#include "targets.inc"
  };
#undef X
  return table;
}

const Target* find_target(const char* isa, const char* format, const Targets& among) {
  for (const Target& target : among) {
    if (std::strcmp(target.isa, isa) == 0 && std::strcmp(target.format, format) == 0) return &target;
  }
  return nullptr;
}

// Its first format's, which asks for no more than the instruction set.
static const Target* first_of(const std::string& isa, const Targets& among) {
  for (const Target& target : among) {
    if (isa == target.isa) return &target;
  }
  return nullptr;
}
bool knows_isa(const char* isa) { return first_of(isa, targets()) != nullptr; }
bool can_run_isa(const char* isa) {
  const Target* target = first_of(isa, targets());
  return target && target->available();
}

namespace {

#if defined(__x86_64__)
constexpr const char* kArchitecture = "x86-64";
#elif defined(__aarch64__)
constexpr const char* kArchitecture = "64-bit Arm";
#else
constexpr const char* kArchitecture = "neither x86-64 nor 64-bit Arm";
#endif

// Those of every build, and whose they are: a build has the ones of its own processors alone.
struct Known {
  const char *isa, *architecture;
};
constexpr Known kKnown[] = {
    {"avx512", "x86-64"}, {"avx2", "x86-64"}, {"neon", "64-bit Arm"}, {"scalar", kArchitecture}};

// What a format asks of a processor: why others have no blocks for it.
struct Needs {
  const char *format, *what;
};
constexpr Needs kNeeds[] = {
    {"bf16", "x86-64 with AVX2 or AVX-512"},
    {"fp16", "64-bit Arm with arithmetic in half precision (FEAT_FP16, from Armv8.2 on)"}};

void append(std::string& list, const std::string& one) { list += (list.empty() ? "" : ", ") + one; }

std::string known_isas(const Targets& among) {
  std::string names;
  for (const Known& known : kKnown) append(names, known.isa);
  for (const Target& target : among) {  // the emulated ones of tests
    const auto same = [&](const Known& known) { return std::strcmp(known.isa, target.isa) == 0; };
    if (first_of(target.isa, among) == &target && std::none_of(std::begin(kKnown), std::end(kKnown), same))
      append(names, target.isa);
  }
  return names;
}

// "avx2, scalar", or, with formats, "avx2 (fp32, bf16), scalar (fp32)".
std::string can_run(const Targets& among, bool with_formats) {
  std::string names;
  for (const Target& first : among) {
    if (first_of(first.isa, among) != &first || !first.available()) continue;
    std::string formats;
    for (const Target& target : among) {
      if (std::strcmp(target.isa, first.isa) == 0 && target.available()) append(formats, target.format);
    }
    append(names, first.isa + (with_formats ? " (" + formats + ")" : ""));
  }
  return names;
}

std::string this_processor() { return "this processor (" + processor_name() + ")"; }

// Its first target. The messages begin with where the name comes from.
const Target& runnable(const std::string& isa, const Targets& among, const std::string& where) {
  const Target* target = first_of(isa, among);
  if (target && target->available()) return *target;
  const std::string instead = "; it can run " + can_run(among, false);
  if (target) {
    throw UnavailableError(where + this_processor() + " or its operating system cannot run " + shown(isa) +
                           instead);
  }
  for (const Known& known : kKnown) {
    if (isa != known.isa) continue;
    const bool ours = std::strcmp(known.architecture, kArchitecture) == 0;
    throw UnavailableError(where + shown(isa) +
                           (ours ? " was left out of this build"
                                 : std::string(" is an ISA of ") + known.architecture + ", and " +
                                       this_processor() + " is " + kArchitecture) +
                           instead);
  }
  throw InputError(where + "unknown ISA " + shown(isa) + "; known: " + known_isas(among) +
                   ", of which this processor can run " + can_run(among, false));
}

}  // namespace

const Target& target_named(const std::string& isa, const std::string& format, const Targets& among) {
  runnable(isa, among, "");
  const Target* found = find_target(isa.c_str(), format.c_str(), among);
  if (found && found->available()) return *found;
  std::string why =
      found ? this_processor() + " or its operating system cannot run " + shown(isa) + " in " + format
            : shown(isa) + " has no " + format;
  for (const Needs& needs : kNeeds) {
    if (format == needs.format) why += std::string(": on a CPU it needs ") + needs.what;
  }
  throw UnavailableError(why + "; this one can run " + can_run(among, true));
}

const char* default_isa(const Targets& among) {
  const char* forced = std::getenv("EFFV2_FORCE_ISA");
  if (forced && *forced) return runnable(forced, among, "EFFV2_FORCE_ISA: ").isa;
  for (const Target& target : among) {
    if (target.available()) return target.isa;
  }
  throw UnavailableError(this_processor() + " can run no ISA of this build");
}

}  // namespace effv2
