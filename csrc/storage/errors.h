// Why a saved network is not taken.
#pragma once

#include "engine/errors.h"

namespace effv2 {

// It cannot be opened or read.
class FileError : public Error {
 public:
  using Error::Error;
};

// It is no saved network, is damaged, or describes what cannot be run.
class FormatError : public Error {
 public:
  using Error::Error;
};

// It has a version of the format that this library does not know.
class VersionError : public FormatError {
 public:
  using FormatError::FormatError;
};

}  // namespace effv2
