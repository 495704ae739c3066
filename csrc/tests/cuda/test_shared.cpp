// Shared memory in the emulator: its pieces, layouts that follow each other, and banks.
#include "planted.h"

namespace effv2::tests {

// --- Pieces ----------------------------------------------------------------------------------------------

TEST(shared, shared_memory_that_is_not_there) {
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

// --- Layouts that follow each other ----------------------------------------------------------------------

namespace {

// A layout of one piece behind those of another one: each thread hands a number to the thread on the other
// side.
void hand_over(const Shared& shared, const Array<int>& out, int round) {
  int* const box = shared.rest().take<int>(64 + round);
  store(box + thread(), thread() + round);
  sync();
  store(out.data() + thread(), load<int>(box + 63 - thread()));
}

}  // namespace

TEST(shared, layouts_follow_each_other) {
  everywhere([] {
    const Array<int> out("out", 64);
    is_right({1, 64}, [&] {
      Shared shared;
      int* const kept = shared.take<int>(64);
      store(kept + thread(), 7);
      for (int round = 0; round < 5; ++round) {
        hand_over(shared, out, round);
        sync();
        CHECK(load<int>(kept + 63 - thread()) == 7);
      }
    });
    for (int i = 0; i < 64; ++i) CHECK(out.values()[i] == 63 - i + 4);
  });
}
TEST(shared, layouts_of_layouts) {
  everywhere([] {
    is_right({1, 64}, [] {
      Shared shared;
      int* const first = shared.take<int>(64);
      for (int round = 0; round < 3; ++round) {
        Shared rest = shared.rest();
        int* const second = rest.take<int>(64);
        store(first + thread(), round), store(second + thread(), round);
        sync();
        int* const third = rest.rest().take<int>(100);
        store(third + thread(), load<int>(second + 63 - thread()) + load<int>(first + 63 - thread()));
        sync();
        CHECK(load<int>(third + 63 - thread()) == 2 * round);
        sync();
      }
    });
  });
}
TEST(shared, a_layout_has_what_its_launch_has) {
  everywhere([] {
    is_wrong({1, 32, 1024}, "more shared memory is taken", [] {
      Shared shared;
      shared.take<int>(32);
      shared.rest().take<int>(225);
    });
    is_right({1, 32, 1024}, [] {
      Shared shared;
      shared.take<int>(32);
      for (int i = 0; i < 9; ++i) shared.rest().take<int>(224);
    });
  });
}
TEST(shared, a_layout_is_not_written_at_first) {
  watched_everywhere([] {
    const Array<int> out("out", 64);
    is_wrong({1, 64}, "nobody has written there", [&] {
      Shared shared;
      hand_over(shared, out, 0);
      sync();
      load<int>(shared.rest().take<int>(64) + thread());
    });
  });
}
TEST(shared, a_layout_without_a_barrier_before_it) {
  watched_everywhere([] {
    const Array<int> out("out", 64);
    is_wrong({1, 64}, "used since the last barrier|given out again already", [&] {
      Shared shared;
      for (int round = 0; round < 2; ++round) hand_over(shared, out, round);
    });
    // Elsewhere, and still the same memory on a GPU.
    is_wrong({1, 64}, "used since the last barrier|given out again already", [&] {
      Shared shared;
      hand_over(shared, out, 0);
      Shared rest = shared.rest();
      rest.take<int>(32);
      store(rest.take<int>(64) + thread(), 0);
    });
  });
}
TEST(shared, a_piece_of_a_layout_before) {
  watched_everywhere([] {
    is_wrong({1, 64}, "out of bounds|nobody has written there|given out again", [&] {
      Shared shared;
      int* const before = shared.rest().take<int>(256);
      store(before + thread(), 1);
      sync();
      shared.rest().take<int>(64);
      load<int>(before + thread());
    });
    // By a warp that has not begun the new one.
    is_wrong({1, 64}, "used since the last barrier|given out again already", [&] {
      Shared shared;
      int* const before = shared.rest().take<int>(64);
      store(before + thread(), 1);
      sync();
      if (thread() < 32) {
        store(shared.rest().take<int>(64) + thread(), 2);
      } else {
        load<int>(before + thread());
      }
    });
  });
}
TEST(shared, layouts_that_differ) {
  everywhere([] {
    is_wrong({}, "different shared memory", [] {
      Shared shared;
      shared.rest().take<int>(thread() == 9 ? 31 : 32);
    });
    is_wrong({}, "different layouts", [] {
      Shared shared;
      if (thread() == 9) shared.take<int>(32);
      shared.rest().take<int>(32);
    });
  });
}

// --- Banks -----------------------------------------------------------------------------------------------

TEST(shared, passes_of_shared_memory) {
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
// Lanes go together by their numbers, whoever comes first and whoever does not.
TEST(shared, passes_of_lanes_that_meet) {
  for (const unsigned seed : kSeeds) {
    emulator::config = Config{};
    emulator::config.count_passes = true;
    emulator::config.seed = seed;
    emulator::reset_counts();
    is_right({1, 32}, [] {
      Shared shared;
      std::uint64_t* const box = shared.take<std::uint64_t>(128);
      const int lane = thread();
      // Of each 16 lanes two rows of 64 bytes, that meet in no bank of other rows of the 16.
      for (int i = 0; i < 3; ++i) {
        sync_warp();
        if (lane % 16 < 8 || i == 0) store(box + lane / 8 * 24 + lane % 8, std::uint64_t{0});
      }
      sync_warp();
    });
    emulator::config = Config{};
    CHECK(emulator::counts.shared_accesses == 6 && emulator::counts.shared_passes == 6);
  }
}
TEST(shared, passes_of_matrices) {
  const auto passes = [](int bytes_of_row) {
    emulator::config = Config{};
    emulator::config.count_passes = true;
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
TEST(shared, passes_by_their_place) {
  emulator::config = Config{};
  emulator::config.count_passes = true;
  emulator::reset_counts();
  const Array<int> in("in", std::vector<int>(128, 1));
  is_right({1, 32}, [&] {
    Shared shared;
    int* const box = shared.take<int>(1024);
    store(box + thread(), 0);
    store(box + 32 * thread(), 0);
    for (int i = 0; i < 2; ++i) copy_async(box + 4 * thread(), in.data() + 4 * thread());
    copy_commit();
    copy_wait<0>();
  });
  emulator::config = Config{};
  const auto found = emulator::passes_by_place();
  std::vector<int> accesses, passes;
  for (const auto& [place, here] : found) {
    CHECK_THAT(place.find("test_shared.cpp:") == 0, place);
    accesses.push_back(static_cast<int>(here.accesses)), passes.push_back(static_cast<int>(here.passes));
  }
  CHECK((accesses == std::vector<int>{1, 1, 8}));
  CHECK((passes == std::vector<int>{1, 32, 8}));
  emulator::reset_counts();
  CHECK(emulator::passes_by_place().empty() && emulator::counts.shared_passes == 0);
}

}  // namespace effv2::tests
