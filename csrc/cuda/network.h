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

  // What a block knows of a task: the list's entry and the step, in shared memory.
  struct Held {
    Task task;
    Step step;
  };
  static constexpr int kPieces = sizeof(Held) / 16, kOfTask = sizeof(Task) / 16;
  static_assert(kPieces <= kWarp && sizeof(Task) % 16 == 0);

  static constexpr int kOwnBytes = taken<Held>(2) + taken<int>(2);
  static int shared_bytes(const Network& n) { return kOwnBytes + n.largest; }

  // The first warp fetches tasks ahead of the block: while one is run, its successor's entry is on the way,
  // and the ticket of the one behind that. A block so takes two tickets that are no tasks, and then ends.
  EFFV2_DEVICE static void run(const Network& n, const Buffers& buffers, Shared shared) {
    Held* held = shared.take<Held>(2);       // the task's, and its successor's
    int* const state = shared.take<int>(2);  // the task's number, and how many launches there were before
    std::uint32_t* const control = at<std::uint32_t>(buffers, n.control);
    // Tickets go on from launch to launch; of 64 bits, they never begin again. What is kept of them is less.
    std::uint32_t begin = 0, next = 0;  // the launch's first ticket, and the one behind that of `number`
    int number = 0;
    if (warp() == 0) {
      const auto per_launch = static_cast<std::uint64_t>(n.tasks) + 2 * static_cast<std::uint64_t>(blocks());
      const std::uint64_t first = take_ticket(control);
      next = static_cast<std::uint32_t>(take_ticket(control));
      const std::uint64_t launches = shuffle(first, 0) / per_launch;
      begin = static_cast<std::uint32_t>(launches * per_launch);
      number = number_of(static_cast<std::uint32_t>(first), begin);
      fetch(held, n, buffers, number);
      if (lane() == 0) store(state + 1, static_cast<int>(launches));
    }
    for (int turn = 0;; turn ^= 1) {
      if (warp() == 0) {
        copy_wait<0>();
        if (lane() == 0) store(state, number);
      }
      sync();
      if (load<int>(state) >= n.tasks) return;
      if (warp() == 0) {
        number = number_of(next, begin);
        next = static_cast<std::uint32_t>(take_ticket(control));
        fetch(held + (turn ^ 1), n, buffers, number);
      }
      const Task& task = held[turn].task;
      run_step(held[turn].step, buffers, task.tile, shared.rest(), [&] {
        const std::uint32_t* const parts = at<std::uint32_t>(buffers, n.parts);
        const auto launch = static_cast<std::uint32_t>(load<int>(state + 1)) + 1;
        for (int i = 0; i < Reach::kMost; ++i) {
          for (int f = thread(); f < task.needs[i].count; f += kThreads) {
            const int flag = task.needs[i].first + f;
            acquire_reached(control + kControl + flag, launch * load_constant<std::uint32_t>(parts + flag));
          }
        }
        sync();
      });
      sync();
      for (int f = thread(); f < task.made.count; f += kThreads) {
        release_add(control + kControl + task.made.first + f, 1);
      }
    }
  }

 private:
  EFFV2_DEVICE static std::uint64_t take_ticket(std::uint32_t* control) {
    return lane() == 0 ? fetch_add(reinterpret_cast<std::uint64_t*>(control), std::uint64_t{1}) : 0;
  }
  EFFV2_DEVICE static int number_of(std::uint32_t ticket, std::uint32_t begin) {
    return static_cast<int>(shuffle(ticket, 0) - begin);
  }
  // A task and its step to shared memory, a piece for each lane; nothing where the list has ended.
  EFFV2_DEVICE static void fetch(Held* to, const Network& n, const Buffers& buffers, int number) {
    if (number < n.tasks && lane() < kPieces) {
      const Task* const task = at<Task>(buffers, n.list) + number;
      const Floats* from = reinterpret_cast<const Floats*>(task) + lane();
      if (lane() >= kOfTask) {
        const Step* const step = at<Step>(buffers, n.steps) + load_constant<int>(&task->step);
        from = reinterpret_cast<const Floats*>(step) + lane() - kOfTask;
      }
      copy_async(reinterpret_cast<Floats*>(to) + lane(), from);
    }
    copy_commit();
  }

  // Of each kind those shapes that few tiles are made with; has_shape() says which.
  template <template <class> class SourceOf, class Ready>
  EFFV2_DEVICE static void run_product(const Step& s, const Buffers& buffers, int tile, Shared shared,
                                       Ready&& ready) {
    using Of = Products<T, SourceOf>;
    static_assert(Of::kCount == kSmallProducts + 3);
    switch (s.shape) {
      case kSmallProducts:
        return Of::template At<kSmallProducts>::run(s.product, buffers, tile, shared, ready);
      case kSmallProducts + 1:
        return Of::template At<kSmallProducts + 1>::run(s.product, buffers, tile, shared, ready);
      default:
        return Of::template At<kSmallProducts + 2>::run(s.product, buffers, tile, shared, ready);
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
            return FfnKernels<T, FfnPart::whole>::template At<kFfnInOne>::run(s.ffn, buffers, tile, shared,
                                                                              ready);
          case FfnPart::widen:
            return FfnWideners<T>::template At<kWidenInOne>::run(s.ffn, buffers, tile, shared, ready);
          case FfnPart::narrow:
            return FfnKernels<T, FfnPart::narrow>::template At<kFfnInOne>::run(s.ffn, buffers, tile, shared,
                                                                               ready);
        }
        return;
      case Kind::depthwise:
        return Depthwises<T>::template At<0>::run(s.depthwise, buffers, tile, shared, ready);
      case Kind::image_conv:
        return ImageConvs<T>::template At<0>::run(s.image_conv, buffers, tile, shared, ready);
      case Kind::stem:
        return Stems<T>::template At<0>::run(s.stem, buffers, tile, shared, ready);
      case Kind::attention:
        return Attentions<T>::template At<0>::run(s.attention, buffers, tile, shared, ready);
      case Kind::attention_downsample:
        return AttentionDownsamples<T>::template At<0>::run(s.attention_downsample, buffers, tile, shared,
                                                            ready);
      case Kind::mean:
        return Means<T>::template At<0>::run(s.mean, buffers, tile, shared, ready);
      case Kind::feature:
        return Features<T>::template At<0>::run(s.feature, buffers, tile, shared, ready);
    }
  }
};

}  // namespace effv2::cuda
