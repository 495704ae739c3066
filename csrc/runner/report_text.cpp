#include <algorithm>
#include <cstdio>

#include "runner/report.h"

namespace effv2::runner {
namespace {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

std::string megabytes(std::int64_t bytes) { return format("%.1f", static_cast<double>(bytes) / 1e6); }

void print_classes(const Report& report, std::ostream& out) {
  for (std::size_t image = 0; image < report.top.size(); ++image) {
    if (report.top.size() > 1) out << "image " << image << "\n";
    for (const Class& one : report.top[image]) {
      out << format("  %6.2f%%  ", 100 * one.probability);
      if (one.name.empty())
        out << "class " << one.index << "\n";
      else
        out << format("%4d  ", one.index) << one.name << "\n";
    }
  }
}

void print_profile(const Profile& profile, std::ostream& out) {
  using Row = std::vector<std::string>;
  const auto figures = [&](Row row, double milliseconds, double gflop) {
    const double gflops = gflops_of(gflop, milliseconds);
    row.push_back(format("%.3f", milliseconds));
    row.push_back(format("%.1f%%", 100 * milliseconds / profile.milliseconds));
    row.push_back(format("%.1f", gflops));
    row.push_back(format("%.1f%%", 100 * gflops / profile.peak_gflops));
    return row;
  };
  std::vector<Row> rows{{"block", "source", "output", "ms", "time", "GFLOP/s", "of peak"}};
  for (const BlockTime& block : profile.blocks) {
    const effv2_shape& output = block.output;
    rows.push_back(figures({block.kind, block.name, shown({output.channels, output.height, output.width})},
                           block.milliseconds, block.gflop));
  }
  rows.push_back(figures({"total", std::to_string(profile.blocks.size()) + " blocks", ""},
                         profile.milliseconds, profile.gflop));
  constexpr std::size_t kLeft = 3;  // so many columns are aligned to the left
  std::vector<std::size_t> widths(rows[0].size());
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  out << format("peak %.0f GFLOP/s in fp32, measured in this run\n", profile.peak_gflops);
  for (const Row& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string blanks(widths[i] - row[i].size(), ' ');
      line += (i ? "  " : "") + (i < kLeft ? row[i] + blanks : blanks + row[i]);
    }
    out << line << "\n";
  }
}

}  // namespace

void print_text(const Report& report, std::ostream& out) {
  const effv2_description& about = report.about;
  const Options& options = report.options;
  out << options.network << ": weights in " << about.file_dtype << ", runs in " << about.dtype << " on "
      << about.isa << format(", threads: %d; loaded in %.1f ms\n", about.threads, report.load_milliseconds);
  const std::string name = !options.image.empty()   ? options.image
                           : !options.input.empty() ? options.input
                                                    : "random numbers";
  out << name << ": " << shown(report.input) << "\n";
  print_classes(report, out);
  for (const Array& output : report.outputs) {
    if (!about.has_head) out << "  a map of " << shown(output.shape) << "\n";
  }
  const Latency& latency = report.latency;
  out << format("ms of %d runs after %d: min %.3f, p50 %.3f, p90 %.3f, p99 %.3f, max %.3f\n", options.repeat,
                options.warmup, latency.min, latency.p50, latency.p90, latency.p99, latency.max);
  const Memory& memory = report.memory;
  out << "MB of memory: " << megabytes(memory.peak()) << " at most; program " << megabytes(memory.program)
      << ", packed weights " << megabytes(memory.packed_weights) << "; while loading, the file "
      << megabytes(memory.mapping) << "; while running, arena " << megabytes(memory.arena)
      << ", images and outputs " << megabytes(memory.images_and_outputs);
  if (memory.system) out << "; the system counts " << megabytes(memory.system);
  out << "\n";
  if (report.profile) print_profile(*report.profile, out);
}

}  // namespace effv2::runner
