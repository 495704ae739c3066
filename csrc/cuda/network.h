// A whole network in one launch: blocks of threads take its tiles in the order of a list, and wait for no
// more than what a tile reads.
//
// Tiles come in the order of the steps, so that all that one waits for has been taken before it, by a block
// that runs: whatever the number of blocks on the GPU, one of them can go on. Each map has a flag for every
// band of its rows, which counts the tiles that have made a part of it; flags and the counter of the list go
// on counting from launch to launch, so that nothing has to be cleared between two.
#pragma once

#include "cuda/kernels.h"

namespace effv2::cuda {

// Flags beside each other.
struct Flags {
  int first, count;
};

// A tile of a step: what it waits for, and which flags it raises.
struct alignas(16) Task {
  int step, tile;
  Flags made;
  Flags needs[Reach::kMost];
  int spare[2];
};
static_assert(sizeof(Task) == 48);

struct Network {
  int tasks, largest;  // of the list; bytes of shared memory that the largest of them takes
  // In memory that nobody writes while it is used.
  Address list, steps;
  Address parts;  // of each flag, the number of tiles that raise it
  // A counter of 64 bits and the flags, of 32: 0 at first, and for one launch at a time.
  Address control;

  template <class V>
  void visit(V& v) {
    v("tasks", tasks), v("largest", largest), v("list", list), v("steps", steps), v("parts", parts);
    v("control", control);
  }
};

template <class T>
struct NetworkTiles {
  static constexpr int kThreads = 256, kBlocks = 1;
  static constexpr int kControl = 2;  // words in front of the flags
  static constexpr int kWords = sizeof(Step) / 16;
  static_assert(sizeof(Step) % 16 == 0);

  static int shared_bytes(const Network& n) { return 128 + round_up(sizeof(Step), 128) + n.largest; }

  EFFV2_DEVICE static void run(const Network& n, const Buffers& buffers, Shared shared) {
    int* const taken = shared.take<int>(2);  // the task, and how many launches there were before
    Step* const step = shared.take<Step>(1);
    std::uint32_t* const control = at<std::uint32_t>(buffers, n.control);
    std::uint32_t* const flags = control + kControl;
    const std::uint32_t* const parts = at<std::uint32_t>(buffers, n.parts);
    const auto per_launch = static_cast<std::uint64_t>(n.tasks) + blocks();  // each block finds the end once
    while (true) {
      if (thread() == 0) {
        const std::uint64_t ticket = fetch_add(reinterpret_cast<std::uint64_t*>(control), std::uint64_t{1});
        const std::uint64_t launches = ticket / per_launch;
        store(taken, static_cast<int>(ticket - launches * per_launch));
        store(taken + 1, static_cast<int>(launches));
      }
      sync();
      const int number = load<int>(taken);
      const auto launches = static_cast<std::uint32_t>(load<int>(taken + 1));
      if (number >= n.tasks) return;
      Task task;
      load_task(task, at<Task>(buffers, n.list) + number);
      const Step* const from = at<Step>(buffers, n.steps) + task.step;
      for (int i = thread(); i < kWords; i += kThreads) {
        store(reinterpret_cast<Floats*>(step) + i,
              load_constant<Floats>(reinterpret_cast<const Floats*>(from) + i));
      }
      sync();
      run_step(*step, buffers, task.tile, shared.rest(), [&] {
        EFFV2_UNROLL
        for (int i = 0; i < Reach::kMost; ++i) {
          for (int f = thread(); f < task.needs[i].count; f += kThreads) {
            const int flag = task.needs[i].first + f;
            acquire_reached(flags + flag, (launches + 1) * load_constant<std::uint32_t>(parts + flag));
          }
        }
        sync();
      });
      sync();
      for (int f = thread(); f < task.made.count; f += kThreads) release_add(flags + task.made.first + f, 1);
    }
  }

 private:
  EFFV2_DEVICE static void load_task(Task& task, const Task* from) {
    struct alignas(16) Ints {
      int v[4];
    };
    const Ints* const words = reinterpret_cast<const Ints*>(from);
    const Ints a = load_constant<Ints>(words), b = load_constant<Ints>(words + 1),
               c = load_constant<Ints>(words + 2);
    task.step = a.v[0], task.tile = a.v[1], task.made = {a.v[2], a.v[3]};
    task.needs[0] = {b.v[0], b.v[1]}, task.needs[1] = {b.v[2], b.v[3]}, task.needs[2] = {c.v[0], c.v[1]};
  }

  // Of each kind those shapes that few tiles are made with; has_shape() says which.
  template <template <class> class SourceOf, class Ready>
  EFFV2_DEVICE static void run_product(const Step& s, const Buffers& buffers, int tile, Shared shared,
                                       Ready&& ready) {
    switch (s.shape) {
      case 1:
        return ProductTile<T, SourceOf, Product64x64>::run(s.product, buffers, tile, shared, ready);
      case 2:
        return ProductTile<T, SourceOf, Product32x32>::run(s.product, buffers, tile, shared, ready);
      default:
        return ProductTile<T, SourceOf, Product16x32>::run(s.product, buffers, tile, shared, ready);
    }
  }
  template <class Ready>
  EFFV2_DEVICE static void run_step(const Step& s, const Buffers& buffers, int tile, Shared shared,
                                    Ready&& ready) {
    switch (s.kind) {
      case Kind::product:
        switch (s.product.source) {
          case Source::pixels:
            return run_product<PixelsOf>(s, buffers, tile, shared, ready);
          case Source::window:
            return run_product<WindowOf>(s, buffers, tile, shared, ready);
          case Source::joined:
            return run_product<Joined>(s, buffers, tile, shared, ready);
          case Source::enlarged:
            return run_product<EnlargedOf>(s, buffers, tile, shared, ready);
        }
        return;
      case Kind::ffn:
        switch (s.ffn.part) {
          case FfnPart::whole:
            return FfnTile<T, FfnPart::whole, 8, 64, 1>::run(s.ffn, buffers, tile, shared, ready);
          case FfnPart::widen:
            return FfnTile<T, FfnPart::widen, 8, 32, 1>::run(s.ffn, buffers, tile, shared, ready);
          case FfnPart::narrow:
            return FfnTile<T, FfnPart::narrow, 8, 64, 1>::run(s.ffn, buffers, tile, shared, ready);
        }
        return;
      case Kind::depthwise:
        return DepthwiseTile<T, kThreads>::run(s.depthwise, buffers, tile, shared, ready);
      case Kind::image_conv:
        return ImageConvTile<T, 8>::run(s.image_conv, buffers, tile, shared, ready);
      case Kind::stem:
        return StemTile<T, 8, 1>::run(s.stem, buffers, tile, shared, ready);
      case Kind::attention:
        return AttentionTile<T, 2>::run(s.attention, buffers, tile, shared, ready);
      case Kind::attention_downsample:
        return AttentionDownsampleTile<T>::run(s.attention_downsample, buffers, tile, shared, ready);
      case Kind::mean:
        return MeanTile<T, kThreads>::run(s.mean, buffers, tile, shared, ready);
      case Kind::feature:
        return FeatureTile<T, kThreads>::run(s.feature, buffers, tile, shared, ready);
    }
  }
};

}  // namespace effv2::cuda
