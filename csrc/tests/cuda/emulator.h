// Runs the blocks of a CUDA kernel on a CPU, for tests: several at a time, as on a GPU.
//
// Each thread of a block is a fiber with a stack of its own. A fiber runs until it meets an instruction of
// its warp (mma, ldmatrix, a shuffle), a barrier or a flag that others set; the last of a warp's 32 lanes to
// come executes an instruction of the warp for all of them. Who runs next is decided by the seed. What is
// wrong by the rules of the programming model (a lane that is missing, a barrier that not all reach, a flag
// that nobody sets) ends the launch with an Error, whatever the order was.
//
// That every access is in bounds, of something written, and ordered with those of other threads, is watched
// by watch.h in a build of the kernels that is made for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// What belongs to the emulator is no access of the kernel's.
#define EFFV2_UNWATCHED __attribute__((no_sanitize("thread")))

namespace effv2::emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of every launch until it is changed.
struct Config {
  unsigned seed = 0;          // 0: first block, warp and lane first; 1: last first; others: shuffled
  int resident = 1 << 20;     // blocks that are on the GPU at a time
  bool early_copies = false;  // cp.async copies at once; else when it is waited for
  bool approximate = false;   // the hardware's approximations are as far off as they may be
  bool watch = false;         // see watch.h
  bool count_passes = false;  // of accesses to shared memory
};
extern Config config;

// Since the program started, or since they were set to zero.
struct Counts {
  std::uint64_t blocks, barriers, mmas, matrices, copies;
  // What the wrappers of a thread are on a GPU, in instructions: about all of a kernel but addresses and
  // loops, and arithmetic in float.
  std::uint64_t operations;
  // Shared memory, where Config::count_passes asks for it: accesses of a warp, and the passes that they take,
  // which are more where addresses meet in banks.
  std::uint64_t shared_accesses, shared_passes;
};
extern Counts counts;
inline void count_operations(int instructions) { counts.operations += instructions; }

// In a kernel's source.
struct Place {
  const char* file;
  int line;

  bool operator==(const Place& other) const { return line == other.line && file == other.file; }
};
// The last parameters of what kernels call.
#define EFFV2_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EFFV2_HERE (::effv2::emulator::Place{file, line})
std::string name_of(Place at);

// Of the shared memory's accesses, those of one place in the source.
struct Passes {
  std::uint64_t accesses, passes;
};
// By the place's name.
std::map<std::string, Passes> passes_by_place();
void reset_counts();

enum class Operation : std::uint8_t { none, mma, matrices, shuffle, sync_warp, sync, flag };
enum class State : std::uint8_t { ready, in_warp, in_block, at_flag, done };

struct Copy {
  char* to;
  const char* from;
  bool valid;
  int group;
  Place at;
};

struct Clock;  // what a thread knows of others' writes: watch.h

struct Block;
struct Thread {
  void* stack_pointer;
  char* stack;
  State state;
  Operation operation;  // that it waits in
  Place at;
  void* argument;
  Block* block;
  int id;
  std::vector<Copy> copies;  // in the order of their issue
  int open_group;
  const std::uint32_t* flag;
  std::uint32_t value;  // that the flag must reach
  std::uint32_t releases;
  std::shared_ptr<Clock> known;
  std::vector<std::pair<Place, int>> visits;  // and how often since its warp last met
  int layout;                                 // of shared memory, that it took a piece of last
  int layouts;                                // that it has begun

  int warp() const { return id / 32; }
  int lane() const { return id % 32; }
};

// Of lanes that come to the same place as often: what a GPU would do at once.
struct TogetherAt {
  Place at;
  int times, bytes;
  const void* addresses[32];  // of each lane, nullptr of those that do not come
};

struct Warp {
  int waiting, ready, away;  // lanes in an instruction; that can run; in a barrier, at a flag or gone
  int first;                 // the lane that waits longest
  std::uint32_t epoch;       // sync_warp()s so far
  int order[32];
  std::shared_ptr<Clock> known;
  std::vector<TogetherAt> together;  // accesses to shared memory since its lanes last met
};

struct Cell;
struct Piece {
  char* begin;
  std::size_t bytes;
  std::uint32_t used;  // the last epoch in which somebody did, counted from 1; where that is watched
};
// Shared memory as it was given out once: the first pieces may be those of a layout before.
struct Layout {
  std::vector<Piece> pieces;
  std::size_t bytes;
  int before, kept;  // that one, and how many of its pieces
};

struct Block {
  int index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<int> order;  // of the warps
  int alive, in_barrier;
  Place barrier;
  std::uint32_t epoch;  // sync()s so far
  char *shared, *shared_end;
  std::size_t shared_bytes;
  std::vector<Layout> layouts;
  int newest;  // of them, that somebody has taken a piece of
  std::vector<Cell> cells;
  std::shared_ptr<Clock> known;
};

extern Thread* current;  // nullptr outside of kernels

// Ends the launch with what the running thread did wrong.
[[noreturn]] void fail(const std::string& what);
[[noreturn]] void fail(const std::string& what, Place at);
std::string name_of(const Thread& thread);

// Of the launch that runs.
int blocks();
// Memory has changed that threads may wait for.
void note_change();
// Until it has reached the value, counting around zero.
void wait_at_flag(const std::uint32_t* flag, std::uint32_t value, Place at);

// Runs body once for every thread. Throws Error.
void launch(int blocks, int threads, std::size_t shared_bytes, const std::function<void()>& body);

// --- What emulated/device.h is made of -------------------------------------------------------------------

// An instruction that all lanes of a warp execute together: f once, with the arguments of the lanes.
void in_warp(Operation operation, void* argument, void (*f)(void** arguments), Place at);
void sync(Place at);
bool in_shared(const void* p);
// A piece, by its number, of a layout.
void* take_shared(int layout, int piece, std::size_t bytes, Place at);
// Whether the running thread uses a piece of a layout after which others have begun one without it.
bool is_given_out_again(const Block& block, const Piece& piece);
// A new layout that begins with so many pieces of another: all threads of a block begin the same ones.
int rest_of_shared(int layout, int pieces, Place at);
// Of `bytes` from p, which must be a multiple of that.
enum class Access : std::uint8_t { read, write, atomic, constant };
void touch(const void* p, std::size_t bytes, Access access, Place at);
// A row of load_matrices(): 16 bytes of shared memory.
void touch_matrix_row(const void* row, Place at);
// Of what lanes access together: `bytes` at each address that is not nullptr, in the banks of shared memory.
void count_passes(const void* const* addresses, int lanes, int bytes, Place at);
void note_shared_access(const void* p, int bytes, Place at);
// The lanes of a warp have met: what they did since the last time is counted.
void count_together(Block& block, int warp);
void copy_async(void* to, const void* from, bool valid, Place at);
void copy_commit();
void copy_wait(int pending);
int fetch_add(int* p, int value, Place at);
std::uint64_t fetch_add(std::uint64_t* p, std::uint64_t value, Place at);
void release_add(std::uint32_t* flag, std::uint32_t value, Place at);
void acquire_reached(const std::uint32_t* flag, std::uint32_t value, Place at);

}  // namespace effv2::emulator
