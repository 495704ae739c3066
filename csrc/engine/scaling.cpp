// Counts what a network's division among threads comes to.
#include "engine/network_run.h"

namespace effv2 {

// Every member of a team takes its turn on the calling thread, so that one arena serves them all.
std::vector<Effort> Network::count_team(const Plan& plan, int members) const {
  const Map size = plan.inputs.front();
  const Buffer image(bytes_of(size)), arena(plan.arena_bytes(1));
  std::vector<Buffer> made;
  std::vector<void*> outputs;
  const auto add_output = [&](std::size_t block) {
    made.emplace_back(bytes_of(plan.outputs[block]));
    outputs.push_back(made.back().data());
  };
  for (const Feature& feature : features_) add_output(static_cast<std::size_t>(feature.block));
  if (features_.empty()) add_output(blocks_.size() - 1);

  const MapView x = dense(image.data(), size);
  const Images images{image.data(),  1, size.channels,    size.height,
                      size.width,    0, x.channel_stride, x.row_stride,
                      x.pixel_stride};
  Context nothing{};
  const Run run{images, outputs.data(), plan, nothing, 1, nullptr, blocks_.size(), !features_.empty(), {}};
  std::vector<Effort> efforts(static_cast<std::size_t>(members) * blocks_.size());
  for (int rank = 0; rank < members; ++rank) {
    Barrier barrier;  // of one: nobody waits, but meetings are counted
    run_together(run, 0, arena.data(), plan.own(arena.data()), {rank, members, &barrier},
                 efforts.data() + static_cast<std::size_t>(rank) * blocks_.size());
  }
  return efforts;
}

std::vector<Effort> Network::count(int images, int height, int width, int threads) const {
  const std::shared_ptr<const Plan> plan = this->plan(height, width);
  const Dealing dealing(images, threads);
  const int group = Dealing::group(images, threads);
  const std::size_t blocks = blocks_.size();
  std::vector<Effort> efforts(static_cast<std::size_t>(threads) * blocks);
  if (dealing.alone) {
    const std::vector<Effort> alone = count_team(*plan, 1);
    for (int rank = 0; rank < threads; ++rank) {
      Effort* const mine = efforts.data() + static_cast<std::size_t>(rank) * blocks;
      const int taken = dealing.taken_alone(rank, group);
      for (std::size_t i = 0; i < blocks; ++i) mine[i] += alone[i] * taken;
    }
  }
  for (int team = 0; team < dealing.left; ++team) {
    const std::vector<Effort> together = count_team(*plan, dealing.helpers(team));
    Effort* const first = efforts.data() + static_cast<std::size_t>(dealing.members(team).begin) * blocks;
    for (std::size_t i = 0; i < together.size(); ++i) first[i] += together[i];
  }
  return efforts;
}

}  // namespace effv2
