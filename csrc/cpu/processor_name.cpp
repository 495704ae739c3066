#include "cpu/processor_name.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace effv2 {
namespace {

struct Core {
  unsigned implementer, part;
  const char* name;
};

// Of Linux's arch/arm64/include/asm/cputype.h, and of the makers' manuals.
constexpr Core kCores[] = {
    {0x41, 0xd03, "Cortex-A53"},  {0x41, 0xd04, "Cortex-A35"},  {0x41, 0xd05, "Cortex-A55"},
    {0x41, 0xd07, "Cortex-A57"},  {0x41, 0xd08, "Cortex-A72"},  {0x41, 0xd09, "Cortex-A73"},
    {0x41, 0xd0a, "Cortex-A75"},  {0x41, 0xd0b, "Cortex-A76"},  {0x41, 0xd0c, "Neoverse-N1"},
    {0x41, 0xd0d, "Cortex-A77"},  {0x41, 0xd40, "Neoverse-V1"}, {0x41, 0xd41, "Cortex-A78"},
    {0x41, 0xd44, "Cortex-X1"},   {0x41, 0xd46, "Cortex-A510"}, {0x41, 0xd47, "Cortex-A710"},
    {0x41, 0xd48, "Cortex-X2"},   {0x41, 0xd49, "Neoverse-N2"}, {0x41, 0xd4b, "Cortex-A78C"},
    {0x41, 0xd4d, "Cortex-A715"}, {0x41, 0xd4e, "Cortex-X3"},   {0x41, 0xd4f, "Neoverse-V2"},
    {0x41, 0xd80, "Cortex-A520"}, {0x41, 0xd81, "Cortex-A720"}, {0x41, 0xd82, "Cortex-X4"},
    {0x41, 0xd84, "Neoverse-V3"}, {0x41, 0xd85, "Cortex-X925"}, {0x41, 0xd87, "Cortex-A725"},
    {0x41, 0xd8e, "Neoverse-N3"}, {0x46, 0x001, "A64FX"},       {0x48, 0xd01, "Kunpeng 920"},
    {0x51, 0x001, "Oryon"},       {0xc0, 0xac3, "AmpereOne"},
};

// The number behind `field` in a line of /proc/cpuinfo, such as "CPU part : 0xd0b"; -1 where the line is
// another.
long number_of(const std::string& line, const char* field) {
  if (line.compare(0, std::strlen(field), field) != 0) return -1;
  const std::size_t colon = line.find(':');
  return colon == std::string::npos ? -1 : std::strtol(line.c_str() + colon + 1, nullptr, 0);
}

}  // namespace

std::string arm_core(unsigned implementer, unsigned part) {
  for (const Core& core : kCores) {
    if (core.implementer == implementer && core.part == part) return core.name;
  }
  char numbers[64];
  std::snprintf(numbers, sizeof numbers, "Arm core 0x%02x/0x%03x", implementer, part);
  return numbers;
}

std::string arm_cores(const std::string& cpuinfo) {
  std::string names;
  long implementer = -1;
  for (std::size_t start = 0; start < cpuinfo.size();) {
    const std::size_t end = std::min(cpuinfo.find('\n', start), cpuinfo.size());
    const std::string line = cpuinfo.substr(start, end - start);
    start = end + 1;
    if (const long found = number_of(line, "CPU implementer"); found >= 0) implementer = found;
    const long part = number_of(line, "CPU part");
    if (implementer < 0 || part < 0) continue;
    const std::string name = arm_core(static_cast<unsigned>(implementer), static_cast<unsigned>(part));
    // Between separators, so that a name is not found within a longer one.
    if ((" + " + names + " + ").find(" + " + name + " + ") != std::string::npos) continue;
    names += (names.empty() ? "" : " + ") + name;
  }
  return names;
}

std::string processor_name() {
#if defined(__x86_64__)
  // Leaves 0x80000002 ... 4 hold the brand string, 16 characters each.
  if (__get_cpuid_max(0x80000000u, nullptr) < 0x80000004u) return "unknown";
  unsigned words[13] = {};
  for (unsigned i = 0; i < 3; ++i) {
    __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
  }
  const char* brand = reinterpret_cast<const char*>(words);
  while (*brand == ' ') ++brand;
  return brand;
#elif defined(__APPLE__)
  char brand[64] = {};
  std::size_t size = sizeof brand - 1;
  return sysctlbyname("machdep.cpu.brand_string", brand, &size, nullptr, 0) == 0 ? brand : "unknown";
#elif defined(__linux__) && defined(__aarch64__)
  std::ifstream file("/proc/cpuinfo");
  const std::string names = arm_cores({std::istreambuf_iterator<char>(file), {}});
  if (!names.empty()) return names;
  // The kernel answers for this register, of the core that asks.
  if (!(getauxval(AT_HWCAP) & HWCAP_CPUID)) return "unknown";
  std::uint64_t midr;
  asm("mrs %0, MIDR_EL1" : "=r"(midr));
  return arm_core(midr >> 24 & 0xff, midr >> 4 & 0xfff);
#else
  return "unknown";
#endif
}

}  // namespace effv2
