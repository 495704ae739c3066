#include <nlohmann/json.hpp>

#include "runner/report.h"

namespace effv2::runner {
namespace {

using Json = nlohmann::ordered_json;

Json top_of(const std::vector<Class>& classes) {
  Json found = Json::array();
  for (const Class& one : classes) {
    found.push_back({{"class", one.index},
                     {"name", one.name.empty() ? Json(nullptr) : Json(one.name)},
                     {"logit", one.logit},
                     {"probability", one.probability}});
  }
  return found;
}

Json profile_of(const Profile& profile) {
  const auto figures = [&](double milliseconds, double gflop) {
    const double gflops = gflops_of(gflop, milliseconds);
    return Json{{"milliseconds", milliseconds},
                {"share", milliseconds / profile.milliseconds},
                {"gflop", gflop},
                {"gflops", gflops},
                {"share_of_peak", gflops / profile.peak_gflops}};
  };
  Json blocks = Json::array();
  for (const BlockTime& block : profile.blocks) {
    const effv2_shape& output = block.output;
    Json row = {{"kind", block.kind},
                {"name", block.name},
                {"output", {output.channels, output.height, output.width}}};
    row.update(figures(block.milliseconds, block.gflop));
    blocks.push_back(row);
  }
  return {{"peak_gflops", profile.peak_gflops},
          {"blocks", blocks},
          {"total", figures(profile.milliseconds, profile.gflop)}};
}

}  // namespace

void print_json(const Report& report, std::ostream& out) {
  const effv2_description& about = report.about;
  const Options& options = report.options;
  const bool is_image = !options.image.empty(), is_array = !options.input.empty();
  Json json;
  json["version"] = effv2_version();
  json["network"] = {{"path", options.network}, {"file_dtype", about.file_dtype},
                     {"blocks", about.blocks},  {"load_milliseconds", report.load_milliseconds},
                     {"dtype", about.dtype},    {"isa", about.isa},
                     {"threads", about.threads}};
  json["input"] = {{"kind", is_image   ? "image"
                            : is_array ? "array"
                                       : "random"},
                   {"path", is_image   ? Json(options.image)
                            : is_array ? Json(options.input)
                                       : Json(nullptr)},
                   {"shape", report.input}};
  json["outputs"] = Json::array();
  for (const Array& output : report.outputs) json["outputs"].push_back(output.shape);
  json["top"] = Json::array();
  for (const std::vector<Class>& classes : report.top) json["top"].push_back(top_of(classes));
  const Latency& latency = report.latency;
  json["latency"] = {{"warmup", options.warmup}, {"repeat", options.repeat}};
  json["latency"]["milliseconds"] = {{"min", latency.min}, {"p50", latency.p50}, {"p90", latency.p90},
                                     {"p99", latency.p99}, {"max", latency.max}, {"mean", latency.mean}};
  if (report.profile) json["profile"] = profile_of(*report.profile);
  const Memory& memory = report.memory;
  json["memory"] = {{"program", memory.program},
                    {"mapping", memory.mapping},
                    {"packed_weights", memory.packed_weights},
                    {"arena", memory.arena},
                    {"images_and_outputs", memory.images_and_outputs},
                    {"loading", memory.loading()},
                    {"running", memory.running()},
                    {"peak", memory.peak()},
                    {"vm_hwm", memory.system ? Json(memory.system) : Json(nullptr)}};
  // Paths may be of any bytes.
  out << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

}  // namespace effv2::runner
