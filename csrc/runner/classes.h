// What logits say.
#pragma once

#include <string>
#include <vector>

#include "runner/network.h"

namespace effv2::runner {

struct Class {
  int index;
  std::string name;  // empty where the network has no names
  double logit, probability;
};

// Of every image, the classes of the largest logits, in their order. logits: (N, classes).
std::vector<std::vector<Class>> top_classes(const Network& network, const Array& logits, int count);

}  // namespace effv2::runner
