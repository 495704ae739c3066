// The wrappers of cuda/device.h in the emulator, in every order and watched.
#include "../check.h"
#include "memory.h"
#include "wrappers.h"

namespace effv2::tests {

TEST(wrappers, definitions) {
  for (const bool watched : {false, true}) {
    for (const unsigned seed : {0u, 1u, 2u, 3u}) {
      emulator::config = emulator::Config{};
      emulator::config.watch = watched;
      emulator::config.seed = seed;
      emulator::config.approximate = seed % 2;
      emulator::config.early_copies = seed > 1;
      cuda::wrappers::for_each_wrapper(
          [](const char* name, int blocks, auto kernel, const auto& in, auto wrong) {
            const emulator::Array<std::uint32_t> input("in", in), output("out", cuda::wrappers::kWords);
            emulator::Array<std::uint32_t> flags("flags", cuda::wrappers::kFlags);
            flags.fill(0);
            std::string error;
            try {
              emulator::launch(blocks, 32, cuda::wrappers::kSharedBytes,
                               [&] { kernel({input.data(), output.data(), flags.data()}); });
              error = wrong(in, output.values());
            } catch (const emulator::Error& e) {
              error = e.what();
            }
            CHECK_THAT(error.empty(), std::string(name) + ": " + error);
          });
    }
  }
  emulator::config = emulator::Config{};
}

}  // namespace effv2::tests
