// Flags and counters between blocks in the emulator.
#include "planted.h"

namespace effv2::tests {

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

TEST(flags, a_flag_orders_blocks) {
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
TEST(flags, flags_are_passed_on) {
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
TEST(flags, a_thread_releases_what_it_wrote_itself) {
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
TEST(flags, a_flag_before_its_data) {
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
TEST(flags, a_flag_without_a_barrier) {
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
TEST(flags, a_flag_that_releases_nothing) {
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
TEST(flags, a_flag_of_the_launch_before) {
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
TEST(flags, memory_that_is_written_again_too_early) {
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
TEST(flags, constant_memory_that_is_not) {
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
TEST(flags, a_flag_that_nobody_sets) {
  everywhere([] {
    const Handed h;
    is_wrong({2, 64}, "nobody can go on", [&] { h.wait(1); });
  });
}
// Waiting for a block that comes to the GPU later than those that wait. Tasks that are taken in their order
// from a counter wait for nobody who is not there yet.
TEST(flags, few_blocks_at_a_time) {
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

}  // namespace effv2::tests
