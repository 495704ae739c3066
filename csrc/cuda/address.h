// Where a launch finds its data. What it is told is plain data that can be made before memory is known.
#pragma once

#include "cuda/device.h"

namespace effv2::cuda {

// A place in global memory: so many bytes into one of the buffers that a call brings. The upper 8 bits are
// the buffer's number; that of number 0 is the whole memory, so that an address as it is means itself.
using Address = std::uint64_t;
constexpr int kBuffers = 16;
constexpr int kOffsetBits = 56;

struct Buffers {
  char* begin[kBuffers];
};

template <class V>
EFFV2_DEVICE V* at(const Buffers& buffers, Address address) {
  return reinterpret_cast<V*>(buffers.begin[address >> kOffsetBits] +
                              (address & ((Address{1} << kOffsetBits) - 1)));
}

constexpr long long kMostCounted = 0x7fffffff;
EFFV2_ANYWHERE constexpr int blocks_of(long long count, int size) {
  return static_cast<int>((count + size - 1) / size);
}
EFFV2_ANYWHERE constexpr int round_up(int count, int multiple) {
  return (count + multiple - 1) / multiple * multiple;
}
// Bytes that Shared::take takes for so many values.
template <class T>
constexpr int taken(int count) {
  return round_up(count * static_cast<int>(sizeof(T)), 128);
}

}  // namespace effv2::cuda
