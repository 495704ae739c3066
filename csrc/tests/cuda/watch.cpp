#include "watch.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>

#include "memory.h"

namespace effv2::emulator {
namespace {

std::vector<Region*> regions;
// What is released by a flag: its value before this launch touched it, and by each value that it took, what
// whoever waits for that one may know.
struct Flag {
  std::uint32_t before;
  std::vector<std::pair<std::uint32_t, Clock>> taken;
};
std::map<const std::uint32_t*, Flag> flags;
std::uint32_t launch_number = 0;
int launched_blocks, threads_of_block;
bool looking = false;  // the watch's own accesses are not looked at

int warps_of_block() { return threads_of_block / 32; }
int number_of(const Thread& thread) { return thread.block->index * threads_of_block + thread.id; }
int warp_number(const Thread& thread) { return thread.block->index * warps_of_block() + thread.warp(); }
std::uint64_t time_of(const Thread& thread) {
  return std::uint64_t{thread.block->epoch} << 32 | thread.block->warps[thread.warp()].epoch;
}

Clock& clock_in(std::shared_ptr<Clock>& place) {
  if (!place) place = std::make_shared<Clock>();
  return *place;
}

// Whether the running thread knows what a warp did at a time.
bool knows(int warp, std::uint64_t time) {
  const Thread& me = *current;
  if (warp / warps_of_block() == me.block->index) {
    if (warp == warp_number(me) && time < time_of(me)) return true;
    if (time >> 32 < me.block->epoch) return true;
  }
  for (const Clock* clock : {me.block->known.get(), me.block->warps[me.warp()].known.get(), me.known.get()}) {
    if (clock && !clock->warps.empty() && time < clock->warps[warp]) return true;
  }
  return false;
}
bool knows_of_thread(int thread, std::uint32_t releases) {
  const Thread& me = *current;
  if (thread == number_of(me)) return true;
  for (const Clock* clock : {me.block->known.get(), me.block->warps[me.warp()].known.get(), me.known.get()}) {
    if (!clock) continue;
    const auto found = clock->threads.find(thread);
    if (found != clock->threads.end() && releases < found->second) return true;
  }
  return false;
}

std::string thread_name(int number) {
  const int block = number / threads_of_block, thread = number % threads_of_block;
  const std::string which =
      "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / 32) + ")";
  return block == current->block->index ? which : which + " of block " + std::to_string(block);
}

struct Looked {
  const void* p;
  std::size_t bytes;
  Access access;
  Place at;
  void* address;  // of the instruction, where no place is known
  const char* region;
  long offset;
};

std::string source_line(void* address) {
  Dl_info info;
  if (!dladdr(address, &info)) return "?";
  char command[600], text[400] = "?";
  const auto offset = static_cast<char*>(address) - static_cast<char*>(info.dli_fbase) - 1;
  std::snprintf(command, sizeof command, "addr2line -e '%s' %#lx", info.dli_fname,
                static_cast<unsigned long>(offset));
  if (std::FILE* const f = popen(command, "r")) {
    if (!std::fgets(text, sizeof text, f)) text[0] = '?', text[1] = 0;
    pclose(f);
  }
  std::string line(text);
  line.erase(line.find_last_not_of("\n") + 1);
  return line.substr(line.rfind('/') + 1);
}

[[noreturn]] void wrong(const std::string& what, Looked looked) {
  static const char* const names[] = {"read", "write", "atomic", "constant read"};
  std::string where = looked.region ? looked.region : "shared memory";
  if (!looked.region) {  // the piece that it is nearest to
    const std::vector<Piece>& pieces = current->block->layouts[current->layout].pieces;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const auto p = static_cast<const char*>(looked.p);
      if (p < pieces[i].begin - kSharedGap / 2 || p >= pieces[i].begin + pieces[i].bytes + kSharedGap / 2)
        continue;
      where = "piece " + std::to_string(i) + " of shared memory";
      looked.offset = p - pieces[i].begin;
    }
  }
  const std::string line = looked.address ? source_line(looked.address) : name_of(looked.at);
  looking = false;
  fail(std::string(names[static_cast<int>(looked.access)]) + " of " + std::to_string(looked.bytes) +
       " bytes at " + where + " + " + std::to_string(looked.offset) + " (" + line + "): " + what);
}

void look_at_write(const Cell& cell, const Looked& looked) {
  if (cell.write_launch != launch_number || cell.writer < 0) return;
  if (looked.access == Access::constant) wrong("constant memory is written during the launch", looked);
  if (looked.access == Access::atomic && cell.atomic) return;
  const int warp = cell.writer / 32;
  if (knows_of_thread(cell.writer, cell.write_releases) || knows(warp, cell.write_time)) return;
  wrong("it is not ordered behind the write of " + thread_name(cell.writer), looked);
}

