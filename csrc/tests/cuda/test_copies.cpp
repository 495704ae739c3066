// Asynchronous copies in the emulator.
#include "planted.h"

namespace effv2::tests {

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

TEST(copies, copies) {
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
TEST(copies, copies_in_two_stages) {
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
TEST(copies, a_wait_that_is_missing_or_short) {
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
TEST(copies, a_barrier_that_is_missing_behind_a_wait) {
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
TEST(copies, copies_to_where_others_still_read) {
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
TEST(copies, copies_from_and_to_wrong_places) {
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

}  // namespace effv2::tests
