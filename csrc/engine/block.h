// What every block of the network offers to the engine, whatever target it was compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/memory.h"
#include "engine/team.h"

namespace effv2 {

// Size of a feature map. In memory it is dense NHWC: (height, width, channels) values per image, each of as
// many bytes as the target's format stores.
struct Map {
  int height;
  int width;
  int channels;
  std::int64_t pixels() const { return static_cast<std::int64_t>(height) * width; }
  std::int64_t values() const { return pixels() * channels; }
};

// A map in memory; strides in values. Only a first block reads maps that are not dense.
struct MapView {
  const void* data;
  std::int64_t channel_stride;
  std::int64_t row_stride;
  std::int64_t pixel_stride;
};

inline MapView dense(const void* data, Map m) {
  return {data, 1, static_cast<std::int64_t>(m.width) * m.channels, m.channels};
}

// Memory that a block may use while it runs: one part for the team, one per thread.
struct Scratch {
  void* shared;
  void* own;
};

// The dense maps of some images at a block, one image after the other; steps in bytes.
struct Group {
  int images;
  const std::byte* x;
  std::int64_t x_step;
  std::byte* y;
  std::int64_t y_step;
};
inline constexpr int kMostInGroup = 4;

// Messages of blocks that an input does not fit are plain text: they reach the user.
class Block {
 public:
  virtual ~Block() = default;
  // Size of the output; writes a reason to `error` (256 bytes) and returns false if `in` does not fit.
  virtual bool output(Map in, Map* out, char* error) const = 0;
  // Whether run() takes maps of any strides; all others need dense ones.
  virtual bool takes_strides() const { return false; }
  virtual std::int64_t multiply_adds(Map in) const = 0;
  // Packed weights.
  virtual std::int64_t packed_bytes() const = 0;
  // What depends on the resolution alone and is computed once per resolution.
  virtual std::int64_t prepared_bytes(Map) const { return 0; }
  virtual void prepare(Map, void*) const {}
  virtual std::int64_t shared_bytes(Map) const { return 0; }
  virtual std::int64_t own_bytes(Map) const { return 0; }
  // Called by every thread of the team with the same arguments but its own Team and Scratch::own.
  // y must not overlap x. The caller synchronises the team between blocks.
  virtual void run(const MapView& x, void* y, Map in, const void* prepared, const Scratch& scratch,
                   const Team& team) const = 0;
  // The same for a group of images by one thread. Blocks for which an image alone does not repay the reading
  // of their weights take all at once.
  virtual void run_group(const Group& group, Map in, const void* prepared, const Scratch& scratch) const {
    for (int i = 0; i < group.images; ++i) {
      run(dense(group.x + i * group.x_step, in), group.y + i * group.y_step, in, prepared, scratch, {});
    }
  }
};

}  // namespace effv2