void look_at_readers(const Cell& cell, const Looked& looked) {
  if (cell.read_launch != launch_number) return;
  const Thread& me = *current;
  for (const Reader& reader : cell.readers) {
    const bool mine = reader.warp == warp_number(me) && reader.lanes == 1u << me.lane();
    if (mine || knows(reader.warp, reader.time)) continue;
    int lane = 0;
    while (!(reader.lanes >> lane & 1u)) ++lane;
    wrong("it is not ordered behind the read of " + thread_name(reader.warp * 32 + lane), looked);
  }
}

void note_reader(Cell& cell) {
  const Thread& me = *current;
  if (cell.read_launch != launch_number) cell.readers.clear();
  cell.read_launch = launch_number;
  const int warp = warp_number(me);
  const std::uint64_t time = time_of(me);
  for (Reader& reader : cell.readers) {
    if (reader.warp != warp) continue;
    if (reader.time != time) reader.lanes = 0;
    reader.time = time;
    reader.lanes |= 1u << me.lane();
    return;
  }
  cell.readers.push_back({warp, time, 1u << me.lane()});
}

void look_at(Cell& cell, const Looked& looked) {
  const Thread& me = *current;
  if (cell.copier >= 0)
    wrong("a copy_async() of " + thread_name(cell.copier) + " to there is under way", looked);
  const bool reads = looked.access == Access::read || looked.access == Access::constant;
  if (looked.access != Access::write && !cell.written) wrong("nobody has written there", looked);
  look_at_write(cell, looked);
  if (looked.access == Access::constant) cell.constant_launch = launch_number;
  if (reads) return note_reader(cell);
  if (cell.constant_launch == launch_number) wrong("it is read as constant memory in this launch", looked);
  if (looked.access == Access::write || !cell.atomic) look_at_readers(cell, looked);
  cell.readers.clear();
  cell.write_time = time_of(me);
  cell.write_launch = launch_number;
  cell.write_releases = me.releases;
  cell.writer = number_of(me);
  cell.written = true;
  cell.atomic = looked.access == Access::atomic;
}

Cell* shared_cells(Block& block, const char* p) { return block.cells.data() + (p - block.shared) / kGrain; }

// The piece of the running thread's layout that holds all of it.
Piece* piece_of(Block& block, const char* p, std::size_t bytes) {
  for (Piece& piece : block.layouts[current->layout].pieces) {
    if (p >= piece.begin && p + bytes <= piece.begin + piece.bytes) return &piece;
  }
  return nullptr;
}

// The buffer that an address belongs to, or which it missed by little: there is none behind it that is
// nearer.
Region* region_of(const char* p) {
  constexpr std::ptrdiff_t kNear = 64 << 10;
  Region* found = nullptr;
  std::ptrdiff_t least = kNear;
  for (Region* region : regions) {
    if (p >= region->begin && p < region->end) return region;
    const std::ptrdiff_t by = p < region->begin ? region->begin - p : p - region->end;
    if (by < least) least = by, found = region;
  }
  return found;
}

void look(Looked looked) {
  if (!current) return;
  Block& block = *current->block;
  const auto p = static_cast<const char*>(looked.p);
  const std::size_t count = (looked.bytes + kGrain - 1) / kGrain;
  if (p >= block.shared && p < block.shared_end) {
    Piece* const piece = piece_of(block, p, looked.bytes);
    if (!piece) wrong("out of bounds", looked);
    if (is_given_out_again(block, *piece)) wrong("it is given out again already", looked);
    piece->used = block.epoch + 1;
    Cell* const cells = shared_cells(block, p);
    for (std::size_t i = 0; i < count; ++i) look_at(cells[i], looked);
    return;
  }
  if (p >= block.shared_end && p < block.shared_end + kSharedGaps) wrong("out of bounds", looked);
  Region* const region = region_of(p);
  if (!region) {
    // What the compiler tells of may be a thread's own; what kernels load and store is memory of theirs.
    if (!looked.address) wrong("no buffer is there", looked);
    return;
  }
  looked.region = region->name.c_str();
  looked.offset = p - region->begin;
  if (p < region->begin || p + looked.bytes > region->end) wrong("out of bounds", looked);
  const bool reads = looked.access == Access::read || looked.access == Access::constant;
  if (!region->writable && !reads) wrong("the kernel may not write there", looked);
  if (!region->writable) return;
  Cell* const cells = &region->cells[looked.offset / static_cast<long>(kGrain)];
  for (std::size_t i = 0; i < count; ++i) look_at(cells[i], looked);
}

void look_once(const Looked& looked) {
  if (looking) return;
  looking = true;
  look(looked);
  looking = false;
}

}  // namespace

void Clock::join(const Clock& other) {
  if (warps.size() < other.warps.size()) warps.resize(other.warps.size());
  for (std::size_t i = 0; i < other.warps.size(); ++i) warps[i] = std::max(warps[i], other.warps[i]);
  for (const auto& [thread, releases] : other.threads) {
    std::uint32_t& mine = threads[thread];
    mine = std::max(mine, releases);
  }
}

