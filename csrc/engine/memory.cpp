#include "engine/memory.h"

#include <cstring>
#include <new>
#include <utility>

#include "engine/arena.h"
#include "engine/errors.h"

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace effv2 {
namespace {

constexpr std::size_t kLargePage = std::size_t{1} << 21;
// What is never touched takes no memory, so few pieces waste least: up to one large page each.
constexpr std::size_t kPiece = 32 * kLargePage;

thread_local Arena* current = nullptr;

// What failed says how much it would have been.
void* aligned(std::size_t bytes, std::size_t alignment) {
  void* memory = ::operator new(bytes, std::align_val_t{alignment}, std::nothrow);
  if (!memory) throw MemoryError(bytes);
  return memory;
}

}  // namespace

Arena::Arena() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

std::byte* Arena::take(std::int64_t bytes) {
  const std::size_t wanted = static_cast<std::size_t>(aligned_bytes(bytes));
  if (wanted > left_) {
    const std::size_t size = wanted < kPiece ? kPiece : (wanted + kLargePage - 1) / kLargePage * kLargePage;
    pieces_.reserve(pieces_.size() + 1);
    void* piece = aligned(size, kLargePage);
    pieces_.push_back(piece);
#ifdef MADV_HUGEPAGE
    madvise(piece, size, MADV_HUGEPAGE);  // a wish: without it the pages are small
#endif
    next_ = static_cast<std::byte*>(piece);
    left_ = size;
  }
  std::byte* taken = next_;
  next_ += wanted;
  left_ -= wanted;
  return taken;
}

Arena::~Arena() {
  for (void* piece : pieces_) ::operator delete(piece, std::align_val_t{kLargePage});
}

ArenaScope::ArenaScope(Arena* arena) : outer_(current) { current = arena; }
ArenaScope::~ArenaScope() { current = outer_; }

Buffer::Buffer(std::int64_t bytes) : bytes_(aligned_bytes(bytes)), own_(!current) {
  if (bytes_ == 0) return;
  const std::size_t size = static_cast<std::size_t>(bytes_);
  data_ = own_ ? static_cast<std::byte*>(aligned(size, 64)) : current->take(bytes_);
  std::memset(data_, 0, size);
}

Buffer::Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_), own_(other.own_) {
  other.data_ = nullptr;
  other.bytes_ = 0;
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(own_, other.own_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ && own_) ::operator delete(data_, std::align_val_t{64});
}

}  // namespace effv2
