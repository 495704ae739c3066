// What kernels do to memory: loads and stores, asynchronous copies, counters and flags.
#include <cstring>
#include <string>
#include <type_traits>

#include "emulator.h"
#include "watch.h"

namespace effv2::emulator {

void touch(const void* p, std::size_t bytes, Access access, Place at) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes) {
    fail("an address that is no multiple of " + std::to_string(bytes), at);
  }
  if (config.watch) watch(p, bytes, access, at);
  if (config.count_passes && in_shared(p)) note_shared_access(p, static_cast<int>(bytes), at);
}

void touch_matrix_row(const void* row, Place at) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16) fail("a row that is no multiple of 16", at);
  if (!in_shared(row)) fail("load_matrices() of what is no shared memory", at);
  if (config.watch) watch(row, 16, Access::read, at);
}

// --- Asynchronous copies ---------------------------------------------------------------------------------

static constexpr std::size_t kCopied = 16;

static void carry_out(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, kCopied);
  } else {
    std::memset(copy.to, 0, kCopied);
  }
}

void copy_async(void* to, const void* from, bool valid, Place at) {
  Thread& me = *current;
  const auto place = static_cast<char*>(to);
  if (reinterpret_cast<std::uintptr_t>(to) % kCopied || reinterpret_cast<std::uintptr_t>(from) % kCopied) {
    fail("copy_async() of an address that is no multiple of 16", at);
  }
  if (place < me.block->shared || place >= me.block->shared_end) {
    fail("copy_async() to where no shared memory is", at);
  }
  ++counts.copies;
  if (config.count_passes) note_shared_access(to, static_cast<int>(kCopied), at);
  const Copy copy{place, static_cast<const char*>(from), valid, me.open_group, at};
  if (config.watch) {
    if (valid) watch(from, kCopied, Access::read, at);
    copy_begins(copy);
  }
  if (config.early_copies) carry_out(copy);
  me.copies.push_back(copy);
}

void copy_commit() { ++current->open_group; }

void copy_wait(int pending) {
  std::vector<Copy>& copies = current->copies;
  const int until = current->open_group - pending;
  std::size_t count = 0;
  while (count < copies.size() && copies[count].group < until) ++count;
  for (std::size_t i = count; i-- > 0;) {  // in no order: here, the last first
    if (config.watch) {
      if (copies[i].valid) watch(copies[i].from, kCopied, Access::read, copies[i].at);
      copy_ends(copies[i]);
    }
    if (!config.early_copies) carry_out(copies[i]);
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(count));
}

// --- Between blocks --------------------------------------------------------------------------------------

template <class Counter>
static Counter add(Counter* p, Counter value, Place at) {
  touch(p, sizeof *p, Access::atomic, at);
  using Unsigned = std::make_unsigned_t<Counter>;
  const Counter old = *p;
  *p = static_cast<Counter>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value));
  note_change();
  return old;
}
int fetch_add(int* p, int value, Place at) { return add(p, value, at); }
std::uint64_t fetch_add(std::uint64_t* p, std::uint64_t value, Place at) { return add(p, value, at); }

void release_add(std::uint32_t* flag, std::uint32_t value, Place at) {
  touch(flag, sizeof *flag, Access::atomic, at);
  if (config.watch) release(flag, value);
  *flag += value;
  note_change();
}

void acquire_reached(const std::uint32_t* flag, std::uint32_t value, Place at) {
  touch(flag, sizeof *flag, Access::atomic, at);
  if (static_cast<std::int32_t>(*flag - value) < 0) wait_at_flag(flag, value, at);
  if (config.watch) acquire(flag, value);
}

}  // namespace effv2::emulator