void enter(Region& region) { regions.push_back(&region); }
void leave(Region& region) { regions.erase(std::find(regions.begin(), regions.end(), &region)); }

void begin_watching(int blocks, int threads) {
  ++launch_number;
  flags.clear();
  launched_blocks = blocks;
  threads_of_block = threads;
}
void begin_watching(Block& block) { block.cells.resize((block.shared_end - block.shared) / kGrain); }

void forget_shared(Block& block, const char* p, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += kGrain) shared_cells(block, p + i)->written = false;
}

void watch(const void* p, std::size_t bytes, Access access, Place at) {
  look_once({p, bytes, access, at, nullptr, nullptr, 0});
}

void copy_begins(const Copy& copy) {
  watch(copy.to, 16, Access::write, copy.at);
  Block& block = *current->block;
  for (std::size_t i = 0; i < 16; i += kGrain) shared_cells(block, copy.to + i)->copier = number_of(*current);
}
void copy_ends(const Copy& copy) {
  Block& block = *current->block;
  for (std::size_t i = 0; i < 16; i += kGrain) shared_cells(block, copy.to + i)->copier = -1;
  watch(copy.to, 16, Access::write, copy.at);
}

void release(const std::uint32_t* flag, std::uint32_t value) {
  Thread& me = *current;
  const Block& block = *me.block;
  Flag& known = flags.try_emplace(flag, Flag{*flag, {}}).first->second;
  Clock clock;
  if (!known.taken.empty()) clock = known.taken.back().second;
  for (const Clock* mine : {block.known.get(), block.warps[me.warp()].known.get(), me.known.get()}) {
    if (mine) clock.join(*mine);
  }
  clock.warps.resize(static_cast<std::size_t>(launched_blocks) * warps_of_block());
  for (int w = 0; w < warps_of_block(); ++w) {
    std::uint64_t& time = clock.warps[block.index * warps_of_block() + w];
    time = std::max(time, w == me.warp() ? time_of(me) : std::uint64_t{block.epoch} << 32);
  }
  clock.threads[number_of(me)] = ++me.releases;
  known.taken.emplace_back(*flag + value, std::move(clock));
}

// Of what was released later than the value that is waited for, nothing is known, though in this order it may
// have happened.
void acquire(const std::uint32_t* flag, std::uint32_t value) {
  const auto reached = [&](std::uint32_t found) { return static_cast<std::int32_t>(found - value) >= 0; };
  const auto known = flags.find(flag);
  if (known == flags.end() || reached(known->second.before)) return;
  for (const auto& [found, clock] : known->second.taken) {
    if (!reached(found)) continue;
    clock_in(current->known).join(clock);
    return;
  }
}

void learn_in_warp(Block& block, int warp) {
  for (int l = 0; l < 32; ++l) {
    Thread& thread = block.threads[warp * 32 + l];
    if (!thread.known) continue;
    clock_in(block.warps[warp].known).join(*thread.known);
    thread.known.reset();
  }
}
void learn_in_block(Block& block) {
  for (std::size_t w = 0; w < block.warps.size(); ++w) {
    learn_in_warp(block, static_cast<int>(w));
    if (!block.warps[w].known) continue;
    clock_in(block.known).join(*block.warps[w].known);
    block.warps[w].known.reset();
  }
}

}  // namespace effv2::emulator

// --- What the compiler calls for -fsanitize=thread -------------------------------------------------------

using effv2::emulator::Access;

static void traced(void* p, std::size_t bytes, Access access, void* address) {
  if (!effv2::emulator::config.watch) return;
  effv2::emulator::look_once({p, bytes, access, {}, address, nullptr, 0});
}

extern "C" {
#define EFFV2_TRACED(bytes)                                                                                  \
  void __tsan_read##bytes(void* p) { traced(p, bytes, Access::read, __builtin_return_address(0)); }          \
  void __tsan_write##bytes(void* p) { traced(p, bytes, Access::write, __builtin_return_address(0)); }        \
  void __tsan_unaligned_read##bytes(void* p) {                                                               \
    traced(p, bytes, Access::read, __builtin_return_address(0));                                             \
  }                                                                                                          \
  void __tsan_unaligned_write##bytes(void* p) {                                                              \
    traced(p, bytes, Access::write, __builtin_return_address(0));                                            \
  }                                                                                                          \
  void __tsan_volatile_read##bytes(void* p) { traced(p, bytes, Access::read, __builtin_return_address(0)); } \
  void __tsan_volatile_write##bytes(void* p) { traced(p, bytes, Access::write, __builtin_return_address(0)); }
EFFV2_TRACED(1)
EFFV2_TRACED(2)
EFFV2_TRACED(4)
EFFV2_TRACED(8)
EFFV2_TRACED(16)
void __tsan_read_range(void* p, std::size_t bytes) {
  traced(p, bytes, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* p, std::size_t bytes) {
  traced(p, bytes, Access::write, __builtin_return_address(0));
}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
