// Photographs as networks trained on ImageNet expect them, as effv2_kernels.photo prepares them.
#pragma once

#include <cstdint>

#include "runner/array.h"
#include "runner/picture.h"

namespace effv2::runner {

// (1, channels, rows, columns): resized so that 95 % of the shorter side are in the crop, cropped to the
// middle, and normalised by ImageNet's mean and standard deviation, of a grey picture by their means over the
// colours. Throws Failure where a picture is too thin for that.
Array prepare(const Picture& picture, std::int64_t rows, std::int64_t columns);

// A window of the picture that a picture becomes when it is resized to rows x columns.
struct Window {
  std::size_t top, left, rows, columns;
};

// Bicubic (a = -1/2), over all pixels that an output covers; columns first and then rows, each rounded to 8
// bits, with weights of 22 bits: the arithmetic of Pillow, so that results are the same bits.
Picture resize(const Picture& picture, std::size_t rows, std::size_t columns, const Window& window);

}  // namespace effv2::runner
