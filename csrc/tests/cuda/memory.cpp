#include "memory.h"

#include <sys/mman.h>

#include "emulator.h"
#include "watch.h"

namespace effv2::emulator {

static constexpr std::size_t kPage = 4096, kGuard = 16 * kPage, kMultiple = 128;

Guarded::Guarded(std::size_t bytes) {
  const std::size_t whole = (bytes + kMultiple - 1) / kMultiple * kMultiple;
  const std::size_t pages = (whole + kPage - 1) / kPage * kPage;
  mapped_ = pages + 2 * kGuard;
  void* const p = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("there is no memory for " + std::to_string(bytes) + " bytes");
  mapping_ = static_cast<char*>(p);
  if (pages && mprotect(mapping_ + kGuard, pages, PROT_READ | PROT_WRITE)) throw Error("no memory");
  end_ = mapping_ + kGuard + pages;
  begin_ = end_ - whole;
}

Guarded::~Guarded() {
  if (mapping_) munmap(mapping_, mapped_);
}

Memory::Memory(std::string name, std::size_t bytes, bool writable)
    : pages_(bytes), bytes_(bytes), data_(pages_.begin()), region_(std::make_unique<Region>()) {
  std::memset(pages_.begin(), 0xff, pages_.end() - pages_.begin());
  region_->name = std::move(name);
  region_->begin = data_;
  region_->end = data_ + bytes;
  region_->guard_begin = pages_.mapping();
  region_->guard_end = pages_.mapping_end();
  region_->writable = writable;
  if (writable) region_->cells.resize((bytes + kGrain - 1) / kGrain);
  enter(*region_);
}

Memory::~Memory() { leave(*region_); }

void Memory::is_written() {
  for (Cell& cell : region_->cells) cell.written = true;
}

}  // namespace effv2::emulator
