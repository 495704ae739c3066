// Memory that is given back together. Not for the blocks: std::vector's functions would be compiled for their
// ISA, and a linker may choose any of several copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace effv2 {

// Many buffers in few large pieces of memory, given back together. Megabytes of weights are read once per
// image: pages of 2 MB, where the system has them, spare the look-up of thousands of small ones.
class Arena {
 public:
  // What has been freed in small pieces, such as the weights' earlier forms, goes back to the system first:
  // the arena is no place where it would be used again.
  Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();
  // Aligned to 64 bytes; not set to anything. Throws std::bad_alloc.
  std::byte* take(std::int64_t bytes);

 private:
  std::vector<void*> pieces_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
};

// While it lives, the buffers that this thread makes come from the arena, if it is not null, and must not
// outlive it.
class ArenaScope {
 public:
  explicit ArenaScope(Arena* arena);
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;
  ~ArenaScope();

 private:
  Arena* outer_;
};

}  // namespace effv2
