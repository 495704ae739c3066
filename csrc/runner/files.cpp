#include "runner/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>

#include "engine/errors.h"
#include "runner/array.h"
#include "runner/failure.h"

namespace effv2::runner {
namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

[[noreturn]] void cannot(const char* verb, const std::string& path, const std::string& why) {
  throw Failure(EFFV2_FILE_ERROR, std::string("cannot ") + verb + " " + path + ": " + why);
}

void resize(std::vector<unsigned char>& bytes, std::size_t size) {
  try {
    bytes.resize(size);
  } catch (const std::bad_alloc&) {
    throw MemoryError(size);
  }
}

// Such as /dev/stdin. One that a name in a folder leads to waits for its other end; those that are open have
// no such name.
bool is_open_pipe(const std::string& path, const struct stat& status) {
  if (!S_ISFIFO(status.st_mode)) return false;
  const std::unique_ptr<char, void (*)(void*)> named(realpath(path.c_str(), nullptr), std::free);
  return named == nullptr;
}

// A regular file, or a pipe that is open already, such as /dev/stdin. Throws Failure for anything else;
// another pipe is refused, not waited for.
File opened(const std::string& path) {
  const int number = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (number < 0 && errno == ENOENT) throw Failure(EFFV2_FILE_ERROR, "there is no file " + path);
  if (number < 0) cannot("read", path, reason(errno));
  File file(fdopen(number, "rb"), std::fclose);
  if (!file) {
    close(number);
    throw std::bad_alloc();
  }
  struct stat status{};
  if (fstat(number, &status) != 0) cannot("read", path, reason(errno));
  const bool open_pipe = is_open_pipe(path, status);
  if (!S_ISREG(status.st_mode) && !open_pipe) cannot("read", path, "it is no regular file");
  if (open_pipe && fcntl(number, F_SETFL, 0) != 0) cannot("read", path, reason(errno));
  return file;
}

bool is_npy(const std::string& path) {
  unsigned char front[kMagicBytes] = {};
  const File file = opened(path);
  return std::fread(front, 1, kMagicBytes, file.get()) == kMagicBytes &&
         std::memcmp(front, kMagic, kMagicBytes) == 0;
}

}  // namespace

std::string reason(int code) { return std::generic_category().message(code); }

std::vector<unsigned char> read_file(const std::string& path) {
  const File file = opened(path);
  std::vector<unsigned char> bytes;
  for (std::size_t got = 1; got > 0;) {
    const std::size_t before = bytes.size();
    resize(bytes, before + (before ? before : 1 << 16));
    got = std::fread(bytes.data() + before, 1, bytes.size() - before, file.get());
    const int code = errno;
    bytes.resize(before + got);
    if (std::ferror(file.get())) cannot("read", path, reason(code));
  }
  return bytes;
}

void check_output(const std::string& path, const std::vector<Read>& read) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return;
    cannot("write", path, reason(errno));
  }
  for (const Read& one : read) {
    struct stat other{};
    if (stat(one.path.c_str(), &other) == 0 && other.st_dev == status.st_dev && other.st_ino == status.st_ino)
      cannot("write", path, std::string("it is ") + one.what + " itself; give another name");
  }
  if (S_ISDIR(status.st_mode)) cannot("write", path, "it is a directory");
  struct stat printed{};
  if (S_ISREG(status.st_mode) && fstat(STDOUT_FILENO, &printed) == 0 && printed.st_dev == status.st_dev &&
      printed.st_ino == status.st_ino)
    cannot("write", path, "what this program prints goes there; give another name");
  if (S_ISREG(status.st_mode)) {
    if (status.st_size == 0 || is_npy(path)) return;
    cannot("write", path,
           "it exists and is no .npy file, and nothing else is written over; give another name, or move it "
           "away");
  }
  if (!S_ISCHR(status.st_mode) && !is_open_pipe(path, status)) cannot("write", path, "it is no regular file");
}

}  // namespace effv2::runner
