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

Named::Named(std::string name, std::uintptr_t address, std::size_t bytes, bool writable)
    : region_(std::make_unique<Region>()) {
  region_->name = std::move(name);
  region_->begin = reinterpret_cast<char*>(address);
  region_->end = region_->begin + bytes;
  region_->writable = writable;
  if (writable) region_->cells.resize((bytes + kGrain - 1) / kGrain);
  enter(*region_);
}

Named::~Named() { leave(*region_); }

void Named::is_written() {
  for (Cell& cell : region_->cells) cell.written = true;
}

static char* poisoned(const Guarded& pages) {
  std::memset(pages.begin(), 0xff, pages.end() - pages.begin());
  return pages.begin();
}

Memory::Memory(std::string name, std::size_t bytes, bool writable)
    : pages_(bytes),
      data_(poisoned(pages_)),
      named_(std::move(name), reinterpret_cast<std::uintptr_t>(data_), bytes, writable) {}

}  // namespace effv2::emulator
