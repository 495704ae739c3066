#include "storage/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <new>
#include <string>
#include <system_error>

#include "storage/errors.h"

namespace effv2 {
namespace {

[[noreturn]] void cannot_read(const std::string& path, const std::string& why) {
  throw FileError("cannot read " + path + ": " + why);
}

std::string reason(int code) { return std::generic_category().message(code); }

struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

}  // namespace

MappedFile::MappedFile(const char* path) {
  const Descriptor file{open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};  // a pipe is refused, not waited for
  if (file.number < 0) {
    if (errno == ENOENT) throw FileError("there is no file " + std::string(path));
    if (errno == ENOMEM) throw std::bad_alloc();
    cannot_read(path, reason(errno));
  }
  struct stat status{};
  if (fstat(file.number, &status) != 0) cannot_read(path, reason(errno));
  if (!S_ISREG(status.st_mode)) cannot_read(path, "it is no regular file");
  if (status.st_size == 0) return;
  if (static_cast<std::uintmax_t>(status.st_size) > std::numeric_limits<std::size_t>::max())
    throw MemoryError(std::numeric_limits<std::size_t>::max());
  bytes_ = static_cast<std::size_t>(status.st_size);
  void* mapped = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (mapped == MAP_FAILED) {
    if (errno == ENOMEM) throw MemoryError(bytes_);
    cannot_read(path, reason(errno));
  }
  data_ = mapped;
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, bytes_);
}

}  // namespace effv2
