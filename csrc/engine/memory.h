// Memory for weights and activations.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effv2 {

// Rounded up to whole cache lines, so that parts laid one after the other stay aligned.
inline std::int64_t aligned_bytes(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

// 64-byte aligned memory, set to zero; of its own, or a part of an arena (see arena.h). Throws
// std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();
  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  bool own_ = false;
};

// A buffer of `count` values of one type.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(std::int64_t count) : buffer_(count * static_cast<std::int64_t>(sizeof(T))) {}
  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }
  std::int64_t bytes() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
};

}  // namespace effv2
