// What a processor is called, and what is made of Arm's numbers.
#include "check.h"
#include "cpu/processor_name.h"

namespace effv2::tests {

TEST(processor_name, it_has_one) {
  const std::string name = processor_name();
  CHECK_THAT(!name.empty() && name.front() != ' ', name);
#if defined(__aarch64__) && defined(__linux__)
  CHECK_THAT(name != "unknown", "Linux tells the numbers of every 64-bit Arm");
#endif
}

TEST(processor_name, cores_of_arm) {
  const auto core = [](const std::string& implementer, const std::string& part) {
    return "processor\t: 0\nBogoMIPS\t: 49.15\nCPU implementer\t: " + implementer +
           "\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: " + part + "\nCPU revision\t: 0\n\n";
  };
  const std::string a55 = core("0x41", "0xd05"), a76 = core("0x41", "0xd0b"), x1 = core("0x41", "0xd44");
  CHECK(arm_cores(a76) == "Cortex-A76");
  CHECK(arm_cores(a55 + a55 + a76 + x1 + x1) == "Cortex-A55 + Cortex-A76 + Cortex-X1");
  CHECK(arm_cores(core("0x41", "0xd4b") + core("0x41", "0xd41")) == "Cortex-A78C + Cortex-A78");
  CHECK(arm_cores(core("0x51", "0x001")) == "Oryon");
  CHECK(arm_cores(core("0x7f", "0xabc")) == "Arm core 0x7f/0xabc");
  CHECK(arm_core(0x41, 0xd0c) == "Neoverse-N1");
  CHECK(arm_core(0x42, 0xd0c) == "Arm core 0x42/0xd0c");
  for (const char* none :
       {"", "\n", "model name\t: AMD EPYC\n", "CPU part\t: 0xd0b\n", "CPU implementer", "CPU part"}) {
    CHECK_THAT(arm_cores(none).empty(), none);
  }
}

}  // namespace effv2::tests
