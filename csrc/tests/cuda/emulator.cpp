#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "fibers.h"
#include "memory.h"
#include "watch.h"

namespace effv2::emulator {

Config config;
Counts counts{};

namespace {

constexpr int kLanes = 32, kMostThreads = 1024;
constexpr std::size_t kMostShared = 227 << 10;

const char* name_of(Operation operation) {
  static const char* const names[] = {"nothing",     "mma()",  "load_matrices()",  "a shuffle",
                                      "sync_warp()", "sync()", "acquire_reached()"};
  return names[static_cast<int>(operation)];
}

// --- A launch --------------------------------------------------------------------------------------------

struct Resident {
  std::unique_ptr<Block> block;
  Stacks stacks;
  Guarded shared;
};

struct Launch {
  int blocks, threads;
  std::size_t shared_bytes;
  const std::function<void()>& body;
  std::mt19937 random{config.seed};
  std::vector<Resident> resident{};
  std::vector<Thread*> at_flags{};
  bool changed = false;  // a flag or counter has since at_flags were looked at
  std::string error{};
  std::vector<int> to_come{};  // blocks, the next one last

  void go();
  void admit();
  void start(Block& block, const Stacks& stacks);
  Block* choose();
  void run_some(Block& block);
  void wake();
  void report_deadlock();
};
Launch* running;

[[noreturn]] void give_up(const std::string& what) {
  running->error = what;
  while (true) yield();
}

void make_ready(Thread& thread) {
  thread.state = State::ready;
  ++thread.block->warps[thread.warp()].ready;
}

void order_anew(Block& block) {
  const int warps = static_cast<int>(block.warps.size());
  for (int w = 0; w < warps; ++w) {
    block.order[w] = config.seed == 1 ? warps - 1 - w : w;
    int* const lanes = block.warps[w].order;
    for (int l = 0; l < kLanes; ++l) lanes[l] = config.seed == 1 ? kLanes - 1 - l : l;
    if (config.seed > 1) std::shuffle(lanes, lanes + kLanes, running->random);
  }
  if (config.seed > 1) std::shuffle(block.order.begin(), block.order.end(), running->random);
}

[[noreturn]] void disagree(Operation operation, Place at) {
  const Thread& me = *current;
  const std::string what = std::string(name_of(operation)) + ", but lane ";
  const Thread* const lanes = &me.block->threads[me.warp() * kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const Thread& other = lanes[l];
    if (&other == &me || other.state == State::ready) continue;
    if (other.state == State::done) fail(what + std::to_string(l) + " has ended", at);
    if (other.operation != operation || other.at.line != at.line) {
      fail(what + std::to_string(l) + " waits in " + name_of(other.operation) + " at " + name_of(other.at),
           at);
    }
  }
  fail(what + "others went another way", at);
}

void run_thread() {
  running->body();
  Thread& me = *current;
  Block& block = *me.block;
  Warp& warp = block.warps[me.warp()];
  if (!me.copies.empty())
    fail("the thread ends with a copy_async() that it has not waited for", me.copies[0].at);
  if (block.in_barrier) fail("the thread ends while others wait in sync()", block.barrier);
  if (warp.waiting) disagree(Operation::none, {"the end", 0});
  me.state = State::done;
  --warp.ready;
  ++warp.away;
  --block.alive;
  while (true) yield();
}

void Launch::start(Block& block, const Stacks& stacks) {
  block.threads.resize(threads);
  block.warps.resize(threads / kLanes);
  block.order.resize(threads / kLanes);
  block.alive = threads;
  for (int t = 0; t < threads; ++t) {
    Thread& thread = block.threads[t];
    thread.block = &block;
    thread.id = t;
    prepare(thread, stacks, run_thread);
    make_ready(thread);
  }
  order_anew(block);
  ++counts.blocks;
}

void Launch::admit() {
  while (!to_come.empty() && static_cast<int>(resident.size()) < std::max(config.resident, 1)) {
    // Gaps between pieces are as wide as their alignment, and as many as there may be pieces.
    Resident made{std::make_unique<Block>(), take_stacks(threads), Guarded(shared_bytes + kSharedGaps)};
    Block& block = *made.block;
    block.index = to_come.back();
    to_come.pop_back();
    block.shared = made.shared.begin();
    block.shared_end = made.shared.end();
    block.shared_bytes = shared_bytes;
    block.layouts.resize(1);
    std::memset(block.shared, 0xff, block.shared_end - block.shared);  // NaN, whatever it is read as
    if (config.watch) begin_watching(block);
    start(block, made.stacks);
    resident.push_back(std::move(made));
  }
}

// The first that can run, from the front, from the back or from anywhere on.
Block* Launch::choose() {
  const std::size_t count = resident.size(), first = config.seed > 1 ? random() % count : 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = config.seed == 1 ? count - 1 - i : (first + i) % count;
    for (const Warp& warp : resident[at].block->warps) {
      if (warp.ready) return resident[at].block.get();
    }
  }
  return nullptr;
}

// A warp that can run, as far as it can.
void Launch::run_some(Block& block) {
  const std::uint32_t epoch = block.epoch;
  for (const int w : block.order) {
    Warp& warp = block.warps[w];
    if (!warp.ready) continue;
    while (warp.ready && error.empty()) {
      for (int l = 0; l < kLanes && error.empty(); ++l) {
        Thread& thread = block.threads[w * kLanes + warp.order[l]];
        if (thread.state == State::ready) run(thread);
        if (block.epoch != epoch) return;  // in a new order
      }
    }
    return;
  }
}

void Launch::wake() {
  changed = false;
  const auto reached = [](Thread* thread) {
    if (static_cast<std::int32_t>(*thread->flag - thread->value) < 0) return false;
    --thread->block->warps[thread->warp()].away;
    make_ready(*thread);
    return true;
  };
  at_flags.erase(std::remove_if(at_flags.begin(), at_flags.end(), reached), at_flags.end());
}

void Launch::report_deadlock() {
  for (const Resident& r : resident) {
    for (const Thread& thread : r.block->threads) {
      if (thread.state == State::done) continue;
      error = emulator::name_of(thread) + " waits in " + name_of(thread.operation) + " at " +
              emulator::name_of(thread.at);
      if (thread.state == State::at_flag) {
        error += " for " + std::to_string(thread.value) + ", and finds " + std::to_string(*thread.flag);
        if (!to_come.empty()) error += "; " + std::to_string(to_come.size()) + " blocks wait for room";
      }
      error += ": nobody can go on";
      return;
    }
  }
}

void Launch::go() {
  for (int i = blocks - 1; i >= 0; --i) to_come.push_back(i);
  if (config.seed == 1) std::reverse(to_come.begin(), to_come.end());
  if (config.seed > 1) std::shuffle(to_come.begin(), to_come.end(), random);
  while (error.empty()) {
    admit();
    if (resident.empty()) return;
    Block* const block = choose();
    if (!block) {
      report_deadlock();
      break;
    }
    run_some(*block);
    if (changed) wake();
    if (block->alive) continue;
    if (config.count_passes) {
      for (std::size_t w = 0; w < block->warps.size(); ++w) count_together(*block, static_cast<int>(w));
    }
    const auto done = std::find_if(resident.begin(), resident.end(),
                                   [&](const Resident& r) { return r.block.get() == block; });
    give_back(done->stacks);
    resident.erase(done);
  }
  for (const Resident& r : resident) give_back(r.stacks);
}

}  // namespace

