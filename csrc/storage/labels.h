// The names of a network's classes, as its file may have them. The same rules are in
// effv2_kernels/labels.py.
#pragma once

#include <string>
#include <vector>

namespace effv2 {

// The names in a text: one for each class, each of one line. classes: 0 for a network that returns maps.
// Throws FormatError.
std::vector<std::string> parse_labels(const std::string& text, int classes);

}  // namespace effv2
