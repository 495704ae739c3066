// Accesses in the emulator: in bounds, of what was written, of memory that there is.
#include "planted.h"

namespace effv2::tests {

TEST(bounds, out_of_bounds) {
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
TEST(bounds, accesses_that_are_no_wrappers) {
  watched_everywhere([] {
    Array<int> out("out", 32);
    is_right({}, [&] { out.data()[thread()] = thread(); });
    is_wrong({}, "out of bounds", [&] { out.data()[thread() + 1] = thread(); });
    is_wrong({}, "not ordered", [&] { out.data()[thread() / 2] = thread(); });
  });
}
TEST(bounds, addresses_that_are_no_multiples) {
  everywhere([] {
    Array<int> out("out", 64);
    is_wrong({}, "no multiple of 8",
             [&] { store(reinterpret_cast<char*>(out.data()) + 4, std::uint64_t{0}); });
    is_wrong({}, "no multiple of 4", [&] { load<int>(reinterpret_cast<const char*>(out.data()) + 2); });
  });
}
TEST(bounds, what_nobody_has_written) {
  watched_everywhere([] {
    const Array<int> out("out", 32);
    is_wrong({}, "out + 0 (test_bounds.cpp", [&] {
      if (thread() == 0) load<int>(out.data());
    });
    is_wrong({}, "nobody has written there", [] {
      Shared shared;
      load<int>(shared.take<int>(32) + thread());
    });
  });
}

}  // namespace effv2::tests