std::string name_of(Place at) {
  const char* const slash = std::strrchr(at.file, '/');
  return std::string(slash ? slash + 1 : at.file) + ":" + std::to_string(at.line);
}
std::string name_of(const Thread& thread) {
  return "block " + std::to_string(thread.block->index) + " thread " + std::to_string(thread.id) + " (warp " +
         std::to_string(thread.warp()) + " lane " + std::to_string(thread.lane()) + ")";
}
void fail(const std::string& what) { give_up(name_of(*current) + ": " + what); }
void fail(const std::string& what, Place at) { fail(what + " (" + name_of(at) + ")"); }

void launch(int blocks, int threads, std::size_t shared_bytes, const std::function<void()>& body) {
  if (threads % kLanes || threads < kLanes || threads > kMostThreads) {
    throw Error("a block has whole warps and at most 1024 threads, not " + std::to_string(threads));
  }
  if (blocks < 1) throw Error("a launch has at least one block, not " + std::to_string(blocks));
  if (shared_bytes > kMostShared) {
    throw Error("a block has at most 227 KiB of shared memory, not " + std::to_string(shared_bytes) +
                " bytes");
  }
  Launch launch{blocks, threads, shared_bytes, body};
  running = &launch;
  if (config.watch) begin_watching(blocks, threads);
  launch.go();
  running = nullptr;
  current = nullptr;
  if (!launch.error.empty()) throw Error(launch.error);
}

