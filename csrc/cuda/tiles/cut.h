// The images of a map, cut into tiles of some rows and columns; tiles beside each other come first.
#pragma once

#include "cuda/reach.h"

namespace effv2::cuda {

struct Cut {
  int height, width, tile_height, tile_width;

  struct Corner {
    int image, top, left;  // of a tile
  };

  EFFV2_ANYWHERE int rows() const { return blocks_of(height, tile_height); }
  EFFV2_ANYWHERE int columns() const { return blocks_of(width, tile_width); }
  EFFV2_ANYWHERE int of_image() const { return rows() * columns(); }

  EFFV2_DEVICE Corner corner(int tile) const {
    const int row = tile / columns();
    return {row / rows(), row % rows() * tile_height, tile % columns() * tile_width};
  }
  // Of the map, that a tile covers.
  Rows rows_of(int tile) const {
    const int row = tile / columns(), image = row / rows() * height, top = row % rows() * tile_height;
    return {image + top, image + (top + tile_height < height ? top + tile_height : height) - 1};
  }
};

}  // namespace effv2::cuda
