// Small instances of kernels for a static verifier of PTX, `make verify-cuda-races`: all sizes are constants,
// and every buffer is a pointer of its own. Sizes are such that every part of a kernel runs, and buffers that
// are filled again are: at least three stages of two, slices of two, and the edge of an image.
#include "cuda/kernels.h"

namespace effv2::cuda {

EFFV2_ANYWHERE constexpr Address buffer(int number) { return static_cast<Address>(number) << kOffsetBits; }

__device__ inline Product product_of(Source source) {
  Product p{};
  p.source = source;
  p.images = 1, p.height = p.y_height = 4, p.width = p.y_width = 8, p.outputs = 32;
  p.kernel = p.stride = 1, p.channels = 384;
  p.activation = Activation::none;
  p.x = buffer(1), p.w = buffer(2), p.bias = buffer(3), p.residual = buffer(4), p.y = buffer(5);
  return p;
}

__device__ inline Ffn ffn_of(FfnPart part) {
  Ffn p{};
  p.part = part;
  p.images = 1, p.height = p.y_height = 7, p.width = p.y_width = 7, p.stride = 1;
  p.channels = 32, p.hidden = 192, p.outputs = 32;
  p.activation = Activation::none;
  p.tile_height = 4, p.tile_width = 7, p.splits = 1;
  p.x = buffer(1), p.fc1 = buffer(2), p.fc1_bias = buffer(3), p.dw = buffer(4), p.dw_bias = buffer(5);
  p.fc2 = buffer(6), p.fc2_bias = buffer(7), p.residual = buffer(1), p.y = buffer(8);
  return p;
}

__device__ inline AttentionDownsample attention_downsample() {
  AttentionDownsample p{};
  p.images = 1, p.height = 10, p.width = 8, p.query_height = 5, p.query_width = 4;
  p.activation = Activation::none;
  p.q = buffer(1), p.kv = buffer(2), p.bias = buffer(3), p.local = buffer(4), p.local_bias = buffer(5);
  p.u = buffer(8);
  return p;
}

// Name, blocks of threads, parameters, kernel.
#define EFFV2_INSTANCE(name, blocks, parameters, ...)                                                   \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__::kThreads)                                   \
      name(char* a, char* b, char* c, char* d, char* e, char* f, char* g, char* h) {                    \
    __VA_ARGS__::run(parameters, Buffers{{nullptr, a, b, c, d, e, f, g, h}}, block(), Shared(), [] {}); \
  }

// Two warps in each direction, so that warps wait for each other's parts of a sum.
using Small = ProductShape<2, 1, 2, 1, 128, 2>;
EFFV2_INSTANCE(product_pixels, 1, product_of(Source::pixels), ProductTile<Half, PixelsOf, Small>)
EFFV2_INSTANCE(ffn_whole, 2, ffn_of(FfnPart::whole), FfnTile<Half, FfnPart::whole, 2, 64, 1>)
EFFV2_INSTANCE(ffn_widen, 2, ffn_of(FfnPart::widen), FfnTile<Half, FfnPart::widen, 2, 64, 1>)
EFFV2_INSTANCE(attention_halved, 2, attention_downsample(), AttentionDownsampleTile<Half>)

}  // namespace effv2::cuda