void in_warp(Operation operation, void* argument, void (*f)(void** arguments), Place at) {
  Thread& me = *current;
  Block& block = *me.block;
  Warp& warp = block.warps[me.warp()];
  Thread* const lanes = &block.threads[me.warp() * kLanes];
  if (warp.away) disagree(operation, at);
  if (warp.waiting && (lanes[warp.first].operation != operation || lanes[warp.first].at.line != at.line)) {
    disagree(operation, at);
  }
  if (!warp.waiting) warp.first = me.lane();
  me.operation = operation;
  me.at = at;
  me.argument = argument;
  if (++warp.waiting < kLanes) {
    me.state = State::in_warp;
    --warp.ready;
    yield();
    return;
  }
  if (config.count_passes) count_together(block, me.warp());
  void* arguments[kLanes];
  for (int l = 0; l < kLanes; ++l) arguments[l] = lanes[l].argument;
  warp.waiting = 0;
  if (operation == Operation::sync_warp) {
    ++warp.epoch;
    if (config.watch) learn_in_warp(block, me.warp());
  }
  f(arguments);
  for (int l = 0; l < kLanes; ++l) {
    if (&lanes[l] != &me) make_ready(lanes[l]);
  }
}

void sync(Place at) {
  Thread& me = *current;
  Block& block = *me.block;
  Warp& warp = block.warps[me.warp()];
  if (!block.in_barrier) block.barrier = at;
  if (block.barrier.line != at.line) fail("sync(), but others wait in that at " + name_of(block.barrier), at);
  if (block.alive != static_cast<int>(block.threads.size())) fail("sync() after a thread has ended", at);
  if (warp.waiting) disagree(Operation::sync, at);
  me.operation = Operation::sync;
  me.at = at;
  me.state = State::in_block;
  --warp.ready;
  ++warp.away;
  if (++block.in_barrier == static_cast<int>(block.threads.size())) {
    block.in_barrier = 0;
    ++block.epoch;
    ++counts.barriers;
    if (config.watch) learn_in_block(block);
    if (config.count_passes) {
      for (std::size_t w = 0; w < block.warps.size(); ++w) count_together(block, static_cast<int>(w));
    }
    for (Warp& w : block.warps) w.away = 0;
    for (Thread& thread : block.threads) make_ready(thread);
    order_anew(block);
  }
  yield();
}

int blocks() { return running->blocks; }

void note_change() { running->changed = true; }

void wait_at_flag(const std::uint32_t* flag, std::uint32_t value, Place at) {
  Thread& me = *current;
  Warp& warp = me.block->warps[me.warp()];
  me.operation = Operation::flag;
  me.at = at;
  me.flag = flag;
  me.value = value;
  me.state = State::at_flag;
  --warp.ready;
  ++warp.away;
  running->at_flags.push_back(&me);
  yield();
}

}  // namespace effv2::emulator
