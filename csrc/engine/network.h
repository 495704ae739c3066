// A network: blocks in order, the memory that they run in, and the division of images among threads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/block.h"
#include "engine/dealing.h"
#include "engine/effort.h"
#include "engine/errors.h"
#include "engine/target.h"

namespace effv2 {

// The longest side of an image, and the most images of a batch.
inline constexpr std::int64_t kLongestSide = 1 << 24;

// A batch of images, strides in values.
struct Images {
  const void* data;
  int count, channels, height, width;
  std::int64_t image_stride, channel_stride, row_stride, pixel_stride;
};

// How the sizes of a block's input go with those of its output, and with the grid that its bias is made for.
struct Scale {
  int step;        // rows of the input for one of the output, and columns
  int rows, cols;  // of the grid; 0 where any fits
  int pixels;      // of the input from one place of the grid to the next
};

class Network {
 public:
  // weight_bytes: about how much there will be. A large network's weights are made in an arena of large
  // pages.
  explicit Network(const Target* target, std::int64_t weight_bytes = 0);
  ~Network();

  const Target& target() const { return *target_; }
  // What its blocks' weights are to be made in, or null: each in memory of its own.
  Arena* arena() { return arena_.get(); }
  // Takes the block over. in_channels is what it reads.
  void add(std::unique_ptr<Block> block, int in_channels, const Scale& scale);
  // The output of the block added last is returned as well, scaled and shifted per channel if the
  // pointers are not null (they are copied). Throws Error if there is none, or if it is returned already.
  void add_feature(const float* scale, const float* shift, int channels);

  int in_channels() const { return in_channels_; }
  int out_channels() const { return out_channels_; }  // of the block added last; 0 if there is none
  int size() const { return static_cast<int>(blocks_.size()); }
  int outputs() const { return features_.empty() ? 1 : static_cast<int>(features_.size()); }
  // The block whose output this one is.
  int output_block(int output) const {
    return features_.empty() ? size() - 1 : features_[static_cast<std::size_t>(output)].block;
  }
  std::int64_t packed_bytes() const;
  // Of the memory that calls have left for those to come.
  std::int64_t working_bytes() const;
  // The output of every block. Throws ResolutionError, with the sizes that do, if an image of this size does
  // not fit.
  std::vector<Map> maps(int height, int width) const;
  std::vector<std::int64_t> multiply_adds(int height, int width) const;

  // Images and outputs are in the target's format. outputs: one address per feature, or one for the last
  // block's output if there are none; dense NHWC, one image after the other. seconds, if not null, receives
  // the time of every block summed over the images of the busiest thread. stop: run so many blocks only and
  // return what the last of them makes; 0 is the whole network. May be called from several threads at once.
  void run(const Images& images, void* const* outputs, int threads, double* seconds, int stop = 0) const;

  // What each of so many threads would spend on each block for a batch of such images, [thread][block], by
  // the engine's own division of them. Nothing is timed and all of it happens on the calling thread, with a
  // target that counts; the number of processors does not matter.
  std::vector<Effort> count(int images, int height, int width, int threads) const;

 private:
  struct Feature {
    int block;
    Array<float> scale, shift;
  };
  struct Plan;
  struct Context;
  struct Run;
  struct Walk;
  struct Place;

  // Of the images that all biases fit, from the least to the most; no most is any.
  struct Sides {
    std::int64_t least = 1, most = 0;
    void narrow(std::int64_t grid, std::int64_t pixels);
  };

  [[noreturn]] void refuse(int height, int width) const;
  std::int64_t bytes_of(Map map) const { return map.values() * target_->value_bytes; }
  std::shared_ptr<const Plan> plan(int height, int width) const;
  std::unique_ptr<Context> take_context(int height, int width, int threads, int group) const;
  void work(Run& run, int rank, int size) const;
  void run_group(const Run& run, Range images, std::byte* arena, std::byte* own, Effort* efforts) const;
  void run_together(const Run& run, int image, std::byte* leader, std::byte* own, const Team& team,
                    Effort* efforts) const;
  std::vector<Effort> count_team(const Plan& plan, int members) const;
  Walk enter(const Run& run, int image, std::byte* arena, const Team& team) const;
  void step(const Run& run, std::size_t block, Walk& walk, const Scratch& scratch, const Team& team,
            Effort* efforts) const;
  void step_group(const Run& run, std::size_t block, Walk* walks, int images, const Scratch& scratch,
                  Effort* efforts) const;
  Place place(const Run& run, std::size_t block, Walk& walk) const;
  void leave(const Run& run, std::size_t block, const Place& place, Walk& walk, const Team& team) const;

  const Target* target_;
  int in_channels_ = 0, out_channels_ = 0;
  std::int64_t step_ = 1;  // pixels of the image for one of the block added last
  Sides rows_, cols_;
  std::unique_ptr<Arena> arena_;  // outlives the blocks
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Feature> features_;
  mutable std::vector<std::shared_ptr<const Plan>> plans_;  // guarded by fork_safe_mutex()
  mutable std::vector<std::unique_ptr<Context>> contexts_;  // idle ones, guarded likewise
};

}  // namespace effv2
