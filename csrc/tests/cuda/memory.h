// Memory that kernels are given: between pages that cannot be touched, and NaN until something is written.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace effv2::emulator {

// Shared memory is taken in pieces of 128 bytes, with gaps between them here.
inline constexpr std::size_t kSharedPiece = 128, kSharedGap = 256;
inline constexpr int kMostPieces = 64;
inline constexpr std::size_t kSharedGaps = kMostPieces * kSharedGap;

// So many bytes, up to a page that cannot be touched; a multiple of 128.
class Guarded {
 public:
  explicit Guarded(std::size_t bytes);
  ~Guarded();
  Guarded(Guarded&& other) noexcept { *this = std::move(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_, other.mapped_);
    std::swap(begin_, other.begin_);
    std::swap(end_, other.end_);
    return *this;
  }

  char* begin() const { return begin_; }
  char* end() const { return end_; }
  char* mapping() const { return mapping_; }
  char* mapping_end() const { return mapping_ + mapped_; }

 private:
  char* mapping_ = nullptr;
  std::size_t mapped_ = 0;
  char *begin_ = nullptr, *end_ = nullptr;
};

struct Region;  // watch.h

// Global memory that is somebody else's, by a name, from which kernels read, or which they write as well.
class Named {
 public:
  Named(std::string name, std::uintptr_t address, std::size_t bytes, bool writable);
  ~Named();
  Named(const Named&) = delete;
  Named& operator=(const Named&) = delete;

  // What kernels may read of it from now on, though none has written it: all of it.
  void is_written();

 protected:
  std::unique_ptr<Region> region_;
};

// The same between pages that cannot be touched.
class Memory {
 public:
  Memory(std::string name, std::size_t bytes, bool writable);

  char* data() const { return data_; }
  void is_written() { named_.is_written(); }

 private:
  Guarded pages_;
  char* data_;
  Named named_;
};

// Values in global memory.
template <class T>
class Array {
 public:
  // Read by kernels.
  Array(const std::string& name, const std::vector<T>& values)
      : count_(values.size()), memory_(name, bytes(), false) {
    std::memcpy(memory_.data(), values.data(), bytes());
  }
  // Written by kernels, and NaN before.
  Array(const std::string& name, std::size_t count) : count_(count), memory_(name, bytes(), true) {}

  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  std::size_t size() const { return count_; }
  std::vector<T> values() const { return std::vector<T>(data(), data() + count_); }
  void fill(T value) {
    for (std::size_t i = 0; i < count_; ++i) data()[i] = value;
    memory_.is_written();
  }

 private:
  std::size_t bytes() const { return count_ * sizeof(T); }
  std::size_t count_;
  Memory memory_;
};

}  // namespace effv2::emulator
