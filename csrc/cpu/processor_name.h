// What a processor is called: on x86 by itself, on Apple's by the system, on other Arm ones by numbers.
#pragma once

#include <string>

namespace effv2 {

// The processor's name, or "unknown".
std::string processor_name();

// The cores of an Arm processor, each kind once and in their order, by /proc/cpuinfo's text: "Cortex-A55 +
// Cortex-A76 + Cortex-X1". Empty where the text names none.
std::string arm_cores(const std::string& cpuinfo);

// One of them, by its maker's and its own number, the fields `implementer` and `part` of MIDR_EL1.
std::string arm_core(unsigned implementer, unsigned part);

}  // namespace effv2
