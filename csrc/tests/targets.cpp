#include "targets.h"

#include <algorithm>
#include <cstring>

namespace effv2::tests {

std::vector<const Target*> available_targets() {
  std::vector<const Target*> available;
  for (const Target& target : targets()) {
    if (target.available()) available.push_back(&target);
  }
  return available;
}

std::vector<const Target*> fp32_targets() {
  std::vector<const Target*> found = available_targets();
  const auto other = [](const Target* target) { return std::strcmp(target->format, "fp32") != 0; };
  found.erase(std::remove_if(found.begin(), found.end(), other), found.end());
  return found;
}

}  // namespace effv2::tests
