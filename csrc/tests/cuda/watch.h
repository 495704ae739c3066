// Every access of a kernel to shared and global memory, watched: whether it is in bounds, reads what somebody
// has written, and is ordered with those of other threads.
//
// Two accesses of which one is a write are ordered by a barrier of the block or the warp between them, or by
// a flag that one block releases behind its access and the other acquires before its own. That is looked up,
// not waited for: the verdict does not depend on the order in which the fibers happened to run.
//
// The kernels' translation unit is compiled with -fsanitize=thread and linked without its library; what the
// compiler calls on every access is defined in watch.cpp. Included by the emulator alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"

namespace effv2::emulator {

// What is known of others: of a warp, by its number in the launch, all before a time; of a thread, all that
// it did before so many of its releases.
struct Clock {
  std::vector<std::uint64_t> warps;
  std::map<int, std::uint32_t> threads;

  void join(const Clock& other);
};

inline constexpr std::size_t kGrain = 2;  // bytes that are watched together

struct Reader {
  int warp;
  std::uint64_t time;
  std::uint32_t lanes;
};

// The last write, and who has read it since.
struct Cell {
  std::uint64_t write_time = 0;
  std::uint32_t write_launch = 0, write_releases = 0, read_launch = 0, constant_launch = 0;
  int writer = -1, copier = -1;  // threads; of a copy that is under way
  bool written = false, atomic = false;
  std::vector<Reader> readers{};
};

struct Region {
  std::string name;
  char *begin, *end;
  bool writable;
  std::vector<Cell> cells;
};
void enter(Region& region);
void leave(Region& region);

void begin_watching(int blocks, int threads);
void begin_watching(Block& block);
// What lies there now is nothing that anybody has written.
void forget_shared(Block& block, const char* p, std::size_t bytes);
void watch(const void* p, std::size_t bytes, Access access, Place at);
void copy_begins(const Copy& copy);
void copy_ends(const Copy& copy);
// Of the running thread: before it adds to a flag, and when the flag has reached a value.
void release(const std::uint32_t* flag, std::uint32_t value);
void acquire(const std::uint32_t* flag, std::uint32_t value);
// What threads have acquired is known to their warp, or block.
void learn_in_warp(Block& block, int warp);
void learn_in_block(Block& block);

}  // namespace effv2::emulator
