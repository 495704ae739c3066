#include "engine/block.h"

#include <cstring>
#include <new>
#include <utility>

namespace effv2 {

Buffer::Buffer(std::int64_t floats) : floats_(aligned_floats(floats)) {
  if (floats_ == 0) return;
  const std::size_t bytes = static_cast<std::size_t>(floats_) * sizeof(float);
  data_ = static_cast<float*>(::operator new(bytes, std::align_val_t{64}));
  std::memset(data_, 0, bytes);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(floats_, other.floats_);
  return *this;
}

Buffer::~Buffer() {
  if (data_) ::operator delete(data_, std::align_val_t{64});
}

}  // namespace effv2
