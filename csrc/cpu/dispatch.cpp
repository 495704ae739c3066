#include "cpu/dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace effv2 {

#define EFFV2_DECLARE_FACTORY(kind, Spec) Block* make_##kind(const Spec&);
#define EFFV2_ENTER_FACTORY(kind, Spec) made.kind = make_##kind;
// Declares what csrc/cpu/blocks and peak.cpp define for an ISA, and its row of the table.
#define EFFV2_DECLARE_ISA(isa)                    \
  namespace isa {                                 \
  EFFV2_BLOCKS(EFFV2_DECLARE_FACTORY)             \
  double peak_loop(long);                         \
  static constexpr Isa row(bool (*available)()) { \
    Isa made{};                                   \
    made.name = #isa;                             \
    made.available = available;                   \
    made.peak_loop = peak_loop;                   \
    EFFV2_BLOCKS(EFFV2_ENTER_FACTORY)             \
    return made;                                  \
  }                                               \
  }

#ifdef EFFV2_WITH_AVX512
EFFV2_DECLARE_ISA(avx512)
// The compiler's run-time checks include the operating system's part (XCR0).
static bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef EFFV2_WITH_AVX2
EFFV2_DECLARE_ISA(avx2)
static bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#ifdef EFFV2_WITH_AVX512_EMULATED  // for tests: AVX-512's code on a processor without it
EFFV2_DECLARE_ISA(avx512_emulated)
#endif
EFFV2_DECLARE_ISA(scalar)
static bool always() { return true; }

static constexpr Isa kIsas[] = {
#ifdef EFFV2_WITH_AVX512
    avx512::row(has_avx512),
#endif
#ifdef EFFV2_WITH_AVX2
    avx2::row(has_avx2),
#endif
#ifdef EFFV2_WITH_AVX512_EMULATED
    avx512_emulated::row(has_avx2),
#endif
    scalar::row(always),
};

const Isa* isa_table(int* count) {
  *count = static_cast<int>(sizeof kIsas / sizeof kIsas[0]);
  return kIsas;
}

const Isa* find_isa(const char* name) {
  for (const Isa& isa : kIsas) {
    if (std::strcmp(isa.name, name) == 0) return &isa;
  }
  return nullptr;
}

const Isa* default_isa(char* error) {
  const char* forced = std::getenv("EFFV2_FORCE_ISA");
  if (forced && *forced) {
    const Isa* isa = find_isa(forced);
    if (!isa) {
      std::snprintf(error, 256, "EFFV2_FORCE_ISA names the unknown ISA '%.64s'", forced);
      return nullptr;
    }
    if (!isa->available()) {
      std::snprintf(error, 256,
                    "EFFV2_FORCE_ISA asks for '%.64s', which this processor or operating system lacks",
                    forced);
      return nullptr;
    }
    return isa;
  }
  for (const Isa& isa : kIsas) {
    if (isa.available()) return &isa;
  }
  return nullptr;
}

void cpu_name(char* name) {
  std::strcpy(name, "unknown");
#if defined(__x86_64__)
  // Leaves 0x80000002 ... 4 hold the brand string, 16 characters each.
  if (__get_cpuid_max(0x80000000u, nullptr) < 0x80000004u) return;
  unsigned words[13] = {};
  for (unsigned i = 0; i < 3; ++i) {
    __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
  }
  const char* brand = reinterpret_cast<const char*>(words);
  while (*brand == ' ') ++brand;
  std::snprintf(name, 64, "%s", brand);
#endif
}

}  // namespace effv2
