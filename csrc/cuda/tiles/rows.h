// Rows of values from global to shared memory.
#pragma once

#include "cuda/device.h"

namespace effv2::cuda {

// `values` of each, a multiple of eight, `stride` apart where they go. from(row): where a row begins; nullptr
// of those that do not exist, which become zeros. somewhere: any place of 16 bytes that can be read.
template <class T, int Threads, class From>
EFFV2_DEVICE void load_rows(T* to, int stride, int rows, int values, const T* somewhere, From&& from) {
  const int pieces = values / 8;
  EFFV2_ROLL
  for (int i = thread(); i < rows * pieces; i += Threads) {
    const int row = i / pieces, place = i % pieces * 8;
    const T* const begin = from(row);
    copy_async(to + row * stride + place, begin ? begin + place : somewhere, begin != nullptr);
  }
}
// Rows that lie one behind the other.
template <class T, int Threads>
EFFV2_DEVICE void load_rows(T* to, int stride, int rows, int values, const T* from) {
  load_rows<T, Threads>(to, stride, rows, values, from, [&](int row) { return from + row * values; });
}

}  // namespace effv2::cuda
