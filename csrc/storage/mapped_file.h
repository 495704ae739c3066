// A file in memory, as the system maps it: what is read of it is read once.
#pragma once

#include <cstddef>

namespace effv2 {

// It must not be made shorter while it is mapped. Throws FileError, or std::bad_alloc where there is no room.
class MappedFile {
 public:
  explicit MappedFile(const char* path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();
  const std::byte* data() const { return static_cast<const std::byte*>(data_); }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;  // null where it is empty
  std::size_t bytes_ = 0;
};

}  // namespace effv2
