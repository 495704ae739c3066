// The emulator itself: what is right runs, whatever the order, and planted faults of every kind that it
// claims to find are found. Kernels here are lambdas, run by every thread.
#include <functional>
#include <string>
#include <vector>

#include "../check.h"
#include "cuda/device.h"
#include "memory.h"

namespace effv2::tests {
namespace {

using namespace effv2::cuda;
using emulator::Array;
using emulator::Config;
using Kernel = std::function<void()>;

constexpr unsigned kSeeds[] = {0, 1, 2, 3, 4, 5};

struct Shape {
  int blocks = 1, threads = 32;
  std::size_t shared = 4096;
  int resident = 1 << 20;
};

// What a launch was ended for; empty if it was not.
std::string error_of(const Shape& shape, const Kernel& kernel) {
  emulator::config.resident = shape.resident;
  try {
    emulator::launch(shape.blocks, shape.threads, shape.shared, kernel);
    return "";
  } catch (const emulator::Error& error) {
    return error.what();
  }
}

// In every order of threads, with copies early and late, watched and not.
void everywhere(const std::function<void()>& body) {
  for (const bool watched : {false, true}) {
    for (const unsigned seed : kSeeds) {
      emulator::config = Config{};
      emulator::config.seed = seed;
      emulator::config.early_copies = seed % 2;
      emulator::config.watch = watched;
      body();
    }
  }
  emulator::config = Config{};
}
void watched_everywhere(const std::function<void()>& body) {
  everywhere([&] {
    if (emulator::config.watch) body();
  });
}

void is_right(const Shape& shape, const Kernel& kernel) {
  const std::string error = error_of(shape, kernel);
  CHECK_THAT(error.empty(), error);
}
// Ends with one of these words, which are apart by '|'.
void is_wrong(const Shape& shape, const std::string& words, const Kernel& kernel) {
  const std::string error = error_of(shape, kernel);
  for (std::size_t begin = 0; begin <= words.size();) {
    const std::size_t end = std::min(words.find('|', begin), words.size());
    if (error.find(words.substr(begin, end - begin)) != std::string::npos) return;
    begin = end + 1;
  }
  CHECK_THAT(false, words + ": " + (error.empty() ? "nothing was found" : error));
}

constexpr char kUnordered[] = "not ordered|nobody has written there";

}  // namespace

TEST(emulator, threads_and_blocks) {
  everywhere([] {
    Array<int> out("out", 5 * 96);
    is_right({5, 96}, [&] {
      CHECK(threads() == 96 && blocks() == 5);
      store(out.data() + block() * 96 + thread(), block() * 1000 + thread());
    });
    for (int i = 0; i < 5 * 96; ++i) CHECK(out.values()[i] == i / 96 * 1000 + i % 96);
  });
}

TEST(emulator, launches_that_no_gpu_takes) {
  const auto nothing = [] {};
  is_wrong({1, 33}, "whole warps", nothing);
  is_wrong({1, 2048}, "at most 1024 threads", nothing);
  is_wrong({0, 32}, "at least one block", nothing);
  is_wrong({1, 32, 228 << 10}, "at most 227 KiB", nothing);
}

// --- Barriers --------------------------------------------------------------------------------------------

TEST(emulator, a_barrier_orders_a_block) {
  everywhere([] {
    Array<int> out("out", 64);
    is_right({1, 64}, [&] {
      Shared shared;
      int* const box = shared.take<int>(64);
      for (int round = 0; round < 3; ++round) {
        store(box + thread(), thread() + round);
        sync();
        store(out.data() + thread(), load<int>(box + (thread() + 33) % 64));
        sync();
      }
    });
    for (int i = 0; i < 64; ++i) CHECK(out.values()[i] == (i + 33) % 64 + 2);
  });
}
TEST(emulator, a_barrier_that_is_missing_before_a_read) {
  watched_everywhere([] {
    Array<int> out("out", 64);
    is_wrong({1, 64}, kUnordered, [&] {
      Shared shared;
      int* const box = shared.take<int>(64);
      store(box + thread(), thread());
      store(out.data() + thread(), load<int>(box + (thread() + 33) % 64));
    });
  });
}
TEST(emulator, a_barrier_that_is_missing_before_a_write) {
  watched_everywhere([] {
    Array<int> out("out", 64);
    is_wrong({1, 64}, "not ordered behind the read|not ordered behind the write", [&] {
      Shared shared;
      int* const box = shared.take<int>(64);
      store(box + thread(), thread());
      sync();
      store(out.data() + thread(), load<int>(box + (thread() + 33) % 64));
      store(box + thread(), 0);
    });
  });
}
TEST(emulator, two_threads_write_to_one_place) {
  watched_everywhere([] {
    Array<int> out("out", 1);
    is_wrong({1, 64}, "not ordered behind the write", [&] { store(out.data(), thread()); });
  });
}
TEST(emulator, a_warp_orders_itself_alone) {
  watched_everywhere([] {
    Array<int> out("out", 64);
    const auto give = [&](int step) {
      Shared shared;
      int* const box = shared.take<int>(64);
      store(box + thread(), thread());
      sync_warp();
      store(out.data() + thread(), load<int>(box + (thread() / 32 * 32 + (thread() + step) % 32)));
    };
    is_right({1, 64}, [&] { give(5); });
    is_wrong({1, 64}, kUnordered, [&] {
      Shared shared;
      int* const box = shared.take<int>(64);
      store(box + thread(), thread());
      sync_warp();
      store(out.data() + thread(), load<int>(box + (thread() + 33) % 64));
    });
  });
}
TEST(emulator, barriers_that_not_all_reach) {
  everywhere([] {
    is_wrong({1, 64}, "sync()|ends while others wait|nobody can go on", [] {
      if (thread() < 40) sync();
    });
    is_wrong({1, 64}, "others wait in that at", [] {
      if (thread() < 32) {
        sync();
      } else {
        sync();
      }
    });
    is_wrong({1, 64}, "has ended|ends while|nobody can go on", [] {
      if (thread() == 3) return;
      sync();
    });
    is_wrong({1, 32}, "sync_warp()", [] {
      if (thread() != 7) sync_warp();
    });
  });
}

// --- Instructions of a warp ------------------------------------------------------------------------------

TEST(emulator, lanes_that_go_another_way) {
  everywhere([] {
    is_wrong({1, 32}, "mma()", [] {
      float d[4] = {};
      const Pair a[4] = {};
      if (thread() != 31) mma<Half>(d, a, 0, 0);
    });
    is_wrong({1, 32}, "a shuffle", [] {
      if (thread() % 2) shuffle(thread(), 0);
    });
    is_wrong({1, 32}, "a shuffle", [] {
      if (thread() % 2) {
        shuffle(thread(), 0);
      } else {
        shuffle(thread(), 1);
      }
    });
    is_wrong({1, 32}, "mma()|sync()", [] {
      float d[4] = {};
      const Pair a[4] = {};
      if (thread() < 4) {
        sync();
      } else {
        mma<Bf16>(d, a, 0, 0);
      }
    });
  });
}
TEST(emulator, what_matrices_are_loaded_from) {
  everywhere([] {
    Array<Pair> global("global", 64);
    is_wrong({1, 32}, "no shared memory", [&] {
      Pair r[4];
      load_matrices<false>(r, global.data());
    });
    is_wrong({1, 32}, "no multiple of 16", [] {
      Shared shared;
      char* const rows = shared.take<char>(1024);
      for (int i = 0; i < 1024; i += 8 * 32) store(rows + i + 8 * thread(), std::uint64_t{0});
      sync_warp();
      Pair r[4];
      load_matrices<false>(r, rows + 16 * thread() + 8 * (thread() == 9));
    });
  });
  watched_everywhere([] {
    is_wrong({1, 64}, kUnordered, [] {
      Shared shared;
      char* const rows = shared.take<char>(512);
      if (thread() < 32) store(rows + 16 * thread(), std::uint64_t{0});
      if (thread() < 32) store(rows + 16 * thread() + 8, std::uint64_t{0});
      Pair r[4];
      load_matrices<true>(r, rows + 16 * (thread() % 32));
    });
  });
}

// --- Bounds ----------------------------------------------------------------------------------------------

TEST(emulator, out_of_bounds) {
  watched_everywhere([] {
    Array<int> out("out", 33);
    const Array<int> in("in", std::vector<int>(33, 1));
    for (const int at : {-1, 33, 40}) {
      is_wrong({}, "out + " + std::to_string(4 * at), [&] {
        if (thread() == 5) store(out.data() + at, 0);
      });
      is_wrong({}, "in + " + std::to_string(4 * at), [&] {
        if (thread() == 5) load<int>(in.data() + at);
      });
      is_wrong({}, "out of bounds", [&] {
        Shared shared;
        int* const box = shared.take<int>(33);
        if (thread() == 5) store(box + at, 0);
      });
    }
    is_wrong({}, "may not write there", [&] { store(in.data() + thread(), 0); });
  });
}
TEST(emulator, accesses_that_are_no_wrappers) {
  watched_everywhere([] {
    Array<int> out("out", 32);
    is_right({}, [&] { out.data()[thread()] = thread(); });
    is_wrong({}, "out of bounds", [&] { out.data()[thread() + 1] = thread(); });
    is_wrong({}, "not ordered", [&] { out.data()[thread() / 2] = thread(); });
  });
}
TEST(emulator, addresses_that_are_no_multiples) {
  everywhere([] {
    Array<int> out("out", 64);
    is_wrong({}, "no multiple of 8",
             [&] { store(reinterpret_cast<char*>(out.data()) + 4, std::uint64_t{0}); });
    is_wrong({}, "no multiple of 4", [&] { load<int>(reinterpret_cast<const char*>(out.data()) + 2); });
  });
}
TEST(emulator, what_nobody_has_written) {
  watched_everywhere([] {
    const Array<int> out("out", 32);
    is_wrong({}, "out + 0 (test_emulator.cpp", [&] {
      if (thread() == 0) load<int>(out.data());
    });
    is_wrong({}, "nobody has written there", [] {
      Shared shared;
      load<int>(shared.take<int>(32) + thread());
    });
  });
}
TEST(emulator, shared_memory_that_is_not_there) {
  everywhere([] {
    is_wrong({1, 32, 1000}, "more shared memory is taken", [] {
      Shared shared;
      shared.take<int>(200);
      shared.take<int>(1);
      shared.take<int>(60);
    });
    is_wrong({}, "different shared memory", [] {
      Shared shared;
      shared.take<int>(thread() == 9 ? 31 : 32);
    });
  });
}

// --- Asynchronous copies ---------------------------------------------------------------------------------

namespace {

// 512 bytes to shared memory and back, by 32 threads.
struct Copied {
  Array<float> in{"in", std::vector<float>(128, 2.5f)}, out{"out", 128};

