// Blocks, barriers and instructions of a warp in the emulator.
#include "planted.h"

namespace effv2::tests {

TEST(barriers, threads_and_blocks) {
  everywhere([] {
    Array<int> out("out", 5 * 96);
    is_right({5, 96}, [&] {
      CHECK(threads() == 96 && blocks() == 5);
      store(out.data() + block() * 96 + thread(), block() * 1000 + thread());
    });
    for (int i = 0; i < 5 * 96; ++i) CHECK(out.values()[i] == i / 96 * 1000 + i % 96);
  });
}

TEST(barriers, launches_that_no_gpu_takes) {
  const auto nothing = [] {};
  is_wrong({1, 33}, "whole warps", nothing);
  is_wrong({1, 2048}, "at most 1024 threads", nothing);
  is_wrong({0, 32}, "at least one block", nothing);
  is_wrong({1, 32, 228 << 10}, "at most 227 KiB", nothing);
}

// --- Barriers --------------------------------------------------------------------------------------------

TEST(barriers, a_barrier_orders_a_block) {
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
TEST(barriers, a_barrier_that_is_missing_before_a_read) {
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
TEST(barriers, a_barrier_that_is_missing_before_a_write) {
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
TEST(barriers, two_threads_write_to_one_place) {
  watched_everywhere([] {
    Array<int> out("out", 1);
    is_wrong({1, 64}, "not ordered behind the write", [&] { store(out.data(), thread()); });
  });
}
TEST(barriers, a_warp_orders_itself_alone) {
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
TEST(barriers, barriers_that_not_all_reach) {
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

TEST(barriers, lanes_that_go_another_way) {
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
TEST(barriers, what_matrices_are_loaded_from) {
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

}  // namespace effv2::tests
