// Files as users name them: read as a whole, and what of them may be written over.
#pragma once

#include <string>
#include <vector>

namespace effv2::runner {

// Of an error of the system, errno.
std::string reason(int code);

// The bytes of a regular file, or of a pipe that is open already, such as /dev/stdin. Throws Failure.
std::vector<unsigned char> read_file(const std::string& path);

// A file that is read, and what it is: "the network".
struct Read {
  std::string path;
  const char* what;
};

// Whether an array may be written there: where there is nothing, over another .npy or an empty file, and into
// a device or a pipe that is open already, such as /dev/null and /dev/stdout. Over nothing that is read,
// under any name. Throws Failure.
void check_output(const std::string& path, const std::vector<Read>& read);

}  // namespace effv2::runner