  float* take() const {
    Shared shared;
    return shared.take<float>(128);
  }
  void begin(float* box, bool valid = true) const {
    copy_async(box + 4 * thread(), in.data() + 4 * thread(), valid);
    copy_commit();
  }
  // What the next thread copied.
  void give(const float* box) const {
    for (int i = 0; i < 4; ++i) {
      const int at = (4 * thread() + 4 + i) % 128;
      store(out.data() + at, load<float>(box + at));
    }
  }
};

}  // namespace

TEST(emulator, copies) {
  everywhere([] {
    for (const bool valid : {true, false}) {
      const Copied copied;
      is_right({}, [&] {
        float* const box = copied.take();
        copied.begin(box, valid);
        copy_wait<0>();
        sync();
        copied.give(box);
      });
      for (const float value : copied.out.values()) CHECK(value == (valid ? 2.5f : 0.0f));
    }
  });
}
TEST(emulator, copies_in_two_stages) {
  everywhere([] {
    const Copied copied;
    is_right({}, [&] {
      Shared shared;
      float* const boxes[] = {shared.take<float>(128), shared.take<float>(128)};
      copied.begin(boxes[0]);
      for (int i = 0; i < 5; ++i) {
        copied.begin(boxes[(i + 1) % 2]);
        copy_wait<1>();
        sync();
        copied.give(boxes[i % 2]);
        sync();
      }
      copy_wait<0>();
    });
  });
}
TEST(emulator, a_wait_that_is_missing_or_short) {
  watched_everywhere([] {
    const Copied copied;
    is_wrong({}, "under way", [&] {
      float* const box = copied.take();
      copied.begin(box);
      sync();
      copied.give(box);
      copy_wait<0>();
    });
    is_wrong({}, "under way", [&] {
      float* const box = copied.take();
      copied.begin(box);
      copy_wait<1>();
      sync();
      copied.give(box);
      copy_wait<0>();
    });
  });
  everywhere([] {
    const Copied copied;
    is_wrong({}, "has not waited for", [&] { copied.begin(copied.take()); });
  });
}
TEST(emulator, a_barrier_that_is_missing_behind_a_wait) {
  watched_everywhere([] {
    const Copied copied;
    is_wrong({}, "under way|not ordered|nobody has written", [&] {
      float* const box = copied.take();
      copied.begin(box);
      copy_wait<0>();
      copied.give(box);
    });
    is_wrong({}, "under way|not ordered|nobody has written", [&] {
      float* const box = copied.take();
      copied.begin(box);
      sync();
      copy_wait<0>();
      copied.give(box);
    });
  });
}
TEST(emulator, copies_to_where_others_still_read) {
  watched_everywhere([] {
    const Copied copied;
    is_wrong({}, "not ordered|under way", [&] {
      float* const box = copied.take();
      copied.begin(box);
      copy_wait<0>();
      sync();
      copied.give(box);
      copied.begin(box);
      copy_wait<0>();
    });
    is_wrong({}, "under way", [&] {
      float* const box = copied.take();
      copied.begin(box);
      copied.begin(box);
      copy_wait<0>();
    });
  });
}
TEST(emulator, copies_from_and_to_wrong_places) {
  everywhere([] {
    const Copied copied;
    is_wrong({}, "no multiple of 16", [&] {
      copy_async(copied.take() + 4 * thread(), copied.in.data() + thread());
      copy_commit();
      copy_wait<0>();
    });
    is_wrong({}, "no shared memory", [&] {
      copy_async(copied.out.data() + 4 * thread(), copied.in.data() + 4 * thread());
      copy_commit();
      copy_wait<0>();
    });
  });
  watched_everywhere([] {
    const Copied copied;
    is_wrong({}, "in + 512", [&] {
      copy_async(copied.take() + 4 * thread(), copied.in.data() + 4 * thread() + 4);
      copy_commit();
      copy_wait<0>();
    });
    is_wrong({}, "out of bounds|no shared memory", [&] {
      copy_async(copied.take() + 4 * thread() + 4, copied.in.data() + 4 * thread());
      copy_commit();
      copy_wait<0>();
    });
  });
}

// --- Between blocks --------------------------------------------------------------------------------------

namespace {

// Block 0 writes, and block 1 reads what the next thread's number says; launched several times.
struct Handed {
  Array<int> data{"data", 64}, out{"out", 64}, counter{"counter", 1};
  Array<std::uint32_t> flag{"flag", 1};

