// Memory for weights and activations.
#pragma once

#include <cstdint>

namespace effv2 {

// Floats rounded up to whole cache lines, so that parts laid one after the other stay aligned.
inline std::int64_t aligned_floats(std::int64_t floats) { return (floats + 15) / 16 * 16; }

// 64-byte aligned floats, set to zero; memory of its own, or a part of an arena (see arena.h). Throws
// std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t floats);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();
  float* data() const { return data_; }
  std::int64_t floats() const { return floats_; }

 private:
  float* data_ = nullptr;
  std::int64_t floats_ = 0;
  bool own_ = false;
};

}  // namespace effv2
