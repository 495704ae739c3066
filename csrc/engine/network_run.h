// What Network keeps while it runs: plans, memory, and how far its threads have come. For its own files
// alone.
#pragma once

#include <atomic>

#include "engine/hand.h"
#include "engine/network.h"

namespace effv2 {

// What depends on the size of the images alone.
struct Network::Plan {
  int height, width;
  std::vector<Map> inputs, outputs;  // of every block
  std::vector<std::int64_t> prepared_at;
  Buffer prepared;
  std::int64_t map_bytes = 0;  // the largest map between two blocks
  std::int64_t shared_bytes = 0, own_bytes = 0;
  // From this block on weights outweigh the maps, none of which has more than late_map_bytes.
  std::size_t late = 0;
  std::int64_t late_map_bytes = 0;

  // A thread's arena: two maps, what its team shares if it leads one, its own, and the late maps of a group.
  std::byte* own(std::byte* arena) const { return arena + 2 * map_bytes + shared_bytes; }
  std::int64_t arena_bytes(int group) const {
    return 2 * map_bytes + shared_bytes + own_bytes + (group > 1 ? 2 * group * late_map_bytes : 0);
  }
};

// The memory of one call: an arena per thread.
struct Network::Context {
  std::shared_ptr<const Plan> plan;
  int group;
  std::vector<Buffer> arenas;
  std::vector<Barrier> barriers;
  std::vector<Hand> hands;  // of every thread
};

// How far one image has come.
struct Network::Walk {
  int image;
  MapView x;
  std::byte* maps[2];  // for the next output, in turn
  int spare = 0;
  std::size_t feature = 0;
};

// Where the output of a block goes.
struct Network::Place {
  std::byte* y;
  const Feature* wanted;  // what is returned of it, if it is a feature
  std::byte* returned;    // to where, if it is returned; y itself unless it is scaled
  bool direct() const { return returned == y; }
};

struct Network::Run {
  const Images& images;
  void* const* outputs;
  const Plan& plan;
  Context& context;
  int group;           // images that a thread takes at a time
  Effort* efforts;     // [thread][block], or null
  std::size_t blocks;  // that are run
  bool features;       // whether these are returned, or else the output of the last of those blocks
  std::atomic<int> next{0};
  std::atomic<bool> overflowed{false};  // what the format holds
};

}  // namespace effv2
