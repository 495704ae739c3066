#include "cpu/dispatch.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

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

const Target* find_target(const char* isa, const char* format) {
  for (const Target& target : targets()) {
    if (std::strcmp(target.isa, isa) == 0 && std::strcmp(target.format, format) == 0) return &target;
  }
  return nullptr;
}

// Its first format's, which asks for no more than the instruction set.
static const Target* first_of(const char* isa) {
  for (const Target& target : targets()) {
    if (std::strcmp(target.isa, isa) == 0) return &target;
  }
  return nullptr;
}
bool knows_isa(const char* isa) { return first_of(isa) != nullptr; }
bool can_run_isa(const char* isa) {
  const Target* target = first_of(isa);
  return target && target->available();
}

const Target& target_named(const std::string& isa, const std::string& format) {
  if (!knows_isa(isa.c_str())) throw InputError("unknown ISA '" + isa + "'");
  const char* const lacks = "this processor or operating system cannot run '";
  if (!can_run_isa(isa.c_str())) throw UnavailableError(lacks + isa + "'");
  const Target* target = find_target(isa.c_str(), format.c_str());
  if (!target) throw UnavailableError("'" + isa + "' has no " + format);
  if (!target->available()) throw UnavailableError(lacks + isa + "' in " + format);
  return *target;
}

const char* default_isa(char* error) {
  const char* forced = std::getenv("EFFV2_FORCE_ISA");
  if (forced && *forced) {
    const Target* target = first_of(forced);
    if (!target) {
      std::snprintf(error, 256, "EFFV2_FORCE_ISA names the unknown ISA '%.64s'", forced);
      return nullptr;
    }
    if (!target->available()) {
      std::snprintf(error, 256,
                    "EFFV2_FORCE_ISA asks for '%.64s', which this processor or operating system lacks",
                    forced);
      return nullptr;
    }
    return target->isa;
  }
  for (const Target& target : targets()) {
    if (target.available()) return target.isa;
  }
  return nullptr;
}

}  // namespace effv2
