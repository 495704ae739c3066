// What the kernels of kernels.h are called, in their order.
#pragma once

namespace effv2::cuda {

// Rows and columns of a product's tile.
constexpr const char* kProductShapes[] = {"128x64", "64x128", "64x64", "32x32", "16x32"};
// Hidden channels of a slice, and a warp's products.
constexpr const char* kFfnShapes[] = {"64x1", "64x2", "64x3", "32x3", "32x6"};
constexpr const char* kWidenShapes[] = {"64", "32"};
// A warp's products.
constexpr const char* kStemShapes[] = {"x1", "x2", "x4"};
// Heads whose values a block of threads sums.
constexpr const char* kAttentionShapes[] = {"2 heads", "4 heads"};
constexpr const char* kOneShape[] = {"only"};

}  // namespace effv2::cuda
