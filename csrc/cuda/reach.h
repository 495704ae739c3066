// What a tile of a step reads and makes, for who decides what has to be done before it. Host code.
#pragma once

#include "cuda/address.h"

namespace effv2::cuda {

// Rows of a map, its images one below the other, the last one included.
struct Rows {
  int first, last;
};

struct Reach {
  static constexpr int kMost = 3;
  struct Read {
    Address map;
    Rows rows;
  };

  Address made;
  int height;  // rows of an image of that map
  Rows rows;   // that the tile makes, or makes a part of
  Read reads[kMost];
  int count;

  Reach(Address map, int height_of_map, Rows made_rows)
      : made(map), height(height_of_map), rows(made_rows), reads{}, count(0) {}
  // Maps that no buffer holds are the weights' or nobody's.
  Reach& and_reads(Address map, Rows of_map) {
    if (map >> kOffsetBits) reads[count++] = {map, of_map};
    return *this;
  }
};

// Rows of a map under windows of `kernel` rows that are `stride` apart, for rows of the map that is made.
inline Rows rows_under(Rows made, int made_height, int height, int kernel, int stride) {
  const auto row = [&](int of_made, int within) {
    const int found = of_made % made_height * stride - kernel / 2 + within;
    return of_made / made_height * height + (found < 0 ? 0 : found >= height ? height - 1 : found);
  };
  return {row(made.first, 0), row(made.last, kernel - 1)};
}
// All rows of the images that these rows are of.
inline Rows whole_images(Rows made, int made_height, int height) {
  return {made.first / made_height * height, (made.last / made_height + 1) * height - 1};
}

}  // namespace effv2::cuda
