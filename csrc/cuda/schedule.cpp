#include "cuda/schedule.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

namespace effv2::cuda {
namespace {

// Flags of an image of a map: with more of them tiles wait for less, with fewer they wait for fewer.
constexpr int kBands = 8;

struct Map {
  int height, bands;  // of an image
  int first;          // flag

  int flag_of(int row) const {
    const int rows = blocks_of(height, bands);
    return first + row / height * bands + row % height / rows;
  }
  Flags flags_of(Rows rows) const {
    const int begin = flag_of(rows.first);
    return {begin, flag_of(rows.last) + 1 - begin};
  }
};

}  // namespace

bool has_shape(const Step& step) {
  switch (step.kind) {
    case Kind::product:
      return step.shape >= kSmallProducts;
    case Kind::ffn:
      return step.shape == (step.ffn.part == FfnPart::widen ? kWidenInOne : kFfnInOne);
    default:
      return step.shape == 0;
  }
}

Schedule make_schedule(const std::vector<Step>& steps) {
  Schedule made;
  std::map<Address, Map> maps;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    if (!has_shape(step)) {
      throw std::invalid_argument("step " + std::to_string(i) + " (" +
                                  kKindNames[static_cast<int>(step.kind)] +
                                  ") has a shape that the one launch has not");
    }
    with_kernel<bool>(step, [&](auto kernel, const auto& parameters) {
      using Kernel = decltype(kernel);
      const int tiles = Kernel::tiles(parameters);
      made.largest = std::max(made.largest, Kernel::shared_bytes(parameters));
      std::vector<Reach> reaches;
      for (int tile = 0; tile < tiles; ++tile) reaches.push_back(Kernel::reach(parameters, tile));
      Map map{reaches[0].height, std::min(reaches[0].height, kBands), static_cast<int>(made.parts.size())};
      map.bands = blocks_of(map.height, blocks_of(map.height, map.bands));  // none without rows
      int last = 0;
      for (const Reach& reach : reaches) last = std::max(last, reach.rows.last);
      made.parts.resize(map.flag_of(last) + 1);
      for (int tile = 0; tile < tiles; ++tile) {
        const Reach& reach = reaches[tile];
        Task task{};
        task.step = static_cast<int>(i);
        task.tile = tile;
        task.made = map.flags_of(reach.rows);
        for (int f = 0; f < task.made.count; ++f) ++made.parts[task.made.first + f];
        int needs = 0;
        for (int r = 0; r < reach.count; ++r) {
          const auto read = maps.find(reach.reads[r].map);
          if (read != maps.end()) task.needs[needs++] = read->second.flags_of(reach.reads[r].rows);
        }
        made.tasks.push_back(task);
      }
      maps[reaches[0].made] = map;
      return true;
    });
  }
  return made;
}

}  // namespace effv2::cuda
