// What is found out, as text or JSON.
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "runner/classes.h"
#include "runner/measure.h"
#include "runner/options.h"

namespace effv2::runner {

struct Report {
  const Options& options;
  const effv2_description& about;
  double load_milliseconds;
  std::vector<std::int64_t> input;  // its shape
  std::vector<Array> outputs;
  std::vector<std::vector<Class>> top;  // of every image; empty where there are no classes
  Latency latency;
  std::optional<Profile> profile;
  Memory memory;
};

void print_text(const Report& report, std::ostream& out);
void print_json(const Report& report, std::ostream& out);

}  // namespace effv2::runner