  Handed() {
    flag.fill(0);
    counter.fill(0);
  }
  void write(int epoch) const { store(data.data() + thread(), thread() + 100 * epoch); }
  void read() const { store(out.data() + thread(), load<int>(data.data() + (thread() + 1) % 64)); }
  void signal() const {
    sync();
    if (thread() == 0) release_add(flag.data(), 1);
  }
  void wait(int value) const {
    if (thread() == 0) acquire_reached(flag.data(), static_cast<std::uint32_t>(value));
    sync();
  }
};

}  // namespace

TEST(emulator, a_flag_orders_blocks) {
  everywhere([] {
    const Handed h;
    for (int epoch = 1; epoch < 4; ++epoch) {
      is_right({2, 64}, [&] {
        if (block() == 0) {
          h.write(epoch);
          h.signal();
        } else {
          h.wait(epoch);
          h.read();
        }
      });
      for (int i = 0; i < 64; ++i) CHECK(h.out.values()[i] == (i + 1) % 64 + 100 * epoch);
    }
  });
}
// Block 1 passes on what it has acquired.
TEST(emulator, flags_are_passed_on) {
  everywhere([] {
    const Handed h;
    is_right({3, 64}, [&] {
      if (block() == 0) {
        h.write(1);
        h.signal();
      } else if (block() == 1) {
        h.wait(1);
        h.signal();
      } else {
        h.wait(2);
        h.read();
      }
    });
  });
}
TEST(emulator, a_thread_releases_what_it_wrote_itself) {
  watched_everywhere([] {
    const Handed h;
    is_right({2, 64}, [&] {
      if (block() == 0) {
        if (thread() == 0) store(h.data.data(), 5);
        if (thread() == 0) release_add(h.flag.data(), 1);
      } else {
        h.wait(1);
        store(h.out.data() + thread(), load<int>(h.data.data()));
      }
    });
  });
}
TEST(emulator, a_flag_before_its_data) {
  watched_everywhere([] {
    const Handed h;
    is_wrong({2, 64}, kUnordered, [&] {
      if (block() == 0) {
        h.signal();
        h.write(1);
      } else {
        h.wait(1);
        h.read();
      }
    });
  });
}
TEST(emulator, a_flag_without_a_barrier) {
  watched_everywhere([] {
    const Handed before, behind;
    is_wrong({2, 64}, kUnordered, [&] {
      if (block() == 0) {
        before.write(1);
        if (thread() == 0) release_add(before.flag.data(), 1);
      } else {
        before.wait(1);
        before.read();
      }
    });
    is_wrong({2, 64}, kUnordered, [&] {
      if (block() == 0) {
        behind.write(1);
        behind.signal();
      } else {
        if (thread() == 0) acquire_reached(behind.flag.data(), 1);
        behind.read();
      }
    });
  });
}
TEST(emulator, a_flag_that_releases_nothing) {
  watched_everywhere([] {
    const Handed h;
    is_wrong({2, 64}, kUnordered, [&] {
      if (block() == 0) {
        h.write(1);
        sync();
        if (thread() == 0) fetch_add(reinterpret_cast<int*>(h.flag.data()), 1);
      } else {
        h.wait(1);
        h.read();
      }
    });
  });
}
TEST(emulator, a_flag_of_the_launch_before) {
  watched_everywhere([] {
    const Handed h;
    const auto kernel = [&] {
      if (block() == 0) {
        h.write(1);
        h.signal();
      } else {
        h.wait(1);
        h.read();
      }
    };
    is_right({2, 64}, kernel);
    is_wrong({2, 64}, kUnordered, kernel);
  });
}
TEST(emulator, memory_that_is_written_again_too_early) {
  watched_everywhere([] {
    const Handed h;
    is_wrong({2, 64}, "not ordered", [&] {
      if (block() == 0) {
        h.write(1);
        h.signal();
        h.write(2);
      } else {
        h.wait(1);
        h.read();
      }
    });
  });
}
TEST(emulator, constant_memory_that_is_not) {
  watched_everywhere([] {
    const Handed h;
    is_wrong({2, 64}, "constant", [&] {
      if (block() == 0) {
        h.write(1);
        h.signal();
      } else {
        h.wait(1);
        store(h.out.data() + thread(), load_constant<int>(h.data.data() + thread()));
      }
    });
  });
}
TEST(emulator, a_flag_that_nobody_sets) {
  everywhere([] {
    const Handed h;
    is_wrong({2, 64}, "nobody can go on", [&] { h.wait(1); });
  });
}
// Waiting for a block that comes to the GPU later than those that wait. Tasks that are taken in their order
// from a counter wait for nobody who is not there yet.
TEST(emulator, few_blocks_at_a_time) {
  everywhere([] {
    for (const int resident : {1, 2, 7, 132}) {
      const Handed all, tasks;
      const auto last_first = [&] {
        if (block() == 8) {
          all.write(1);
          all.signal();
        } else {
          all.wait(1);
        }
      };
      if (resident < 8 && emulator::config.seed == 0) {
        is_wrong({9, 64, 0, resident}, "blocks wait for room", last_first);
      } else if (resident > 8) {
        is_right({9, 64, 0, resident}, last_first);
      }
      is_right({9, 64, 128, resident}, [&] {
        Shared shared;
        int* const mine = shared.take<int>(1);
        while (true) {
          if (thread() == 0) store(mine, fetch_add(tasks.counter.data(), 1));
          sync();
          const int task = load<int>(mine);
          sync();
          if (task >= 20) return;
          if (task) tasks.wait(task);
          tasks.write(task);
          tasks.signal();
        }
      });
      CHECK(tasks.flag.values()[0] == 20);
    }
  });
}

// --- Banks -----------------------------------------------------------------------------------------------

TEST(emulator, passes_of_shared_memory) {
  const auto passes = [](int bytes_between, auto value) {
    emulator::config = Config{};
    emulator::config.count_passes = true;
    emulator::counts = {};
    is_right({1, 32, 32768}, [&] {
      Shared shared;
      char* const box = shared.take<char>(32 * 512 + 16);
      store(box + bytes_between * thread(), value);
      sync();
    });
    emulator::config = Config{};
    return static_cast<int>(emulator::counts.shared_passes);
  };
  CHECK(passes(4, 1) == 1);
  CHECK(passes(8, 1) == 2);
  CHECK(passes(128, 1) == 32);
  CHECK(passes(132, 1) == 1);
  CHECK(passes(8, std::uint64_t{1}) == 2);
  CHECK(passes(136, std::uint64_t{1}) == 2);
  CHECK(passes(128, std::uint64_t{1}) == 32);
}
TEST(emulator, passes_of_matrices) {
  const auto passes = [](int bytes_of_row) {
    emulator::counts = {};
    is_right({1, 32, 32768}, [&] {
      Shared shared;
      char* const rows = shared.take<char>(32 * 256);
      Pair r[4];
      load_matrices<false>(r, rows + bytes_of_row * thread());
    });
    return static_cast<int>(emulator::counts.shared_passes);
  };
  CHECK(passes(16) == 4);
  CHECK(passes(80) == 4);   // 64 and 16 more
  CHECK(passes(64) == 16);  // every other row meets
  CHECK(passes(128) == 32);
}

}  // namespace effv2::tests
